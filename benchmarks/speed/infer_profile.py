"""Where the time of `deepcovid-edge infer` goes, image by image, on one core and on all of them.

    python -m benchmarks.speed.infer_profile --data DATA                       the images of test
    python -m benchmarks.speed.infer_profile --data DATA --folder original     other formats

The command itself runs in a child process on some cores, several times over the same files. The
functions named in `SECTIONS` are wrapped: each call's wall time and the CPU time of its thread are
taken, less those of wrapped functions within it, so that the sections add up. What they leave of
the process's CPU time (thread pools, threads of a runtime, Python between) is `elsewhere`; what the
process leaves of the cores is `idle`, whoever else used it. `waits` is the part of a section's wall
time in which its thread did not compute: for a core, for Python's lock, for the disk.

A profiler that samples (py-spy) cannot tell a thread that computes in C from one that waits for
Python's lock, and cProfile slows Python alone; hence this. Rounds without the wrapping stand beside
those with it. Text for people and JSON go to results/<device>/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import CORES, RUNS_THROUGH, store
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import RUN_SECONDS, run_child
from deepcovid_edge import backends
from deepcovid_edge.benchmarking.watch import Watch
from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import walk_files

MAIN = "submit, order, count"
DECODE = "decode"
SECTIONS = {
    "deepcovid_edge.cli.infer:classify_images": MAIN,
    "deepcovid_edge.backends:load_backend": "load the model",
    "deepcovid_edge.pipeline.writers:RecordFile.write": "write the record",
    "deepcovid_edge.pipeline.reader:ImageReader.read": "read: rest",
    "deepcovid_edge.pipeline.reader:read_source": "open, read",
    "hashlib:sha256": "SHA-256",
    "deepcovid_edge.pipeline.reader:decode_radiograph": "decode: rest",
    "deepcovid_edge.imaging.pictures:_checked": "check the container",
    "deepcovid_edge.imaging.pictures:_open": "open the picture",
    "deepcovid_edge.imaging.pictures:_decode": DECODE,
    "deepcovid_edge.imaging.pictures:to_grey": "to grey",
    "deepcovid_edge.imaging.pictures:check_exposure": "check the exposure",
    "deepcovid_edge.pipeline.reader:prepare": "resize",
    "deepcovid_edge.pipeline.classifier:Classifier.classify": "classify: rest",
}
"""Function -> what it does. One that the code no longer has is named in the result."""
NETWORK = "network"
COMMON = ("model", "backend", "images", "missing")
"""Facts that are the same on any number of cores."""


class Probes:
    """Times of wrapped calls, each less the wrapped calls within it."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._lock = threading.Lock()
        self.sections: dict[str, dict[str, float]] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is timed under a name."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            stack = self._own.__dict__.setdefault("stack", [])
            stack.append([0, 0])
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            label = name
            try:
                done = function(*arguments, **named)
                if name == DECODE:
                    label = f"{DECODE} {arguments[0].format} {arguments[0].mode}"
                return done
            finally:
                spent = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
                inner = stack.pop()
                if stack:
                    stack[-1] = [old + new for old, new in zip(stack[-1], spent, strict=True)]
                self._add(label, spent[0] - inner[0], spent[1] - inner[1])

        return wrapped

    def _add(self, name: str, wall: int, cpu: int) -> None:
        with self._lock:
            zero: dict[str, float] = {"calls": 0, "wall_ns": 0, "cpu_ns": 0}
            section = self.sections.setdefault(name, zero)
            for key, value in (("calls", 1), ("wall_ns", wall), ("cpu_ns", cpu)):
                section[key] += value

    @contextmanager
    def installed(self) -> Iterator[list[str]]:
        """Wrap the functions of `SECTIONS` and every model's `infer`; the names not found."""
        missing, before = [], []
        for place, name in SECTIONS.items():
            owner, attribute = owner_of(place)
            function = getattr(owner, attribute, None)
            if function is None:
                missing.append(place)
                continue
            before.append((owner, attribute, function))
            setattr(owner, attribute, self.wrap(name, function))
        load = backends.load_backend

        def loaded(*arguments: Any, **named: Any) -> Any:
            backend = load(*arguments, **named)
            backend.infer = self.wrap(NETWORK, backend.infer)  # type: ignore[method-assign]
            return backend

        backends.load_backend = loaded
        try:
            yield missing
        finally:
            for owner, attribute, function in before:
                setattr(owner, attribute, function)


def owner_of(place: str) -> tuple[Any, str]:
    """Module or class, and the name in it, of such as `package.module:Class.method`."""
    module, _, path = place.partition(":")
    *outer, attribute = path.split(".")
    owner: Any = import_module(module)
    for name in outer:
        owner = getattr(owner, name, None)
    return owner, attribute


