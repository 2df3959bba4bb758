"""Where a network looked: occlusion and class activation maps, pictures and files."""
