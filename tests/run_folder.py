"""A folder that the workers of a run of tests share: what is dear to make is made once.

Whoever needs a thing first makes it; two that need it at once may both, and one of them is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_chosen: list[Path] = []


def choose_run_folder(folder: Path) -> None:
    """Share this folder from now on; the fixture of the session calls it before any test."""
    folder.mkdir(exist_ok=True)
    _chosen[:] = [folder]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of that name in the folder of the run, filled by whoever asks for it first.

    Args:
        name: Of the folder.
        make: Fills the folder that it is given; whole, it gets its name.
    """
    (shared,) = _chosen
    kept = shared / name
    if not kept.exists():
        made = Path(tempfile.mkdtemp(dir=shared))
        make(made)
        try:
            made.rename(kept)
        except OSError:  # another worker was first
            shutil.rmtree(made)
    return kept


def has_run_folder() -> bool:
    """Whether tests run already; modules are imported before."""
    return bool(_chosen)
