"""A small disk that fills: films are refused, what was acknowledged is judged and delivered.

Every other time it is filled to the last byte at a random moment, so that results and the ledger
have no room either; else to just below the floor, as films fill it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from pathlib import Path

from cart_peers import wait_until

from campaigns.audit import Counts
from campaigns.clinic import Clinic
from campaigns.disks import memory_disk

_MIB = 1 << 20
_DISK_MIB, _FLOOR_MIB, _BALLAST_MIB = 50, 6, 2
_LONGEST = 2.0
_FULL_SECONDS = 2.0
_REFUSED = "0xA700"
_NOTICE_SECONDS = 60.0


def full(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign."""
    draw = random.Random(seed)
    keys = {"floor_mib": _FLOOR_MIB, "ballast_mib": _BALLAST_MIB}
    alerts = 0
    with (
        memory_disk(folder / "disk", _DISK_MIB) as disk,
        Clinic(folder, seed, cart_keys=keys, spool=disk / "spool", pause=0.5) as clinic,
    ):
        clinic.console.start()
        for cycle in range(cycles):
            time.sleep(draw.uniform(0.0, _LONGEST))
            is_brimful = cycle % 2 == 1
            left = 0 if is_brimful else draw.randrange(3 * _MIB, _FLOOR_MIB * _MIB)
            _fill(disk / "other", left)
            alerts += _refuses(clinic)
            if not is_brimful:  # what came before is judged and delivered meanwhile
                assert clinic.settle()
            time.sleep(draw.uniform(0.0, _FULL_SECONDS))
            (disk / "other").unlink()
            _takes(clinic)
        return clinic.audited(cycles, alerts=alerts)


def _fill(place: Path, left: int) -> None:
    """Leave so many bytes free, or none."""
    with place.open("wb") as stream, contextlib.suppress(OSError):
        if left:
            size = shutil.disk_usage(place.parent).free - left
            os.posix_fallocate(stream.fileno(), 0, max(1, size))
        while not left:  # the cart writes at the same time
            os.write(stream.fileno(), bytes(4096))


def _refuses(clinic: Clinic) -> bool:
    """Wait until a film is refused; whether the cart then tells a person."""
    before = clinic.console.answers[_REFUSED]
    wait_until(lambda: clinic.console.answers[_REFUSED] > before, _NOTICE_SECONDS, what="a refusal")
    told = clinic.command_line("status", "--json")
    found = [one["code"] for one in json.loads(told.stdout)["alerts"]] if told.stdout else []
    return "disk_floor" in found


def _takes(clinic: Clinic) -> None:
    """Wait until films are taken again."""
    before = len(clinic.console.acknowledged)
    wait_until(
        lambda: len(clinic.console.acknowledged) > before, _NOTICE_SECONDS, what="room for a film"
    )
