"""Signs of life of the roles, in the ledger: whoever reads it sees which of them run.

They are compared by the monotonic clock, which all processes of one start of the machine share: a
step of the time of day ends no role.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import NamedTuple

from deepcovid_edge.cart.store.clock import boot_id
from deepcovid_edge.cart.store.ledger import Ledger

RECEIVER, WORKER = "receive alive", "work alive"
"""Keys of the table `meta`: when a role last said that it runs, a `_Sign` as JSON."""
ALIVE_SECONDS = 60.0
"""Longest time since a role that runs last said so, seconds."""
_BEAT_SECONDS = 5.0


class _Sign(NamedTuple):
    """When a role said that it runs.

    Attributes:
        at: Seconds since 1970.
        boot: The start of the machine, as the kernel calls it.
        monotonic: Seconds of the monotonic clock.
    """

    at: float
    boot: str
    monotonic: float

    @property
    def is_now(self) -> bool:
        """Whether that was within a minute."""
        passed = time.monotonic() - self.monotonic
        return self.boot == boot_id() and -1.0 < passed < ALIVE_SECONDS


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
        sign = _Sign(round(time.time()), boot_id(), round(now, 1))
        self._ledger.set_meta(self._key, json.dumps(sign))
        return True


def runs(ledger: Ledger, key: str) -> bool:
    """Whether a role has said so within a minute."""
    sign = _last_sign(ledger, key)
    return sign is not None and sign.is_now


def silent_since(ledger: Ledger) -> Mapping[str, str]:
    """The roles that do not run, and since when, UTC; nothing before the cart ran first."""
    told = {key: _last_sign(ledger, key) for key in (RECEIVER, WORKER)}
    last = max((sign.at for sign in told.values() if sign), default=None)
    if last is None:
        return {}
    return {
        key: _utc(sign.at if sign else last)
        for key, sign in told.items()
        if not (sign and sign.is_now)
    }


def _last_sign(ledger: Ledger, key: str) -> _Sign | None:
    said = ledger.get_meta(key)
    return None if said is None else _Sign(*json.loads(said))


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
