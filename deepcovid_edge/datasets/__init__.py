"""Labelled image files: a folder per class, or a manifest CSV."""
