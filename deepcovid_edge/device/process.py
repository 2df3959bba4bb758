"""Set a process up for classifying images in parallel, one thread per core, and limit it."""

from __future__ import annotations

import ctypes
import resource
import warnings

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc, malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_KEPT_BLOCK = 32 << 20
"""The largest M_MMAP_THRESHOLD that glibc takes: half of a thread's heap of 64 MiB."""
_KEPT_IN_ALL = 1 << 30


def set_up() -> None:
    """Call once in a program that classifies images, before its threads start."""
    import cv2

    cv2.setNumThreads(1)  # images are decoded in parallel; threads inside one would only wait
    # Broken files get a reason instead.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
    keep_freed_memory()


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
