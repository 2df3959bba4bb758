"""Image files read once: format, hash and pixels come from the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotAssessedError, UsageError, one_line
from deepcovid_edge.imaging.signatures import is_dicom, known_kind, unread_format
from deepcovid_edge.reasons import Reason

MAX_FILE_BYTES = 1 << 30
_HEAD = 4096
_LARGE_FILE = 64 << 20
_PART = 32 << 20
"""Read at once: nearly every file whole, and a larger one with signs of progress."""
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".download", "~")
"""How names of files end that a program still writes."""


@dataclass(frozen=True)
class FileBytes:
    """An image file as it was read once."""

    path: Path
    data: bytes
    sha256: str


@dataclass(frozen=True)
class ImageBytes:
    """An image file that has no path: from an object store, a network peer or a web form.

    Attributes:
        name: What its record calls it; the suffix counts as a file's would.
        data: The bytes of the file.
    """

    name: str
    data: bytes


ImageSource: TypeAlias = str | os.PathLike[str] | BinaryIO | ImageBytes
"""Where an image file comes from: its path, an open binary file, or its bytes with a name."""


def source_name(source: ImageSource) -> str:
    """What records call a source: its path, or its name; an open file may have none."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", ""))


def read_source(source: ImageSource) -> FileBytes:
    """Read an image file from wherever it comes.

    Raises:
        NotAssessedError: It cannot be read, is too large, or did not finish arriving.
        UsageError: It is no source of images.
    """
    if isinstance(source, Path):
        return read_bytes(source)
    if isinstance(source, str | os.PathLike):
        return read_bytes(Path(source))
    if not (isinstance(source, ImageBytes) or hasattr(source, "read")):
        raise UsageError(
            f"source: got {type(source).__name__}, expected a path, an open file or `ImageBytes`"
        )
    # Decoders take bytes alone; those of a web framework may be a memoryview.
    data = bytes(source.data) if isinstance(source, ImageBytes) else _read_open(source)
    if len(data) > MAX_FILE_BYTES:
        raise NotAssessedError(Reason.TOO_BIG, f"more than {MAX_FILE_BYTES} bytes")
    return FileBytes(Path(source_name(source)), data, hashlib.sha256(data).hexdigest())


def _read_open(stream: BinaryIO) -> bytes:
    """All that an open file still has. One without a buffer may give it in pieces."""
    parts: list[bytes] = []
    left = MAX_FILE_BYTES + 1
    try:
        while left > 0 and (part := stream.read(left)):
            if not isinstance(part, bytes | bytearray | memoryview):
                raise NotAssessedError(Reason.UNREADABLE, "opened as text, expected a binary file")
            parts.append(bytes(part))
            left -= len(part)
            if not isinstance(stream, io.RawIOBase):
                break
    except (OSError, ValueError) as error:
        raise NotAssessedError(Reason.UNREADABLE, _cause(error)) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def is_unfinished(name: str) -> bool:
    """Whether a file's name says that a program still writes it."""
    return name.lower().endswith(_UNFINISHED)


def read_bytes(path: Path) -> FileBytes:
    """Read a whole regular file, waiting briefly for one that still grows.

    Raises:
        NotAssessedError: The file cannot be opened, is too large, or did not finish arriving; or
            the network share that it is on does not answer.
    """
    try:
        data, grows = shares.call(path, partial(_read_regular, path))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise NotAssessedError(Reason.UNREADABLE, _cause(error)) from error
    if grows or is_unfinished(path.name):
        raise NotAssessedError(Reason.INCOMPLETE, f"{len(data)} bytes so far")
    return FileBytes(path, data, hashlib.sha256(data).hexdigest())


def _read_regular(path: Path, progress: shares.Progress) -> tuple[bytes, bool]:
    before = path.stat()  # a pipe is not even opened: that would set its writer off
    if not stat.S_ISREG(before.st_mode):
        raise NotAssessedError(Reason.UNREADABLE, "not a regular file")
    # One handle and few calls: each gives Python's lock away, and waits to have it back.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data, grows = _whole(handle, before.st_size, progress)
        if grows:
            time.sleep(1.0)
            data, grows = _whole(handle, os.fstat(handle).st_size, progress)
    finally:
        os.close(handle)
    return data, grows


def _whole(handle: int, size: int, progress: shares.Progress) -> tuple[bytes, bool]:
    """The content of an open file up to its size, and whether it has another size by now."""
    if size > MAX_FILE_BYTES:
        raise NotAssessedError(Reason.TOO_BIG, f"{size} bytes")
    if size > _LARGE_FILE:
        _check_head(os.pread(handle, _HEAD, 0))
    parts, length = [os.pread(handle, min(size, _PART), 0)], 0
    while (length := length + len(parts[-1])) < size and parts[-1]:
        parts.append(os.pread(handle, min(size - length, _PART), length))
        progress()
    data = b"".join(parts)
    return data, len(data) != os.fstat(handle).st_size


def _check_head(head: bytes) -> None:
    """Refuse a large file that is nothing we know before it is read whole."""
    if not (known_kind(head) or unread_format(head) or is_dicom(head)):
        raise NotAssessedError(Reason.NOT_IMAGE, "a large file of unknown kind")


def _cause(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or one_line(error)
