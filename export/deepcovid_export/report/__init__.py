"""Evaluations as JSON, one page and a model card."""

import os
from contextlib import suppress

from deepcovid_edge.errors import OutputError
from deepcovid_edge.files import cache_folder

# Read when matplotlib is imported: its list of fonts belongs with all else that is kept.
with suppress(OutputError):  # without a cache folder matplotlib makes one of its own for each run
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
