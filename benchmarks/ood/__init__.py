"""Images unlike the training data: which are rejected, and how that was chosen."""
