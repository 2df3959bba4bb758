"""Times as the ledger writes them. Nothing is ordered by them: rows are ordered by their number."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path

_BUILT = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""No clock is right that lies before this program was written."""
MOST_AHEAD = timedelta(days=2)
"""So far ahead a time may lie that a clock with another idea of the day wrote."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def now_utc() -> str:
    """The time of the system's clock, UTC, ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def now_seconds() -> float:
    """The time of the system's clock, seconds since 1970."""
    return time.time()


def clock_is_plausible() -> bool:
    """Whether the clock lies after the date this program was written."""
    return datetime.now(timezone.utc) >= _BUILT


def is_plausible(at_utc: str) -> bool:
    """Whether a time of the ledger may be right: of this program's days, and not ahead of now."""
    return _BUILT <= datetime.fromisoformat(at_utc) <= datetime.now(timezone.utc) + MOST_AHEAD


@cache
def boot_id() -> str:
    """What the kernel calls this start of the machine; empty where it does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
