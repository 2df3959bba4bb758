"""The clock that samples are taken with; tests bring one of their own."""

from __future__ import annotations

import time
from typing import Protocol

SECOND = 1_000_000_000
"""Nanoseconds."""
MILLISECOND = 1_000_000


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> int:
        """Nanoseconds since a moment that does not change; never goes back."""

    def wait_until(self, moment: int) -> None:
        """Return at that moment, or at once where it has passed."""


class HostClock:
    """The host's monotonic clock (CLOCK_MONOTONIC on Linux)."""

    def now(self) -> int:
        """See `Clock.now`."""
        return time.perf_counter_ns()

    def wait_until(self, moment: int) -> None:
        """See `Clock.wait_until`; the system wakes a sleeper some 0.1 ms late."""
        while (left := moment - time.perf_counter_ns()) > 0:
            time.sleep(left / SECOND)
