"""Many image files to records: read, classify, write."""
