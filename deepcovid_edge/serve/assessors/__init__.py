"""The processes that assess images for the server, and whether they do."""
