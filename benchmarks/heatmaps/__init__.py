"""Speed, agreement and faithfulness of heat maps."""
