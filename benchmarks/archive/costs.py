"""Core time of DICOM files from file to model input, and of a listing, for the plan on paper.

    python -m benchmarks.archive.costs --store

Processor time is measured and not the clock's: other work on the machine changes it less. The
children that decode are counted too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.archive.commands import use
from benchmarks.measure import prepared, store, summary
from benchmarks.speed.dicom import ENCODERS, image, write
from deepcovid_edge.archive.images.listing import Listing, ListSettings
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.manifest import InputSpec

_FOLDERS = 100
UNCOMPRESSED = "uncompressed"


def input_ms(place: Path, rounds: int, images: int = 4) -> dict[str, Any]:
    """Kind of file -> core time of an image, ms."""
    pixels, found = image(), {}
    for uid in (None, *ENCODERS):
        path = place / f"{uid}.dcm"
        write(path, pixels, uid) if uid else write(path, pixels)
        prepared(path, InputSpec())  # starts the child
        name = SYNTAXES[uid].name if uid else UNCOMPRESSED
        found[name] = summary([_core_ms(path, images) for _ in range(rounds)])
        print(name, found[name]["median"], flush=True)
    return found


def _core_ms(path: Path, images: int) -> float:
    before, _ = use(os.getpid())
    for _ in range(images):
        prepared(path, InputSpec())
    return 1000 * (use(os.getpid())[0] - before) / images


def listing(place: Path, images: int) -> dict[str, Any]:
    """Seconds, and core seconds, of listing a million files on a local disk."""
    root = place / "archive"
    for folder in range(_FOLDERS):
        (root / f"{folder:03}").mkdir(parents=True)
        for number in range(images // _FOLDERS):
            (root / f"{folder:03}" / f"{number:05}.dcm").touch()
    before, started = use(os.getpid())[0], time.monotonic()
    Listing(ListSettings((str(root),), place / "m.parquet")).run()
    return {
        "images": images,
        "seconds_a_million": (time.monotonic() - started) / images * 1e6,
        "core_seconds_a_million": (use(os.getpid())[0] - before) / images * 1e6,
    }


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(description="Costs of images and of a listing.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100_000, help="of the listing")
    parser.add_argument("--store", action="store_true", help="store the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-") as place:
        found = {
            "input_ms": input_ms(Path(place), options.rounds),
            "listing": listing(Path(place), options.images),
        }
    print(json.dumps(found["listing"]))
    if options.store:
        store("archive-costs", found, "archive")


if __name__ == "__main__":
    main()
