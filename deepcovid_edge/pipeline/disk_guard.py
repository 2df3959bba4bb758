"""Room on the disk: a run stops assessing images while it can still write its results."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

LEAST_FREE_MIB = 64
"""Room for 50,000 records without a result, or for the heat maps of all images under way."""
_SECONDS = 0.05
"""The disk is asked at most this often: far from enough for its last free MiB to be written."""
_MIB = 1 << 20


class DiskGuard:
    """Ends assessment from the moment when a disk that results go to is nearly full.

    It stays so when some room comes back: no later image is assessed, so that `--resume` goes on
    where the room ended.

    Args:
        folders: Where records and heat maps are written.
        least_mib: The disk is full with less free than this, MiB; 0 for never.
    """

    def __init__(self, folders: Iterable[Path], least_mib: int = LEAST_FREE_MIB) -> None:
        self._folders = [*dict.fromkeys(folders)]
        self._least = least_mib * _MIB
        self._looks_again = 0.0
        self.full: str | None = None

    def check(self) -> None:
        """Call before an image is read; from several threads.

        Raises:
            NotAssessedError: There is too little room.
        """
        now = time.monotonic()
        if now >= self._looks_again:
            self.full = self.full or self._full()  # before others may pass: rather asked twice
            self._looks_again = now + _SECONDS
        if self.full:
            raise NotAssessedError(Reason.DISK, self.full)

    def _full(self) -> str | None:
        for folder in self._folders if self._least else ():
            try:
                found = os.statvfs(folder)
            except OSError:  # gone: whoever writes there will say so
                continue
            free = found.f_bavail * found.f_frsize
            if free < self._least:
                least = self._least // _MIB
                return f"{free // _MIB} MiB free in {folder}, at least {least} are needed"
        return None
