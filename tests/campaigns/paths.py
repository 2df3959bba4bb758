"""Where processes that a campaign starts find this package, its helpers and the product."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def python_path(*first: Path) -> str:
    """A value of PYTHONPATH.

    Args:
        first: Folders that come before all others.
    """
    places = (*first, _ROOT, _ROOT / "export", _ROOT / "tests")
    return os.pathsep.join(map(str, places))


def environment() -> dict[str, str]:
    """An environment for a process of this package."""
    return {**os.environ, "PYTHONPATH": python_path()}
