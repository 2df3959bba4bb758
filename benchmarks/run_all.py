"""Speed and equivalence, each part a process of its own, timed: what `make bench` runs.

    python -m benchmarks.run_all --data DATA             all parts, then the tables
    python -m benchmarks.run_all --data DATA --only accuracy --only suite
    python -m benchmarks.run_all --list

A part that fails does not keep the others from running. Exit code: 1 where a part failed, else 3
where an equivalence check did, else 7 where only runs were unstable. parts.json has the seconds
of each part; rounds are chosen here so that two cores need about half an hour for all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import store
from benchmarks.measure.programs import run_child
from benchmarks.variants import MODELS
from deepcovid_edge.cli.exit_codes import ExitCode

RESNET18_ONLY = ("--model", str(MODELS / "resnet18.onnx"))
BOTH = ("--model", "squeezenet1_1", *RESNET18_ONLY)
PARTS: dict[str, tuple[str, ...]] = {
    "accuracy": ("accuracy", "DATA"),
    "suite": ("suites.run", "DATA"),
    "infer, SqueezeNet": ("speed.infer", "DATA", "--rounds", "7"),
    "infer, ResNet18": ("speed.infer", "DATA", "--rounds", "3", *RESNET18_ONLY),
    "peers": ("speed.peers", "DATA"),
    "profile": ("speed.infer_profile", "DATA", "--rounds", "3"),
    "prepare": ("speed.prepare", "DATA", "--rounds", "3"),
    "footprint": ("speed.footprint", "DATA", "--rounds", "2"),
    "cost": ("speed.cost", "DATA", "--rounds", "1"),
    "dicom": ("speed.dicom",),
    "dicom, peers": ("speed.dicom_peers", "DATA"),
    "dicom, halved": ("halved", "DATA", "--every", "4"),
    "ood layer": ("ood", "DATA", "--cost"),
    "int8": ("speed.int8", "DATA", "--rounds", "5", *BOTH),
    "activation": ("heatmaps.activation", "DATA", "--rounds", "31", *BOTH),
    "activation, infer": ("heatmaps.speed", "DATA", "--activation", "24"),
    "occlusion": ("heatmaps.speed", "DATA", "--rounds", "3", "--images", "10"),
    "occlusion, ResNet18": (
        *("heatmaps.speed", "DATA", "--rounds", "2", "--images", "1"),
        *RESNET18_ONLY,
    ),
    "gpu": ("speed.gpu",),
}
"""Part -> module and options; `DATA` stands for `--data DATA`. Accuracy first: it makes the
variants that the others run."""
TOO_LONG = 124
"""The exit code of timeout(1): a part that hangs is stopped, and the others run."""
_LIMIT = 1800.0


def main() -> None:
    """Run the parts, write the tables, and exit with the code of the worst part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="images with train, val, test and external")
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--list", action="store_true", help="name the parts")
    options = parser.parse_args()
    if options.list:
        print("\n".join(PARTS))
        return
    if options.data is None:
        parser.error("--data: expected a folder with test/ and the other splits")
    parts = {}
    for name in options.only or PARTS:
        parts[name] = part(name, options.data)
        print(f"== {name}: {parts[name]['seconds']:.0f} s, exit {parts[name]['code']}", flush=True)
    whole = sum(one["seconds"] for one in parts.values())
    if not options.only:
        store("parts", {"parts": parts, "seconds": whole, "limit_seconds": _LIMIT})
    subprocess.run([sys.executable, "-m", "benchmarks.tables.write"], check=True, timeout=_LIMIT)
    print(f"{whole / 60:.1f} minutes")
    raise SystemExit(code_of(one["code"] for one in parts.values()))


def part(name: str, data: Path) -> dict[str, Any]:
    """Run a part: its seconds and its exit code."""
    module, *options = (f"--data={data}" if one == "DATA" else one for one in PARTS[name])
    started = time.perf_counter()
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    try:
        code = run_child(command, seconds=_LIMIT, captured=False).returncode
    except subprocess.TimeoutExpired:
        code = TOO_LONG
    return {"seconds": round(time.perf_counter() - started, 1), "code": code}


def code_of(codes: Iterable[int]) -> int:
    """The exit code of the whole."""
    found = set(codes)
    if found - {ExitCode.DONE, ExitCode.NOT_EQUIVALENT, ExitCode.UNSTABLE}:
        return ExitCode.ERROR
    worst_first = (ExitCode.NOT_EQUIVALENT, ExitCode.UNSTABLE)
    return next((code for code in worst_first if code in found), ExitCode.DONE)


if __name__ == "__main__":
    main()
