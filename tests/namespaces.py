"""What this process may do in namespaces, found by doing it: root in a plain container may not."""

from __future__ import annotations

import functools
import subprocess

import pytest

_SECONDS = 30.0
_MOUNT = "mount -t tmpfs none /tmp"


@functools.cache
def can_unshare(flags: str, command: str = "true") -> bool:
    """Whether a command of the shell succeeds in new namespaces (unshare(1)); tried once."""
    words = ["unshare", flags, "sh", "-c", command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def can_enclose() -> bool:
    """Whether it makes a network namespace with a loopback alone."""
    return can_unshare("-n", "ip link set lo up")


needs_mount = pytest.mark.skipif(
    not can_unshare("-m", _MOUNT), reason="a file system is mounted: needs root with CAP_SYS_ADMIN"
)
"""For a file system that other processes see too."""


def skip_without_small_disk() -> None:
    """Skip a test that mounts a small disk in namespaces of its own (unshare -rm)."""
    if not can_unshare("-rm", _MOUNT):
        pytest.skip("no namespace to mount a small disk in (unshare -rm)")
