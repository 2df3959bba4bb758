"""Which image each thread of a child is reading, in memory that its parent sees.

A thread that crashes the process, or never returns, leaves the number of its image behind. Writing
it costs some hundred nanoseconds.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

_SLOT = struct.Struct("<qd")
_SLOTS = 512
"""Most threads; any further one shares the last slot."""
_SIZE = _SLOT.size * _SLOTS


@dataclass(frozen=True)
class UnderWay:
    """An image that is being read.

    Attributes:
        number: Its place among the images of the worker.
        seconds: For how long.
    """

    number: int
    seconds: float


class Journal:
    """The memory; the parent makes it, the child opens it by its file descriptor.

    Args:
        handle: Of the parent's memory; None to make one.
    """

    def __init__(self, handle: int | None = None) -> None:
        self.handle = os.memfd_create("deepcovid-edge-journal") if handle is None else handle
        if handle is None:
            os.ftruncate(self.handle, _SIZE)
        self._memory = mmap.mmap(self.handle, _SIZE)
        self._own = threading.local()
        self._next = count()

    @contextmanager
    def reading(self, number: int) -> Iterator[None]:
        """Note that this thread reads an image while the block runs."""
        place = self._place()
        _SLOT.pack_into(self._memory, place, number + 1, time.monotonic())
        try:
            yield
        finally:
            _SLOT.pack_into(self._memory, place, 0, 0.0)

    def under_way(self) -> list[UnderWay]:
        """The images that are being read; after a crash those that were."""
        now = time.monotonic()
        slots = _SLOT.iter_unpack(self._memory[:])
        return [UnderWay(number - 1, now - started) for number, started in slots if number]

    def clear(self) -> None:
        """Forget the images of a child that has ended."""
        self._memory[:] = bytes(_SIZE)

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
        with suppress(OSError):
            os.close(self.handle)

    def _place(self) -> int:
        place: int | None = getattr(self._own, "place", None)
        if place is None:
            place = min(next(self._next), _SLOTS - 1) * _SLOT.size
            self._own.place = place
        return place
