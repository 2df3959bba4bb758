"""A site file of the shipped model, as `site-check` writes it; its figures are made up."""

from __future__ import annotations

from pathlib import Path

from deepcovid_edge.decision.site_file import write_site
from deepcovid_edge.files import file_sha256
from deepcovid_edge.models import shipped_models


def write_usable_site(path: Path) -> None:
    """Write one whose verdict is `usable`."""
    facts = {
        "schema_version": 1,
        "name": "ward 3",
        "verdict": "usable",
        "reasons": ["The images are drawn."],
        "threshold": 0.5,
        "indeterminate_range": None,
        "model": {
            "name": "squeezenet1_1",
            "sha256": file_sha256(shipped_models()["squeezenet1_1"]),
        },
    }
    write_site(path, facts)
