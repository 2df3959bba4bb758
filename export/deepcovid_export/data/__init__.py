"""Training data: splits, balance, augmentation, leaks and near-duplicates."""
