"""The images of an archive: where they are, and the manifest that lists them."""
