"""What lies in a watched folder: every file that may be an image, with its signature.

A folder that cannot be listed, and a file that the system tells nothing of, stand in the listing
too, with the signature `NOT_KNOWN`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deepcovid_edge.datasets.folders import COMPANIONS, is_system_folder
from deepcovid_edge.device import shares
from deepcovid_edge.imaging.files import is_unfinished

DONE = "done"
"""Folder that taken files are moved to, beside them. It is never looked into: what lies there was
taken, whatever becomes of files today."""
_HIDDEN = (".", "~$")
_DEEPEST = 16


class Signature(NamedTuple):
    """By what a file is known to be unchanged; of 64 bits each, signed as databases have them."""

    size: int
    modified_ns: int
    inode: int


NOT_KNOWN = Signature(-1, 0, 0)
"""Of a folder that cannot be listed, or a file that the system tells nothing of."""


def is_passed_over(name: str) -> bool:
    """Whether a file of this name is none that somebody finished."""
    low = name.lower()
    return low.startswith(_HIDDEN) or is_unfinished(low) or low in COMPANIONS


def signature_of(status: os.stat_result) -> Signature:
    """The signature of a file, by what stat(2) says of it."""
    return Signature(status.st_size, _signed(status.st_mtime_ns), _signed(status.st_ino))


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def list_files(folder: Path, progress: shares.Progress) -> dict[Path, Signature]:
    """Files of a folder and of those below it, each with its signature.

    Raises:
        OSError: The folder itself cannot be listed.
    """
    found: dict[Path, Signature] = {}
    level = [folder]
    for depth in range(_DEEPEST):
        below: list[Path] = []
        for place in level:
            try:
                for entry in _entries(place, progress):
                    if not entry.is_dir(follow_symlinks=False):
                        found |= _listed(entry)
                    elif not is_system_folder(entry.name) and entry.name != DONE:
                        below.append(Path(entry.path))
            except OSError as error:
                if depth == 0:
                    raise
                if not isinstance(error, FileNotFoundError):  # gone since it was listed
                    found[place] = NOT_KNOWN
        level = below
    return found


def _listed(entry: os.DirEntry[str]) -> dict[Path, Signature]:
    """A file that may be an image, with its signature; nothing where it is none."""
    if is_passed_over(entry.name):
        return {}
    path = Path(entry.path)
    try:
        return {path: signature_of(entry.stat())} if entry.is_file() else {}
    except FileNotFoundError:  # gone since it was listed
        return {}
    except OSError:
        return {path: NOT_KNOWN}


def _entries(folder: Path, progress: shares.Progress) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            progress()
            yield entry
