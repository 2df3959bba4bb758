"""Faults on Ray: an actor, the driver and a node are killed, each in a run of its own.

    python -m benchmarks.archive.faults --data DATA --images 1000 actor driver node address

Each run ends with one record an image, or with a clear error after which the same command ends so.
The nodes are two `ray start` on loopback; `address` joins the first by ray://.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ray_cluster import Node, actors

from benchmarks.archive.commands import linked_images
from benchmarks.archive.speed import records_in, records_of_infer
from benchmarks.measure import RUNS_THROUGH, store
from benchmarks.measure.programs import COMMAND

_SECONDS = 900.0


class Screen:
    """A command that runs."""

    def __init__(self, place: Path, on: str, shard: int) -> None:
        self.results = place / "results"
        words = ["screen", place / "m.parquet", "-o", self.results, "--variant", "fp32"]
        words += ["--shard-size", shard, "--on", on, "--patience", 300]
        self._log = (place / "screen.log").open("ab")
        self.process = subprocess.Popen([*COMMAND, *map(str, words)], stderr=self._log)

    def wait_for(self, shards: int) -> None:
        """Wait until at least this many shards are there."""
        ends = time.monotonic() + _SECONDS
        while len(list(self.results.glob("shard-*.parquet"))) < shards:
            if time.monotonic() > ends or self.process.poll() is not None:
                raise RuntimeError(Path(self._log.name).read_text("utf-8", "replace")[-2000:])
            time.sleep(0.05)

    def ended(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                self.process.kill()
            self._log.close()


def actor(place: Path, shard: int) -> dict[str, Any]:
    """SIGKILL for an actor."""
    run = Screen(place, "ray", shard)
    run.wait_for(1)
    for process in actors(run.process.pid):
        os.kill(process, signal.SIGKILL)
    return {"exit_code": run.ended()}


def driver(place: Path, shard: int) -> dict[str, Any]:
    """SIGKILL for the command; the same command again."""
    run = Screen(place, "ray", shard)
    run.wait_for(2)
    run.process.kill()
    first = run.ended()
    there = len(list(run.results.glob("shard-*.parquet")))
    again = Screen(place, "ray", shard)
    return {"exit_code": again.ended(), "first_exit_code": first, "shards_before": there}


def node(place: Path, shard: int) -> dict[str, Any]:
    """SIGKILL for all processes of one of two nodes."""
    with ExitStack() as opened:
        head = Node(place, cpus=2)
        opened.callback(head.close)
        head.wait()
        other = Node(place, head.address, cpus=2)
        opened.callback(other.close)
        other.wait()
        run = Screen(place, head.address, shard)
        run.wait_for(2)
        busy = len(actors(other.process.pid))
        other.kill()
        codes = [run.ended()]
        if codes[0] == 1:  # a clear error; the same command goes on
            codes.append(Screen(place, head.address, shard).ended())
        return {"exit_code": codes[-1], "exit_codes": codes, "actors_on_the_node": busy}


def address(place: Path, shard: int) -> dict[str, Any]:
    """A cluster that is joined by ray://."""
    with ExitStack() as opened:
        head = Node(place, cpus=2)
        opened.callback(head.close)
        head.wait()
        run = Screen(place, f"ray://127.0.0.1:{head.client_port}", shard)
        return {"exit_code": run.ended()}


FAULTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "actor": actor,
    "driver": driver,
    "node": node,
    "address": address,
}


def measured(data: Path, place: Path, images: int, names: list[str]) -> dict[str, Any]:
    """What came of each fault."""
    folder = linked_images(data, images, place)
    output = place / "infer.jsonl"
    command = [*COMMAND, "infer", str(folder), "-o", str(output), "--variant", "fp32"]
    done = subprocess.run(command, check=False)
    if done.returncode not in RUNS_THROUGH:
        raise RuntimeError(f"infer exited with {done.returncode}")
    expected = records_of_infer(output)
    found: dict[str, Any] = {}
    for name in names:
        own = place / name
        own.mkdir()
        subprocess.run([*COMMAND, "manifest", folder, "-o", own / "m.parquet"], check=True)
        started = time.monotonic()
        counts = FAULTS[name](own, max(1, images // 20))
        records = records_in(own / "results")
        found[name] = {
            **counts,
            "seconds": round(time.monotonic() - started, 1),
            "images": images,
            "records": len(records),
            "differ": sum(records.get(path) != one for path, one in expected.items()),
            "last_line": _last_line(own / "screen.log"),
        }
        print(name, json.dumps(found[name]), flush=True)
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(description="Faults against `screen --on ray`.")
    parser.add_argument("names", nargs="*", default=[*FAULTS])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--store", action="store_true", help="store the counts")
    options = parser.parse_args()
    # Nodes and commands need the token of their cluster.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="archive-") as place:
        found = measured(options.data, Path(place), options.images, options.names)
    if options.store:
        for name, counts in found.items():
            store(f"fault-{name}", {"fault": name, **counts}, "archive")
    sys.exit(any(one["differ"] or one["records"] != one["images"] for one in found.values()))


if __name__ == "__main__":
    main()
