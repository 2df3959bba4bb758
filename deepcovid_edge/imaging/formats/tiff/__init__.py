"""TIFF files: their directories, and whether the stored pixels are whole."""
