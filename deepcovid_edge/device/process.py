"""Set a process up for classifying images in parallel, one thread per core, and limit it."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc, malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_KEPT_BLOCK = 32 << 20
"""The largest M_MMAP_THRESHOLD that glibc takes: half of a thread's heap of 64 MiB."""
_KEPT_IN_ALL = 1 << 30
_SILENT = 0
"""OpenCV, utils/logger.defines.hpp: LOG_LEVEL_SILENT."""
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def set_up() -> None:
    """Call once in a program that classifies images, before its threads start."""
    import cv2

    cv2.setNumThreads(1)  # images are decoded in parallel; threads inside one would only wait
    # Broken files get a reason instead. OpenCV 4 has it in another place than OpenCV 5.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(_SILENT)
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
    keep_freed_memory()


def cores() -> int:
    """Cores that this process can use: those that it may run on, or fewer if its time is limited.

    A limit, such as that of `docker run --cpus 2`, holds for a group of processes and all groups
    within it (Linux, admin-guide/cgroup-v2, `cpu.max`; scheduler/sched-bwc for version 1).
    """
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _limits())])


def _limits() -> Iterator[float]:
    """Cores by the limits of this process's groups and of those around them, each above 0."""
    try:
        lines = _OWN_CGROUPS.read_text("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    for line in filter(None, lines):
        _, kinds, path = line.split(":", 2)  # version 2 names no kind
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = _CGROUPS / "cpu" if kinds else _CGROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, or no limit: `max`
                quota, period = _quota(folder, is_first_version=bool(kinds))
                if quota > 0 and period > 0:
                    yield quota / period
            if folder == root:
                break


def _quota(folder: Path, *, is_first_version: bool) -> tuple[int, int]:
    """Microseconds of processor time in each period, -1 without a limit; and of the period."""
    if is_first_version:
        quota, period = ((folder / f"cpu.cfs_{it}_us").read_text() for it in ("quota", "period"))
    else:
        quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)


def write_no_core_file() -> None:
    """Have a crash write no core file: it would hold the pixels of a patient's image."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_address_space(size: int) -> None:
    """Limit the memory of a process. Drivers of GPUs reserve more than there is.

    Args:
        size: Bytes of address space; fewer where a lower limit is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    lower = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([size, *lower]), hard))


def keep_freed_memory() -> bool:
    """Keep freed memory for the next image instead of returning it to the system.

    By default glibc returns blocks of an image's size when they are freed: hundreds of pages are
    then unmapped and mapped again for each image, which may take as long as its decoding. Blocks
    above 32 MiB, of very large images, are still returned. See mallopt(3).

    Returns:
        Whether the C library accepted the settings; only glibc has them.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(
        set_option(_MMAP_THRESHOLD, _KEPT_BLOCK) and set_option(_TRIM_THRESHOLD, _KEPT_IN_ALL)
    )
