"""Folders of a store, such as S3: listed in a stable order, those ahead meanwhile.

A store lists one folder at a time, so memory grows with the largest folder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcovid_edge.archive.images.addresses import open_remote
from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import NotThereError, one_line, require
from deepcovid_edge.pipeline.pipeline import in_order

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_MOST_AHEAD = 16
"""Folders that are listed before they are asked for."""
_WITHOUT_FOLDERS = frozenset({"abfs", "gcs", "s3"})
"""Types of stores that have keys alone: one may be a file, and begin others as a folder does."""


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
    """What a folder holds.

    Attributes:
        address: Its address.
        files: Its files.
        folders: The paths of its folders.
        has_nameless: Whether a folder in it has an empty name, as in `a//b`: no store lists it.
    """

    address: str
    files: list[ListedFile]
    folders: list[str]
    has_nameless: bool


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
    addresses: Iterable[str],
    pool: ThreadPoolExecutor,
    walk: FolderWalk,
    nameless: Callable[[str], object],
) -> Iterator[ListedFile]:
    """The files below addresses, folder by folder; each once, whatever addresses overlap.

    Args:
        addresses: Of folders or of files.
        pool: Its threads wait for the store.
        walk: Knows what is passed over, and counts it.
        nameless: Called with the address of a folder that has keys below an empty folder name,
            which cannot be listed.

    Raises:
        UsageError: No store has such addresses.
        NotThereError: One cannot be listed.
    """
    named = dict.fromkeys(address.rstrip("/") for address in addresses)
    for address in named:
        for folder in _folders_below(address, named, pool, walk):
            if folder.has_nameless:
                nameless(folder.address)
            for file in folder.files:
                if file.path == address or (
                    file.path not in named and walk.is_image(_name(file.path))
                ):
                    yield file


def _folders_below(
    address: str, named: Collection[str], pool: ThreadPoolExecutor, walk: FolderWalk
) -> Iterator[_Folder]:
    """The folder of an address and those below it, without those that another argument names."""
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
        yield folder
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
    """Files and folders of a folder; with the address itself where that is a file."""
    fs = require("pyarrow.fs", extra=EXTRA)
    if folder == store.root:
        found = _of_address(store)
    else:
        found = store.system.get_file_info(fs.FileSelector(folder))
    found = sorted(found, key=lambda one: one.path)
    files = [
        ListedFile(store.address_of(one.path), one.size, one.mtime and one.mtime.timestamp())
        for one in found
        if one.type == fs.FileType.File
    ]
    folders = [one.path for one in found if one.type == fs.FileType.Directory]
    below = [path for path in folders if path.rstrip("/") != folder]
    return _Folder(store.address_of(folder), files, below, has_nameless=len(below) < len(folders))


def _of_address(store: _Store) -> list[FileInfo]:
    """The file that an address is, if it is one, and what the folder of that address holds."""
    fs = require("pyarrow.fs", extra=EXTRA)
    itself = store.system.get_file_info(store.root)
    is_file = itself.type == fs.FileType.File
    if is_file and store.system.type_name not in _WITHOUT_FOLDERS:
        return [itself]
    below = store.system.get_file_info(fs.FileSelector(store.root, allow_not_found=is_file))
    return [itself, *below] if is_file else below