def main() -> None:
    """Measure in a child process for each number of cores, and store the result."""
    parser = parser_of(__doc__, data="folder that holds --folder", model="one", rounds=5)
    parser.add_argument("--folder", default="test", help="of --data")
    parser.add_argument("--backend", default="auto", help="as of infer")
    parser.add_argument("--cores", type=int, nargs="*", help="how many  [default: 1 and all]")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(profile_rounds(options)), file=sys.__stdout__)
        return
    runs = {str(cores): on_cores(cores) for cores in options.cores or sorted({1, CORES})}
    same = {name: [run.pop(name) for run in runs.values()][-1] for name in COMMON}
    figures = {"folder": options.folder, **same, "cores": runs}
    name = "-".join(["profile-infer", figures["model"], figures["backend"], options.folder])
    path = store(name, figures)
    profile = text(figures)
    path.with_suffix(".txt").write_text(profile, encoding="utf-8")
    print(profile, end="")


def on_cores(cores: int) -> dict[str, Any]:
    """The result of a child that has the first of the cores."""
    listed = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    command = ["taskset", "-c", listed, sys.executable, "-m", "benchmarks.speed.infer_profile"]
    command += [*sys.argv[1:], "--child"]
    done = run_child(["/usr/bin/env", *command], seconds=RUN_SECONDS)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def profile_rounds(options: argparse.Namespace) -> dict[str, Any]:
    """Rounds with and without the wrapping, in turn, after one that warms up."""
    folder = options.data / options.folder
    images = sum(1 for _ in walk_files(folder))
    probes, plain, with_probes = Probes(), [], []
    cpu = 0.0
    with tempfile.TemporaryDirectory() as place:
        output = Path(place, "out.jsonl")
        asked = ["infer", str(folder), "-o", str(output), "--model", options.model]
        asked += ["--backend", options.backend]
        timed(asked)
        with Watch(None) as watch:
            for _ in range(options.rounds):
                plain.append(timed(asked)[0])
                with probes.installed() as missing:
                    wall, used = timed(asked)
                with_probes.append(wall)
                cpu += used
        record = json.loads(output.read_text("utf-8").splitlines()[0])
    return {
        "model": f"{record['model']}",
        "backend": record["backend"],
        "images": images,
        "missing": missing,
        "taken": {name: watch.facts()[name] for name in ("others_share", "stolen_share")},
        "ms_an_image": statistics.median(plain) / images * 1e3,
        "ms_an_image_wrapped": statistics.median(with_probes) / images * 1e3,
        **by_section(probes.sections, images * options.rounds, sum(with_probes), cpu),
    }


def timed(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of the command."""
    wall, cpu = time.perf_counter(), time.process_time()
    if (code := run(arguments)) not in RUNS_THROUGH:
        raise SystemExit(f"infer exited with {code}")
    return time.perf_counter() - wall, time.process_time() - cpu


def by_section(
    sections: dict[str, dict[str, float]], images: int, wall: float, cpu: float
) -> dict[str, Any]:
    """Milliseconds an image of each section; of what is left of the process, and of the cores."""
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for name, section in sections.items():
        computed = section["cpu_ns"] / 1e6 / images
        # The main thread waits for the workers: that is no time of an image.
        waits = 0.0 if name == MAIN else section["wall_ns"] / 1e6 / images - computed
        rows[name] = {"calls": section["calls"] / images, "cpu_ms": computed, "waits_ms": waits}
    known = sum(row["cpu_ms"] for row in rows.values())
    rows["elsewhere"] = {"cpu_ms": cpu * 1e3 / images - known}
    whole = wall * 1e3 / images * len(os.sched_getaffinity(0))
    return {
        "sections": dict(sorted(rows.items(), key=lambda item: -item[1]["cpu_ms"])),
        "cpu_ms": cpu * 1e3 / images,
        "cores_ms": whole,
        "idle_ms": whole - cpu * 1e3 / images,
    }


def text(figures: dict[str, Any]) -> str:
    """The profile for people."""
    lines = [
        f"deepcovid-edge infer, {figures['model']} on {figures['backend']}, "
        f"{figures['images']} images of {figures['folder']}"
    ]
    for cores, found in figures["cores"].items():
        lines += [
            "",
            f"{cores} core{'s' if cores != '1' else ''}: {found['ms_an_image']:.3f} ms an image "
            f"({found['ms_an_image_wrapped']:.3f} while it is taken apart), "
            f"{1e3 / found['ms_an_image']:.0f} images/s",
            f"{'':28}{'CPU ms an image':>14}{'share':>8}{'waits ms':>10}{'calls an image':>14}",
        ]
        for name, row in found["sections"].items():
            share = row["cpu_ms"] / found["cores_ms"]
            more = f"{row['waits_ms']:>10.3f}{row['calls']:>14.2f}" if "calls" in row else ""
            lines.append(f"{name:28}{row['cpu_ms']:>14.3f}{share:>8.1%}{more}")
        share = found["idle_ms"] / found["cores_ms"]
        lines.append(f"{'idle':28}{found['idle_ms']:>14.3f}{share:>8.1%}")
        others, host = (f"{found['taken'][f'{who}_share']:.0%}" for who in ("others", "stolen"))
        lines.append(f"meanwhile other processes used {others} of the cores, the host {host}")
    lines += [f"no longer there: {place}" for place in figures["missing"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
