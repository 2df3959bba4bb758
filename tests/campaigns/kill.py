"""SIGKILL at random moments: the receiver, the worker, the judge, or the whole cart."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from cart_peers import wait_until

from campaigns.audit import Counts
from campaigns.clinic import READY_SECONDS, Clinic, strike

_LONGEST_PAUSE = 2.0
_AT_ONCE = 0.3
"""Share of the kills that do not wait for what the one before has ended."""
_BACK = {"receive": "listening", "work": "judge started", "judge": "judge started"}
"""What the log says when a process is there again."""


def kill(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign.

    Under `cart run` a role that ends twice within a minute waits before its next start. Therefore
    the whole cart is the next victim after one role: a cart that starts anew does not wait.
    """
    draw = random.Random(seed)
    killed: Counter[str] = Counter()
    keys = {"heatmap": "activation"}
    with Clinic(folder, seed, cart_keys=keys, objects=("sr", "sc"), pause=1.0) as clinic:
        clinic.console.start()
        struck: set[str] = set()
        while killed.total() < cycles:
            time.sleep(draw.uniform(0.0, _LONGEST_PAUSE))
            victims = [name for name in ("receive", "work", "judge") if name not in struck]
            victim = draw.choice([*victims, "all"])
            if _hit(clinic, victim, is_patient=draw.random() > _AT_ONCE):
                killed[victim] += 1
                struck = set() if victim == "all" else struck | ({victim} - {"judge"})
        wait_until(lambda: clinic.cart.pid("receive"), READY_SECONDS, what="a receiver")
        return clinic.audited(cycles, killed=dict(killed))


def _hit(clinic: Clinic, victim: str, *, is_patient: bool) -> bool:
    """Kill; whether there was something to kill. Perhaps wait until it is there again."""
    if victim == "all":
        clinic.end_cart()
        clinic.start()
        if is_patient:
            clinic.cart.wait_ready()
        return True
    said = _BACK[victim]
    before = clinic.cart.times(said)
    if not strike(clinic.cart.pid(victim)):
        return False
    if is_patient:
        wait_until(lambda: clinic.cart.times(said) > before, READY_SECONDS, what=said)
    return True
