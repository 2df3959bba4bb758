"""What `deepcovid-edge` costs as a process: start, first record, and memory over many images.

Every sample is a process of its own, timed from outside, its peak memory as the kernel counted it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from benchmarks.measure.measurement import store, summary
from deepcovid_edge.datasets.dataset import walk_files

_LIMIT_SECONDS = 1200
COMMAND = [str(Path(sys.executable).with_name("deepcovid-edge"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds test/")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    images = list(walk_files((options.data / "test").resolve()))
    with tempfile.TemporaryDirectory() as place:
        figures = {
            "help_seconds": repeated(["--help"], options.rounds)["seconds"],
            "one_image": repeated(["infer", str(images[0]), "-o", os.devnull], options.rounds),
            "images": {
                str(count): repeated(
                    ["infer", str(links(images, count, Path(place))), "-o", os.devnull], 3
                )
                for count in (500, 5000)
            },
        }
    memory = {count: runs["peak_mib"]["median"] for count, runs in figures["images"].items()}
    figures["memory_ratio_5000_to_500"] = memory["5000"] / memory["500"]
    print(f"--help {figures['help_seconds']['median']:.2f} s")
    print(f"one image {figures['one_image']['seconds']['median']:.2f} s")
    print(f"peak MiB {memory}, ratio {figures['memory_ratio_5000_to_500']:.3f}")
    store("footprint", figures)


def links(images: list[Path], count: int, place: Path) -> Path:
    folder = place / str(count)
    folder.mkdir()
    for number, image in enumerate(islice(cycle(images), count)):
        (folder / f"{number:05d}{image.suffix}").symlink_to(image)
    return folder


def repeated(arguments: list[str], rounds: int) -> dict[str, dict[str, object]]:
    process(arguments)  # warms the page cache
    samples = [process(arguments) for _ in range(rounds)]
    return {
        "seconds": summary([seconds for seconds, _ in samples]),
        "peak_mib": summary([peak for _, peak in samples]),
    }


def process(arguments: list[str]) -> tuple[float, float]:
    started = time.perf_counter()
    child = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    watchdog = threading.Timer(_LIMIT_SECONDS, child.kill)
    watchdog.start()
    _, status, usage = os.wait4(child.pid, 0)
    watchdog.cancel()
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{arguments} exited with {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
