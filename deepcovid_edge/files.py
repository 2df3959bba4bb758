"""Files as every room writes and names them: whole or not at all, by hash, under a lock.

What holds a file, a process or a model until it is closed is `Closing`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, TypeVar

from deepcovid_edge.errors import NotThereError, OutputError

CACHE_VARIABLE = "DEEPCOVID_EDGE_CACHE"
_NOT_REGULAR = "not a regular file (write it to a file first)"
_LOCK_SECONDS = 1800.0
"""Longest wait for another process: a large network takes minutes to build."""
_LOCK_LOOK_SECONDS = 0.1
_NO_TEXT = re.compile(rb"\0|\A\x08")
"""Every image has zeros, and an ONNX file begins with a backspace. No text has either."""
_LOOKED_AT = 4096
Self = TypeVar("Self", bound="Closing")


class Closing:
    """Something with `close`, which `with` calls at the end of its block."""

    def close(self) -> None:
        """Free what is held."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def cache_folder() -> Path:
    """Where engines and timing caches are kept: `$DEEPCOVID_EDGE_CACHE`, or in the user's cache.

    Raises:
        OutputError: The variable is not set, and the user has no home folder.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user without HOME and without an entry in passwd
        raise OutputError(
            f"cache: this user has no home folder: set {CACHE_VARIABLE} to a folder"
        ) from error
    return Path(base) / "deepcovid-edge"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as a hexadecimal string.

    Raises:
        NotThereError: The file cannot be opened.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file.

    Raises:
        OSError: It cannot be opened, or is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK a pipe is waited for already while it is opened (open(2)).
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: Path) -> bytes:
    """The content of a regular file; raises as `open_regular` does."""
    with open_regular(path) as stream:
        return stream.read()


def read_named(path: Path) -> bytes:
    """The content of a regular file that a user or a record names.

    Raises:
        NotThereError: The file cannot be opened.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error


def write_atomically(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file under a temporary name, then give it its own.

    Args:
        path: The file; one that is there is replaced.
        data: Its content.
        sync: Wait until the disk has the content before the file gets its name.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    own = _unfinished(path)
    try:
        _write(own, os.O_CREAT | os.O_TRUNC, data, sync=sync)
        os.replace(own, path)  # noqa: PTH105 - a Path's costs more than the call
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(own)  # noqa: PTH108
        raise _not_written(path, error) from error


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed in `write_atomically` left; under the file's lock."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            left.unlink()


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


def check_replaced(path: Path) -> None:
    """Refuse to write text over a file that is none, such as an image or a model.

    Raises:
        OutputError: The file is there and holds what no text holds.
    """
    with contextlib.suppress(OSError), open_regular(path) as stream:
        if _NO_TEXT.search(stream.read(_LOOKED_AT)):
            raise OutputError(f"{path}: is no text file, and would be lost: choose another name")


def check_not_input(output: Path, source: Path) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: Both are one file.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"{output}: is what is read, and would be lost: choose another name")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; its folder is created if needed.

    A pipe or a device is written as it is.

    Raises:
        OutputError: The file cannot be written, one that is no text is there, or a name in it is
            not UTF-8.
    """
    check_replaced(path)
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{path}: an image's name is not UTF-8: rename it ({error})") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():
            write_atomically(path.resolve(), data)
        else:
            path.write_bytes(data)
    except OSError as error:
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
def locked(
    folder: Path,
    name: str,
    waiting: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Iterator[bool]:
    """Hold the lock of a name in a folder, waiting for another process that holds it.

    Args:
        folder: Where the named file lies, or will.
        name: Name of the file.
        waiting: Called once with a sentence on who is waited for, if anyone is.
        stop: Ends the wait when it is set.

    Yields:
        Whether the lock is held; it is not where the wait was ended.

    Raises:
        OutputError: The other process still holds the lock after `_LOCK_SECONDS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.lock"
    with path.open("a+") as stream:
        if not _takes_lock(stream):
            holder = f"process {_holder(path) or 'unknown'}, which holds {path}"
            waiting(f"waiting up to {_LOCK_SECONDS / 60:g} min for {holder}")
            if not _wait_for_lock(stream, holder, stop or threading.Event()):
                yield False
                return
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield True


@contextlib.contextmanager
def locked_at_once(path: Path, message: str) -> Iterator[None]:
    """Hold the lock of a file, or refuse: another process is not waited for.

    Args:
        path: The file, which is made; its folder must be there.
        message: What the error says where another process holds the lock.

    Raises:
        OutputError: Another process holds it, or the file cannot be written.
    """
    try:
        stream = path.open("a")
    except OSError as error:
        raise _not_written(path, error) from error
    with stream:
        if not _takes_lock(stream):
            raise OutputError(message)
        yield


def _takes_lock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # other errors: a file system without locks; renames keep files whole
        return not isinstance(error, BlockingIOError)
    return True


def _wait_for_lock(stream: IO[str], holder: str, stop: threading.Event) -> bool:
    ends = time.monotonic() + _LOCK_SECONDS
    while not _takes_lock(stream):
        if time.monotonic() > ends:
            raise OutputError(f"{holder}, did not end in {_LOCK_SECONDS:g} s: end it, or try later")
        if stop.wait(_LOCK_LOOK_SECONDS):
            return False
    return True


def _holder(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace").strip()


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, from the inside out."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders from the inside out, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_writable(path: Path) -> None:
    """Refuse, before a long measurement, a file that `write_text` could not write.

    Its folder is created if needed. A pipe or a device is not tried.

    Raises:
        OutputError: The file cannot be written, or one that is no text is there.
    """
    check_replaced(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_file() or not path.exists():
            own = Path(_unfinished(path.resolve()))
            own.touch()
            own.unlink()
    except OSError as error:
        raise _not_written(path, error) from error


def _unfinished(path: Path) -> str:
    """The name that a file has until it is whole."""
    return f"{path}.{os.getpid()}-{threading.get_native_id()}.part"
