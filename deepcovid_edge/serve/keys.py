"""API keys: who may call. The file holds a name and the SHA-256 of a key on each line.

A key is 256 random bits, so a plain hash keeps it: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deepcovid_edge.errors import NotThereError, OutputError, UsageError
from deepcovid_edge.files import locked, remove_unfinished

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern})\s+([0-9a-f]{{64}})")
_LOOK_SECONDS = 1.0


def add_key(path: Path, name: str) -> str:
    """Make a key for a caller and add its hash to a file; an earlier key of that name stays.

    Args:
        path: The file. A new one is for its owner alone; one that is there keeps owner, group and
            mode, so that whoever could read it still can.
        name: Of the caller, for logs.

    Returns:
        The key. It is nowhere else.

    Raises:
        UsageError: The name has other letters, or a key already.
        OutputError: The file cannot be written.
        NotThereError: The file is not one of keys.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"add_key: got {name!r}, expected small letters, digits, - . and _")
    key = secrets.token_urlsafe(32)
    try:
        with locked(path.parent, path.name):
            lines = _lines(path) if path.exists() else []
            if name in _named(path, lines).values():
                raise UsageError(
                    f"add_key: {name} has a key in {path}: delete its line first, or choose "
                    "another name"
                )
            remove_unfinished(path)
            _replace(path, "".join(f"{line}\n" for line in (*lines, f"{name} {_hashed(key)}")))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return key


def _replace(path: Path, text: str) -> None:
    """Write the file under a temporary name, with the rights of the one that is there."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    made = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            if path.exists():
                status = path.stat()
                os.fchown(handle, status.st_uid, status.st_gid)
                os.fchmod(handle, stat.S_IMODE(status.st_mode))
            stream.write(text)
            stream.flush()
            os.fsync(handle)
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def read_keys(path: Path) -> dict[str, str]:
    """Hash of a key -> name of its caller. Empty lines and those that begin with # are comments.

    Raises:
        NotThereError: The file cannot be read, a line is something else, or there is no key.
    """
    found = _named(path, _lines(path))
    if not found:
        raise NotThereError(f"keys: {path}: holds no key: make one with --add-key NAME")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise NotThereError(f"keys: {path}: cannot be read: {error}") from error


def _named(path: Path, lines: list[str]) -> dict[str, str]:
    """Hash of a key -> name of its caller, of the lines of a file."""
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise NotThereError(f"keys: {path}, line {number}: expected a name and a SHA-256")
        found[match[2]] = match[1]
    return found


class Callers:
    """Who calls, by the key of a request. A file that changes is read again within a second.

    Args:
        path: The file; None lets everybody in.
        clock: Seconds that only grow.

    Raises:
        NotThereError: See `read_keys`.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._keys = read_keys(path) if path else {}
        self._stamp, self._looked = self._stamped(), clock()

    @property
    def are_known(self) -> bool:
        """Whether a caller needs a key."""
        return self._path is not None

    def name_of(self, authorization: str) -> str | None:
        """The caller's name, or None for nobody who may call.

        Args:
            authorization: Value of the header: `Bearer KEY`.
        """
        self._look()
        kind, _, key = authorization.partition(" ")
        if kind.lower() != "bearer":
            return None
        # The hash is looked up: its time tells nothing of a key that is not guessed anyway.
        return self._keys.get(_hashed(key.strip()))

    def _look(self) -> None:
        now = self._clock()
        if self._path is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        try:
            self._keys, self._stamp = read_keys(self._path), stamp
        except NotThereError:  # a damaged file admits nobody until it is corrected
            self._keys, self._stamp = {}, stamp

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ino, status.st_size) if status else None


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
