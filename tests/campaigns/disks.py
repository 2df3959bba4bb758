"""Disks that fail as a campaign says: a file as an ext4 file system, and memory of a fixed size.

The file system's own shutdown call, without a flush of its journal, loses what was not synced, as a
power cut does: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (Linux, fs/ext4/ext4.h).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_COMMIT_SECONDS = 300
"""The journal is written so seldom by itself: what is not synced is lost."""
_INODES = 100_000
_UNMOUNT_SECONDS = 20.0
_GIVEN_UP_SECONDS = 1.0


def _run(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class LoopDisk:
    """An ext4 file system in a file, mounted.

    Args:
        folder: For the file and the place where it is mounted.
        mib: Its size.
    """

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self.place = folder / "disk.ext4", folder / "disk"
        self.place.mkdir(exist_ok=True)
        with self._file.open("wb") as stream:
            stream.truncate(mib << 20)
        _run("mkfs.ext4", "-q", "-N", _INODES, self._file)
        self.mount()

    def mount(self) -> None:
        """Mount it; its journal is played back."""
        _run("mount", "-o", f"loop,commit={_COMMIT_SECONDS}", self._file, self.place)

    def cut(self) -> None:
        """What is not on the disk now is lost, and nothing can be read or written any more."""
        handle = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def unmount(self) -> None:
        """Unmount it, once nobody uses it.

        A mount namespace that was made meanwhile keeps the file system as it is, shut down: from
        then on the disk is a copy of its file.
        """
        _unmount(self.place)
        if self._is_held():
            held, self._file = self._file, self._file.with_suffix(f".{time.monotonic_ns()}.ext4")
            _run("cp", "--sparse=always", held, self._file)
            held.unlink()

    def _is_held(self) -> bool:
        """Whether the kernel has not given up the file's loop device."""
        ends = time.monotonic() + _GIVEN_UP_SECONDS
        while _run("losetup", "--associated", self._file):
            if time.monotonic() > ends:
                return True
            time.sleep(0.05)
        return False

    def __enter__(self) -> LoopDisk:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.unmount()


@contextlib.contextmanager
def memory_disk(place: Path, mib: int) -> Iterator[Path]:
    """A disk of a fixed size in memory (tmpfs)."""
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", place)
    try:
        yield place
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    ends = time.monotonic() + _UNMOUNT_SECONDS
    while True:
        try:
            _run("umount", place)
            return
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)


@cache
def why_no_disks() -> str:
    """Why no disk can be mounted here; empty where it can."""
    if os.geteuid() != 0:
        return "mounting a disk needs root"
    if lacking := [
        name for name in ("mkfs.ext4", "mount", "losetup") if shutil.which(name) is None
    ]:
        return f"{lacking[0]} is not installed"
    try:
        with TemporaryDirectory() as folder, LoopDisk(Path(folder), 64) as disk:
            disk.cut()
    except OSError as error:
        return f"no loop device, or no shutdown of ext4: {error}"
    return ""
