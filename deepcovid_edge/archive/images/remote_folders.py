"""Folders of a store, such as S3: listed in a stable order, those ahead meanwhile.

A store lists one folder at a time, so memory grows with the largest folder alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from deepcovid_edge.archive.images.addresses import open_remote
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import NotThereError, one_line, require

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


def remote_files(address: str, pool: ThreadPoolExecutor) -> Iterator[ListedFile]:
    """The files below an address, folder by folder.

    Args:
        address: Of a folder or of a file.
        pool: Its threads wait for the store.

    Raises:
        UsageError: No store has such addresses.
        NotThereError: It cannot be listed.
    """
    try:
        system, root = open_remote(address)
    except OSError as error:
        raise NotThereError(f"{address}: {one_line(error)}") from error
    prefix = address[: len(address.rstrip("/")) - len(root)]
    levels = [_ahead(pool, system, [root], prefix)]
    while levels:
        folder = next(levels[-1], None)
        if folder is None:
            levels.pop()
            continue
        yield from folder.files
        levels.append(_ahead(pool, system, folder.folders, prefix))


def _ahead(
    pool: ThreadPoolExecutor, system: FileSystem, folders: list[str], prefix: str
) -> Iterator[_Folder]:
    """What each folder holds; the next ones are listed meanwhile."""
    pending: deque[tuple[str, Future[_Folder]]] = deque()
    coming = iter(folders)
    while True:
        for folder in islice(coming, _MOST_AHEAD - len(pending)):
            pending.append((folder, pool.submit(_listed, system, folder, prefix)))
        if not pending:
            return
        folder, listed = pending.popleft()
        try:
            yield listed.result()
        except (OSError, ValueError) as error:
            raise NotThereError(f"{prefix}{folder}: {one_line(error)}") from error


def _listed(system: FileSystem, folder: str, prefix: str) -> _Folder:
    """Files and folders of a folder; the file itself where it is one."""
    fs = require("pyarrow.fs", extra=EXTRA)
    found = [system.get_file_info(folder)]
    if found[0].type != fs.FileType.File:
        found = sorted(system.get_file_info(fs.FileSelector(folder)), key=lambda one: one.path)
    files = [
        ListedFile(prefix + one.path, one.size, one.mtime and one.mtime.timestamp())
        for one in found
        if one.type == fs.FileType.File
    ]
    return _Folder(files, [one.path for one in found if one.type == fs.FileType.Directory])
