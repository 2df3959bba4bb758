"""Signs of life of the roles, in the ledger: whoever reads it sees which of them run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone

from deepcovid_edge.cart.store.ledger import Ledger

RECEIVER, WORKER = "receive alive", "work alive"
"""Keys of the table `meta`: when a role last said that it runs, seconds since 1970."""
ALIVE_SECONDS = 60.0
"""Longest time since a role that runs last said so, seconds."""
_BEAT_SECONDS = 5.0


class Heartbeat:
    """Says that a role runs.

    Args:
        ledger: The ledger.
        key: `RECEIVER` or `WORKER`.
    """

    def __init__(self, ledger: Ledger, key: str) -> None:
        self._ledger, self._key = ledger, key
        self._next = 0.0

    def beat(self) -> bool:
        """Say so, at most every five seconds; whether it was said now.

        Raises:
            OutputError: The ledger cannot be written; it is said in five seconds.
        """
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _BEAT_SECONDS
        self._ledger.set_meta(self._key, f"{time.time():.0f}")
        return True


def runs(ledger: Ledger, key: str) -> bool:
    """Whether a role has said so within a minute."""
    said = ledger.get_meta(key)
    return said is not None and _is_now(float(said))


def silent_since(ledger: Ledger) -> Mapping[str, str]:
    """The roles that do not run, and since when, UTC; nothing before the cart ran first."""
    told = {key: ledger.get_meta(key) for key in (RECEIVER, WORKER)}
    last = max((float(at) for at in told.values() if at), default=None)
    if last is None:
        return {}
    return {
        key: _utc(float(at) if at else last)
        for key, at in told.items()
        if not (at and _is_now(float(at)))
    }


def _is_now(at: float) -> bool:
    return abs(time.time() - at) < ALIVE_SECONDS


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
