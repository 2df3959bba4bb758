"""Addresses of images: paths of this machine, or what `pyarrow.fs` reads, such as `s3://...`.

An address is text as the store spells it, not a URI with escapes: keys may hold any letter. Where
the store is not the provider's own, its address comes from the environment (`AWS_ENDPOINT_URL`).
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import NotThereError, UsageError, one_line, require

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_COLLAPSED = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""How an address begins that was taken for a path."""
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]+)://([^/]+)(?:/(.*))?", re.DOTALL)


def is_remote(address: str) -> bool:
    """Whether an address is one of `pyarrow.fs`, and no path."""
    return _REMOTE.fullmatch(address) is not None


def open_remote(address: str) -> tuple[FileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
        UsageError: No file system has such addresses.
        OSError: The store does not answer, or does not let this user in.
    """
    found = _REMOTE.fullmatch(address)
    if found is None:
        raise UsageError(f"{address}: got a path, expected an address such as s3://bucket/folder")
    scheme, store, path = found.groups()
    system, base = _file_system(os.getpid(), scheme, store)
    return system, "/".join(filter(None, (base.rstrip("/"), path)))


@lru_cache(maxsize=64)
def _file_system(_process: int, scheme: str, store: str) -> tuple[FileSystem, str]:
    fs = require("pyarrow.fs", extra=EXTRA)
    try:
        opened: tuple[FileSystem, str] = fs.FileSystem.from_uri(f"{scheme}://{store}")
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"{scheme}://{store}: not an address of a store: {one_line(error)}") from (
            error
        )
    return opened


def close_stores() -> None:
    """Let go of the stores. Call at the end of a program: their threads outlast Python's else."""
    _file_system.cache_clear()


class NumberedPath(str):
    """A path that knows its place among the images of its worker."""

    __slots__ = ("number",)
    number: int

    @classmethod
    def of(cls, path: str, number: int) -> NumberedPath:
        """A path and its place."""
        made = cls(path)
        made.number = number
        return made


class RemoteImage:
    """An image of a store, read as an open binary file is; it is opened by the thread that reads.

    Args:
        name: Its address.
        number: Its place among the images of its worker.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def read(self, size: int = -1) -> bytes:
        """The first bytes of the image.

        Raises:
            OSError: It cannot be read.
        """
        try:
            system, path = open_remote(self.name)
        except UsageError as error:
            raise OSError(str(error)) from error
        with system.open_input_file(path) as stream:
            data: bytes = stream.read(size if size >= 0 else None)
        return data


def check_local(subject: str, path: Path) -> None:
    """Check that a path is one of this machine that every library can open.

    Raises:
        UsageError: It is an address, or not UTF-8.
    """
    if _COLLAPSED.match(str(path)):
        raise UsageError(f"{subject}: got the address {path}, expected a path of this machine")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{subject}: got {path}, expected a name in UTF-8: rename it") from error


def check_readable(path: Path) -> Path:
    """A file that is there.

    Raises:
        NotThereError: It is not.
    """
    if path.is_dir():
        raise NotThereError(
            f"{path}: is a folder; expected a manifest, which `deepcovid-edge manifest` makes, or "
            "--summary with a folder of shards"
        )
    if not path.is_file():
        raise NotThereError(f"{path}: no such file")
    return path
