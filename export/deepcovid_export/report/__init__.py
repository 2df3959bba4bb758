"""Evaluations as JSON, one page and a model card."""

import os

from deepcovid_edge.files import cache_folder

# Read when matplotlib is imported: its list of fonts belongs with all else that is kept.
os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
