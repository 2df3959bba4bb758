"""Thousands of images, each over its own association: memory, file descriptors, images a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.clinic import Clinic
from campaigns.images import DrawnImages
from deepcovid_edge.cart.store.ledger import Ledger

_SIDE = 418
"""Rows and columns: 350 kB of two bytes a pixel."""
ROLES = ("receive", "work", "assessor")
_LOOK_SECONDS = 1.0
_WARM_UP = 0.25
"""Share of the images at the beginning that no slope is fitted to."""
_SETTLE_SECONDS = 3600.0
_LOOKS_KEPT = 60
_PAGE_KIB = 4


@dataclass(frozen=True)
class Look:
    """The cart at one moment.

    Attributes:
        received: Images that were acknowledged.
        settled: Images that were assessed.
        rss_kib: Memory of each role, KiB.
        files: Open file descriptors of each role.
    """

    received: int
    settled: int
    rss_kib: dict[str, int]
    files: dict[str, int]


def soak(folder: Path, images: int, seed: int) -> dict[str, Any]:
    """Send images as fast as they are taken, and assess them all; the figures."""
    drawn = DrawnImages(seed, rows=_SIDE, columns=_SIDE)
    with Clinic(folder, seed, images=drawn, pause=0.0) as clinic:
        clinic.console.send(images, most_a_line=1)
        pids = {role: clinic.cart.pid(role) or 0 for role in ROLES}
        looks = [look(clinic, pids)]
        started = time.monotonic()
        clinic.console.start()
        while clinic.console.is_alive():
            time.sleep(_LOOK_SECONDS)
            looks.append(look(clinic, pids))
        sending = time.monotonic() - started
        while clinic.left() and time.monotonic() - started < _SETTLE_SECONDS:
            time.sleep(_LOOK_SECONDS)
            looks.append(look(clinic, pids))
        whole = time.monotonic() - started
        counts = clinic.audited(0)
    return {
        "images": images,
        "bytes": 2 * _SIDE * _SIDE,
        "received_a_second": images / sending,
        "delivered_a_second": images / whole,
        "slope_kb_an_image": {role: slope_kb(looks, role) for role in ROLES},
        "rss_mib": {
            role: {"first": _mib(looks[0], role), "last": _mib(looks[-1], role)} for role in ROLES
        },
        "files": {
            role: {"first": looks[0].files[role], "last": looks[-1].files[role]} for role in ROLES
        },
        "restarted": [role for role in ROLES if looks[-1].rss_kib[role] == 0],
        "looks": [
            [one.received, one.settled, *one.rss_kib.values()]
            for one in looks[:: max(1, len(looks) // _LOOKS_KEPT)]
        ],
        "seed": seed,
        **{name: getattr(counts, name) for name in ("lost", "assessed_twice", "other_bytes")},
        "is_kept": counts.is_kept,
    }


def _mib(look: Look, role: str) -> float:
    return round(look.rss_kib[role] / 1024, 1)


def look(clinic: Clinic, pids: dict[str, int]) -> Look:
    """Look at a cart.

    Args:
        clinic: Of the cart.
        pids: Its processes by role.
    """
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        row = ledger.row(
            "SELECT count(*) AS n FROM image WHERE state IN ('assessed', 'not_assessed')"
        )
    return Look(
        len(clinic.console.acknowledged),
        int(row["n"]) if row else 0,
        {role: _rss_kib(pid) for role, pid in pids.items()},
        {role: _files(pid) for role, pid in pids.items()},
    )


def _rss_kib(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KIB
    except OSError:
        return 0


def _files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def slope_kb(looks: Sequence[Look], role: str) -> float:
    """By how much memory grows with each image, kB: median of all slopes between looks (Theil-Sen).

    Args:
        looks: The looks.
        role: A role; the receiver's images are those received, the others' those assessed.
    """
    images = [one.received if role == "receive" else one.settled for one in looks]
    first = _WARM_UP * images[-1]
    later = [
        (count, one.rss_kib[role])
        for count, one in zip(images, looks, strict=True)
        if count >= first
    ]
    every = max(1, len(later) // 200)
    places = np.array(later[::every], dtype=float)
    slopes = [
        (after[1] - before[1]) / (after[0] - before[0])
        for at, before in enumerate(places)
        for after in places[at + 1 :]
        if after[0] > before[0]
    ]
    return round(float(statistics.median(slopes)), 3) if slopes else 0.0
