"""A PACS that fails in every way that it can: frozen, killed, rejecting, full, refusing.

After each fault it is well again, and `cart drain` (where it refused for good: `cart resend`) has
the cart try at once: otherwise each fault would cost the waits of the outbox.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from cart_peers import wait_until

from campaigns.audit import Counts
from campaigns.clinic import Clinic
from campaigns.pacs import REJECT, REJECT_FOR_GOOD, SUCCESS

_SHORTEST, _LONGEST = 0.5, 4.0
FAULTS = ("frozen", "killed", REJECT, REJECT_FOR_GOOD, "0xA700", "0x0122", "0xC000")
_FOR_GOOD = ("0x0122", "0xC000")
_COMES_SECONDS = 120.0


def destination(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign: the faults in turn, each for a random time."""
    draw = random.Random(seed)
    done: Counter[str] = Counter()
    with Clinic(folder, seed, pause=0.3) as clinic:
        clinic.console.start()
        while done.total() < cycles:
            fault = FAULTS[done.total() % len(FAULTS)]
            _fail(clinic, fault, draw.uniform(_SHORTEST, _LONGEST))
            done[fault] += 1
            clinic.command_line("resend" if fault in _FOR_GOOD else "drain")
        clinic.console.finish()
        clinic.command_line("resend")
        clinic.command_line("drain")
        return clinic.audited(cycles, faults=dict(done))


def _fail(clinic: Clinic, fault: str, seconds: float) -> None:
    if fault == "frozen":
        clinic.pacs.freeze()
        time.sleep(seconds)
        clinic.pacs.thaw()
    elif fault == "killed":
        clinic.pacs.kill()
        time.sleep(seconds)
        clinic.restart_pacs()
    else:
        before = clinic.pacs.refusals()
        clinic.pacs.answer(fault)
        wait_until(
            lambda: clinic.pacs.refusals() > before, _COMES_SECONDS, what="an object to refuse"
        )
        time.sleep(seconds)
        clinic.pacs.answer(SUCCESS)
