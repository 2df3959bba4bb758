"""How fast, how large, at what cost."""
