"""Network shares: one that does not answer stops no run.

A call into a share whose server is gone may wait for ever, and cannot be ended (nfs(5), `hard`). So
it is made by a thread that is given up in that case. Local disks are called as ever.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

Value = TypeVar("Value")
Progress: TypeAlias = Callable[[], None]
ANSWER_SECONDS = 30.0
"""Longest wait for a share without any progress."""
_REMOTE = re.compile(
    r"nfs4?|cifs|smb3|smbfs|9p|afs|beegfs|ceph|davfs|gfs2?|glusterfs|gpfs|lustre|fuse(\..+)?"
)
"""Types of file systems whose server may be another machine."""
_MOUNTS = Path("/proc/self/mountinfo")
_LOOK_SECONDS = 10.0
_MOST_LINKS = 40


def call(path: Path, function: Callable[[Progress], Value]) -> Value:
    """Call a function that asks the system about a file or a folder, or about what is in it.

    Args:
        path: The file or the folder. A file may be a link into a share, so its folder does not do.
        function: Is given what to call after each part of a long answer.

    Raises:
        TimeoutError: The path is on a network share that has not answered for `ANSWER_SECONDS`.
    """
    _, mount = _located(str(path))
    return _share(mount).call(function) if mount else function(_no_progress)


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; not if its network share does not answer."""
    try:
        return call(path, lambda _: path.is_file())
    except OSError:
        return False


def resolve(folder: Path) -> Path:
    """Where a folder lies, links followed; no share is asked for those within it."""
    place, mount = _located(str(folder))
    return Path(place if mount else os.path.realpath(place))


def _located(folder: str) -> tuple[str, str | None]:
    return _find_mount(folder, int(time.monotonic() / _LOOK_SECONDS))


def _no_progress() -> None: ...


class _Share:
    """A network share, with the calls that it has not answered."""

    def __init__(self) -> None:
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()

    def call(self, function: Callable[[Progress], Value]) -> Value:
        """Call a function; at once an error while earlier calls wait."""
        if not self._has_waiting():
            made = _Call(function)
            made.start()
            if made.is_answered():
                return made.result()  # type: ignore[no-any-return]
            with self._lock:
                self._waiting.append(made)
        raise TimeoutError(errno.ETIMEDOUT, "the network share does not answer")

    def _has_waiting(self) -> bool:
        with self._lock:
            self._waiting = [call for call in self._waiting if call.is_alive()]
            return bool(self._waiting)


class _Call(threading.Thread):
    """A call that may never return."""

    def __init__(self, function: Callable[[Progress], Any]) -> None:
        super().__init__(name="share", daemon=True)  # the program may end before it
        self._function = function
        self._parts = 0
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call."""
        try:
            self._value = self._function(self._progress)
        except BaseException as error:
            self._error = error

    def is_answered(self) -> bool:
        """Wait for the end, as long as there is progress."""
        parts = -1
        while self.is_alive() and parts != self._parts:
            parts = self._parts
            self.join(ANSWER_SECONDS)
        return not self.is_alive()

    def result(self) -> Any:
        """What the call returned or raised."""
        if self._error:
            raise self._error
        return self._value

    def _progress(self) -> None:
        self._parts += 1


@cache
def _share(_mount: str) -> _Share:
    return _Share()


@lru_cache(maxsize=1024)
def _find_mount(folder: str, moment: int) -> tuple[str, str | None]:
    """A folder, and where the share that holds it is mounted or None; asks no share for it."""
    mounts = _remote_mounts(moment)
    place = os.path.abspath(folder)  # noqa: PTH100 - follows no link
    for _ in range(_MOST_LINKS if mounts else 0):
        for step in accumulate(place.split("/"), "{}/{}".format):  # parents of a Path are slower
            if (step or "/") in mounts:
                return place, step or "/"
            if os.path.islink(step):  # noqa: PTH114
                target = Path(step).parent / Path(step).readlink() / Path(place).relative_to(step)
                place = os.path.normpath(target)
                break
        else:
            break
    return place, None


@lru_cache(maxsize=1)
def _remote_mounts(_moment: int) -> frozenset[str]:
    """Mount points of network shares (proc_pid_mountinfo(5))."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return frozenset()
    fields = [line.partition(" - ") for line in lines]
    return frozenset(
        re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        for before, _, after in fields
        if _REMOTE.fullmatch(after.split()[0])
    )
