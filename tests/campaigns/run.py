"""Run campaigns and measurements of the cart and of the server, and store their counts.

    PYTHONPATH=.:tests python -m campaigns.run kill power --cycles 200 --store

Without a name all of them run. With `--store` the counts go to benchmarks/results/cart/ or serve/.
The exit code is 1 where a promise was broken, or where a cart without fsync lost nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import store
from campaigns.audit import Counts
from campaigns.clock import clock, why_no_clock
from campaigns.destination import destination
from campaigns.disks import why_no_disks
from campaigns.full import full
from campaigns.kill import kill
from campaigns.latency import latency
from campaigns.model_switch import model_switch
from campaigns.network import network
from campaigns.page_cost import page_cost
from campaigns.power import power, power_without_fsync
from campaigns.services import services, why_no_services
from campaigns.serving import equality, requests, why_no_images
from campaigns.serving import throughput as serve_throughput
from campaigns.soak import soak
from campaigns.throughput import throughput
from campaigns.week import week

Campaign = Callable[[Path, int, int], Counts]
Measurement = Callable[[Path, int, int], dict[str, Any]]

CAMPAIGNS: dict[str, Campaign] = {
    "kill": kill,
    "power": power,
    "power-without-fsync": power_without_fsync,
    "destination": destination,
    "network": network,
    "disk-full": full,
    "clock": clock,
    "services": services,
    "model-switch": model_switch,
}
MEASUREMENTS: dict[str, tuple[Measurement, int]] = {
    "latency": (latency, 42),
    "receiver-throughput": (throughput, 5),
    "soak": (soak, 10_000),
    "page": (page_cost, 20),
    "week": (week, 5_000),
    "serve-equality": (equality, 400),
    "serve-throughput": (serve_throughput, 5),
    "serve-requests": (requests, 10_000),
}
"""With the usual number of images, of rounds, or of requests."""
SERVE = "serve-"
"""What begins so is of the server, and stored apart."""
NEEDS: dict[str, Callable[[], str]] = {
    "power": why_no_disks,
    "power-without-fsync": why_no_disks,
    "disk-full": why_no_disks,
    "clock": why_no_clock,
    "services": why_no_services,
    "week": why_no_disks,
    "serve-equality": why_no_images,
    "serve-throughput": why_no_images,
    "serve-requests": why_no_images,
}
"""What says why a campaign or a measurement cannot run here, or nothing."""
MUST_LOSE = ("power-without-fsync",)


def run(name: str, cycles: int, seed: int, *, is_stored: bool) -> bool:
    """Run a campaign; whether it ended as it must."""
    if why := NEEDS.get(name, str)():
        print(f"{name}: not run: {why}", flush=True)
        return True
    with _folder() as folder:
        counts = CAMPAIGNS[name](Path(folder), cycles, seed)
    is_right = bool(counts.lost) if name in MUST_LOSE else counts.is_kept
    print(
        f"{name}: {counts.cycles} cycles in {counts.seconds:.0f} s: {counts.acknowledged} images"
        f" acknowledged, {counts.lost} lost, {counts.assessed_twice} assessed twice,"
        f" {counts.other_bytes} objects with other bytes, {counts.quarantined} quarantined,"
        f" {counts.tracebacks} tracebacks; {counts.detail}",
        flush=True,
    )
    if is_stored:
        store(f"campaign-{name}", {"campaign": name, **counts.as_dict()}, "cart")
    return is_right


def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted afterwards, as far as it can be: an hour's figures count more."""
    return tempfile.TemporaryDirectory(prefix="cart-", ignore_cleanup_errors=True)


def measure(name: str, size: int | None, seed: int, *, is_stored: bool) -> bool:
    """Run a measurement; whether what it sent was kept."""
    if why := NEEDS.get(name, str)():
        print(f"{name}: not run: {why}", flush=True)
        return True
    figures_of, usual = MEASUREMENTS[name]
    with _folder() as folder:
        figures = figures_of(Path(folder), size or usual, seed)
    for key, value in figures.items():
        if key != "looks":
            print(f"{name}: {key}: {_short(value)}", flush=True)
    if is_stored:
        room, _, rest = name.partition("-") if name.startswith(SERVE) else ("cart", "", name)
        store(rest, figures, room)
    return bool(figures.get("is_kept", True))


def _short(value: Any) -> Any:
    """Figures without their samples."""
    if not isinstance(value, dict):
        return value
    return {key: _short(one) for key, one in value.items() if key != "samples"}


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*CAMPAIGNS, *MEASUREMENTS]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)} [default: all]")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--size", type=int, help="images or rounds of a measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", action="store_true", help="store the counts")
    options = parser.parse_args()
    if unknown := {*options.names} - {*names}:
        parser.error(f"got {sorted(unknown)[0]}, expected one of {', '.join(names)}")
    # A run that is stopped ends its processes, and unmounts its disks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    right = [
        run(name, options.cycles, options.seed, is_stored=options.store)
        if name in CAMPAIGNS
        else measure(name, options.size, options.seed, is_stored=options.store)
        for name in options.names or names
    ]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
