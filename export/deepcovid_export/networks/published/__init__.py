"""The pickled networks that the published project offers."""
