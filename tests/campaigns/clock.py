"""A clock that jumps, by libfaketime: years back, a day ahead, also while the outbox waits.

The monotonic clock is left as it is: no setting of a clock moves that one.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import cache
from pathlib import Path

from campaigns.audit import Counts
from campaigns.clinic import Clinic, customised

JUMPS = ("-20y", "+1d", "+0", "-20y while the outbox waits", "+1d while the outbox waits")
_LIBRARIES = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/lib").glob("faketime/libfaketimeMT.so.1"),
)
_SLEEP = '''"""libfaketime 0.9.10 breaks sleeping until an absolute time, as time.sleep does."""

import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
'''
_WORKS_SECONDS = 3.0
_SILENT_SECONDS = 4.0


@cache
def why_no_clock() -> str:
    """Why no clock can be set here; empty where it can."""
    return "" if _LIBRARIES else "libfaketime is not installed: apt-get install faketime"


def clock(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign: the jumps in turn; every other cart starts anew under its clock."""
    draw = random.Random(seed)
    done: Counter[str] = Counter()
    setting = folder / "clock"
    setting.write_text("+0\n")
    command = (
        *customised(folder, _SLEEP),
        f"LD_PRELOAD={_LIBRARIES[0]}",
        f"FAKETIME_TIMESTAMP_FILE={setting}",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_CACHE_DURATION=1",
    )
    with Clinic(folder, seed, pause=0.3, command=command) as clinic:
        clinic.console.start()
        for cycle in range(cycles):
            jump = JUMPS[cycle % len(JUMPS)]
            offset, _, waits = jump.partition(" ")
            if waits:
                clinic.pacs.kill()
                time.sleep(draw.uniform(0.0, _SILENT_SECONDS))
            setting.write_text(f"{offset}\n")
            if draw.random() < 0.5:
                clinic.end_cart()
                clinic.start()
                clinic.cart.wait_ready()
            if waits:
                clinic.restart_pacs()
            time.sleep(draw.uniform(0.0, _WORKS_SECONDS))
            done[jump] += 1
        return clinic.audited(cycles, jumps=dict(done))
