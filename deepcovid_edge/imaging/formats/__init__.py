"""Formats of pictures: what each states of its pixels, and what of its damage shows."""
