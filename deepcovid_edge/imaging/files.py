"""Read an image's file once: classified, hashed and decoded from the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.signatures import is_dicom, known_kind, unread_format
from deepcovid_edge.reasons import Reason

MAX_FILE_BYTES = 1 << 30
_HEAD = 4096
_LARGE_FILE = 64 << 20
_UNFINISHED = {".part", ".partial", ".tmp", ".crdownload", ".filepart"}


@dataclass(frozen=True)
class FileBytes:
    """A file's content as it was read once: classified, hashed and decoded from the same bytes."""

    path: Path
    data: bytes
    sha256: str


def read_bytes(path: Path) -> FileBytes:
    """Read a whole regular file, waiting briefly for one that still grows.

    Raises:
        NotAssessedError: The file cannot be opened, is too large, or did not finish arriving.
    """
    try:
        before = path.stat()  # a pipe is not even opened: that would set its writer off
        if not stat.S_ISREG(before.st_mode):
            raise NotAssessedError(Reason.UNREADABLE, "not a regular file")
        # One handle and few calls: each gives Python's lock away, and waits to have it back.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data, grows = _whole(handle, before.st_size)
            if grows:
                time.sleep(1.0)
                data, grows = _whole(handle, os.fstat(handle).st_size)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise NotAssessedError(Reason.UNREADABLE, _cause(error)) from error
    if grows or path.suffix.lower() in _UNFINISHED:
        raise NotAssessedError(Reason.INCOMPLETE, f"{len(data)} bytes so far")
    return FileBytes(path, data, hashlib.sha256(data).hexdigest())


def _whole(handle: int, size: int) -> tuple[bytes, bool]:
    """The content of an open file up to its size, and whether it has another size by now."""
    if size > MAX_FILE_BYTES:
        raise NotAssessedError(Reason.TOO_BIG, f"{size} bytes")
    if size > _LARGE_FILE:
        _check_head(os.pread(handle, _HEAD, 0))
    data = os.pread(handle, size, 0)
    while len(data) < size and (more := os.pread(handle, size - len(data), len(data))):
        data += more  # seldom: a regular file gives all that is asked for
    return data, len(data) != os.fstat(handle).st_size


def _check_head(head: bytes) -> None:
    """Refuse a large file that is nothing we know before it is read whole."""
    if not (known_kind(head) or unread_format(head) or is_dicom(head)):
        raise NotAssessedError(Reason.NOT_IMAGE, "a large file of unknown kind")


def _cause(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or one_line(error)
