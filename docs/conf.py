"""Settings of Sphinx: `make docs` builds the pages offline, and a warning is an error.

The source folder is the repository, so that a link from a page to a stored result or to another
document is the same on disk, in a checkout's web view and in the built pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "export")]

from deepcovid_edge.manifest import VERSION  # noqa: E402

project = "deepcovid-edge"
release = version = VERSION
copyright = "the deepcovid-edge authors. Research use only; not a medical device"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
root_doc = "docs/index"
include_patterns = [
    *("docs/**", "benchmarks/README.md", "jetson/*.md", "CHANGELOG.md"),
    *("deepcovid_edge/models/*.md", "benchmarks/models/*.md", ".github/CONTRIBUTING.md"),
]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False
html_theme = "furo"
html_title = f"deepcovid-edge {VERSION}"
html_show_sphinx = False
html_copy_source = False
