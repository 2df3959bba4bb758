"""Folders of a store, such as S3: listed in a stable order, those ahead meanwhile.

A store lists one folder at a time, so memory grows with the largest folder alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcovid_edge.archive.images.addresses import open_remote
from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import NotThereError, one_line, require
from deepcovid_edge.pipeline.pipeline import in_order

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_MOST_AHEAD = 16
"""Folders that are listed before they are asked for."""


@dataclass(frozen=True)
class ListedFile:
    """A file as it is found.

    Attributes:
        path: Path or address.
        size: Bytes, or None where it was not asked, or could not be.
        changed: When it was last changed, seconds of the system's clock, or None.
    """

    path: str
    size: int | None = None
    changed: float | None = None


@dataclass(frozen=True)
class _Folder:
    files: list[ListedFile]
    folders: list[str]


@dataclass(frozen=True)
class _Store:
    """A store, and the address that is listed.

    Attributes:
        system: Its file system.
        address: The address, without a slash at its end.
        root: The path of that address in the file system.
    """

    system: FileSystem
    address: str
    root: str

    def address_of(self, path: str) -> str:
        """The address of a path at or below the root."""
        return self.address + path[len(self.root) :]


def remote_files(
    addresses: Iterable[str], pool: ThreadPoolExecutor, walk: FolderWalk
) -> Iterator[ListedFile]:
    """The files below addresses, folder by folder; each once, whatever addresses overlap.

    Args:
        addresses: Of folders or of files.
        pool: Its threads wait for the store.
        walk: Knows what is passed over, and counts it.

    Raises:
        UsageError: No store has such addresses.
        NotThereError: One cannot be listed.
    """
    named = dict.fromkeys(address.rstrip("/") for address in addresses)
    for address in named:
        yield from _files_below(address, named, pool, walk)


def _files_below(
    address: str, named: Collection[str], pool: ThreadPoolExecutor, walk: FolderWalk
) -> Iterator[ListedFile]:
    """The files below an address, without those that another argument names."""
    try:
        system, root = open_remote(address)
    except OSError as error:
        raise NotThereError(f"{address}: {one_line(error)}") from error
    store = _Store(system, address, root)
    levels = [_ahead(pool, store, [root])]
    while levels:
        folder = next(levels[-1], None)
        if folder is None:
            levels.pop()
            continue
        for file in folder.files:
            if file.path == address or (file.path not in named and walk.is_image(_name(file.path))):
                yield file
        below = [
            path
            for path in folder.folders
            if store.address_of(path) not in named and walk.is_walked(_name(path))
        ]
        levels.append(_ahead(pool, store, below))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _ahead(pool: ThreadPoolExecutor, store: _Store, folders: list[str]) -> Iterator[_Folder]:
    """What each folder holds; the next ones are listed meanwhile."""

    def listed(folder: str) -> tuple[_Folder, None]:
        try:
            return _listed(store, folder), None
        except (OSError, ValueError) as error:
            raise NotThereError(f"{store.address_of(folder)}: {one_line(error)}") from error

    return in_order(pool, listed, folders, _MOST_AHEAD)


def _listed(store: _Store, folder: str) -> _Folder:
    """Files and folders of a folder; the file itself where it is one."""
    fs = require("pyarrow.fs", extra=EXTRA)
    system = store.system
    found = [system.get_file_info(folder)]
    if found[0].type != fs.FileType.File:
        found = sorted(system.get_file_info(fs.FileSelector(folder)), key=lambda one: one.path)
    files = [
        ListedFile(store.address_of(one.path), one.size, one.mtime and one.mtime.timestamp())
        for one in found
        if one.type == fs.FileType.File
    ]
    return _Folder(files, [one.path for one in found if one.type == fs.FileType.Directory])
