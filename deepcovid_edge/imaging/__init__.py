"""Image files: read, decoded, checked and prepared for a network."""
