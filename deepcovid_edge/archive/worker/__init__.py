"""The process that reads and classifies images, and its parent."""
