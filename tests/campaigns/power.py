"""Power cuts at random moments, as the shutdown of the file system that the spool lies on.

The same without fsync must lose films: that shows that the campaign can see a loss.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from cart_peers import wait_until

from campaigns.audit import Counts
from campaigns.clinic import READY_SECONDS, Clinic, customised
from campaigns.disks import LoopDisk

_SHORTEST, _LONGEST = 0.2, 3.0
_MIB, _MIB_A_CYCLE = 256, 80
"""The disk is never full; its file takes what is written alone."""
_BEFORE_READY = 0.3
"""Share of the cuts that come while the cart still starts."""
_WITHOUT_FSYNC = '''"""Nothing is synced: neither files nor, whatever is asked of it, SQLite."""

import os
import sqlite3

os.fsync = os.fdatasync = lambda handle: None
_connect = sqlite3.connect


class Unsynced(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement.upper().startswith("PRAGMA SYNCHRONOUS"):
            statement = "PRAGMA synchronous = OFF"
        return super().execute(statement, *values)


sqlite3.connect = lambda *given, **named: _connect(*given, factory=Unsynced, **named)
'''


def power(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign: as the cart is."""
    return _campaign(folder, cycles, seed, ())


def power_without_fsync(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign with a cart that syncs nothing."""
    return _campaign(folder, cycles, seed, customised(folder, _WITHOUT_FSYNC))


def _campaign(folder: Path, cycles: int, seed: int, command: tuple[str, ...]) -> Counts:
    draw = random.Random(seed)
    keys = {"heatmap": "activation"}
    with (
        LoopDisk(folder, _MIB + cycles * _MIB_A_CYCLE) as disk,
        Clinic(
            folder,
            seed,
            cart_keys=keys,
            objects=("sr", "sc"),
            spool=disk.place / "spool",
            pause=0.5,
            command=command,
        ) as clinic,
    ):
        clinic.console.start()
        early = 0
        for _ in range(cycles):
            is_early = draw.random() < _BEFORE_READY
            early += is_early
            if not is_early:
                clinic.cart.wait_ready()
            time.sleep(draw.uniform(_SHORTEST, _LONGEST))
            disk.cut()
            clinic.end_cart()
            disk.unmount()
            disk.mount()
            clinic.start()
        wait_until(lambda: clinic.cart.times("listening"), READY_SECONDS, what="a cart")
        return clinic.audited(cycles, while_starting=early)
