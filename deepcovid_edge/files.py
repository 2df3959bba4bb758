"""Files as every room writes and names them: whole or not at all, by hash, under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from deepcovid_edge.errors import NotThereError, OutputError

CACHE_VARIABLE = "DEEPCOVID_EDGE_CACHE"


def cache_folder() -> Path:
    """Where engines and timing caches are kept: `$DEEPCOVID_EDGE_CACHE`, or in the user's cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deepcovid-edge"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as a hexadecimal string.

    Raises:
        NotThereError: The file cannot be opened.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file under a temporary name, then give it its own.

    Args:
        path: The file; one that is there is replaced.
        data: Its content.
        sync: Wait until the disk has the content before the file gets its name.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    own = f"{path}.{os.getpid()}-{threading.get_native_id()}.part"
    try:
        _write(own, os.O_CREAT | os.O_TRUNC, data, sync=sync)
        os.replace(own, path)  # noqa: PTH105 - a Path's costs more than the call
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(own)  # noqa: PTH108
        raise _not_written(path, error) from error


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a file that nothing names before it is whole; one that is there is replaced.

    Renaming costs as much as writing a small file, so a new file gets its name at once. A process
    that is killed here leaves a file that no record names.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    try:
        _write(path, os.O_CREAT | os.O_EXCL, data)
    except FileExistsError:
        write_atomically(path, data)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise _not_written(path, error) from error


def _write(path: Path | str, flags: int, data: bytes | memoryview, *, sync: bool = False) -> None:
    handle = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a name in a folder, waiting for another process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
