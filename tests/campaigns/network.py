"""Connections that are cut, reset, half closed, stalled or slow, before the cart or behind it.

Each fault begins after a random number of bytes, in one of the two directions. After it, `cart
drain` has the cart try at once: otherwise each fault would cost the waits of the outbox.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Literal

from cart_peers import wait_until
from tcp_proxy import Fault, TcpProxy

from campaigns.audit import Counts
from campaigns.clinic import Clinic

Kind = Literal["cut", "reset", "half-close", "stall", "delay"]
KINDS: tuple[Kind, ...] = ("cut", "reset", "half-close", "stall", "delay")
_MOST_BYTES = {True: 150_000, False: 600}
"""Whether it concerns what the client sends -> most bytes before it: a film, or its answers."""
_LONGEST = 2.0
_SLOW_SECONDS = 0.02
_COMES_SECONDS = 120.0


def network(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign."""
    draw = random.Random(seed)
    done: Counter[str] = Counter()
    clinic = Clinic(folder, seed, pause=0.2)
    with TcpProxy(clinic.pacs.port) as behind:
        clinic.pacs_port = behind.port
        with clinic, TcpProxy(clinic.cart.port) as before:
            clinic.console.port = before.port
            clinic.console.start()
            for cycle in range(cycles):
                proxy, side = ((before, "in"), (behind, "out"))[cycle % 2]
                fault = _fault(draw, KINDS[cycle // 2 % len(KINDS)])
                _have(proxy, fault)
                time.sleep(draw.uniform(0.0, _LONGEST))
                done[f"{side}: {fault.kind}"] += 1
                clinic.command_line("drain")
            return clinic.audited(cycles, faults=dict(done))


def _fault(draw: random.Random, kind: Kind) -> Fault:
    to_server = draw.random() < 0.5
    after = draw.randrange(_MOST_BYTES[to_server])
    return Fault(kind, after=after, to_server=to_server, seconds=_SLOW_SECONDS)


def _have(proxy: TcpProxy, fault: Fault) -> None:
    """Have the next connection suffer a fault."""
    connections = proxy.connections
    proxy.fault = fault
    wait_until(lambda: proxy.connections > connections, _COMES_SECONDS, what="the next connection")
    proxy.fault = None
