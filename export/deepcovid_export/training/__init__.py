"""Training a network by a recipe."""
