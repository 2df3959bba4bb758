"""Images a second of `screen`, here and on Ray, beside those of `infer` on the same images.

    python -m benchmarks.archive.speed --data DATA --images 5000 --rounds 3

The three run in turn. What counts is the time between the first 10 % of the images and the last
one, so no start is in it; and the processor time of that stretch, which other work on the machine
changes less. The records of every run are compared with those of `infer`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.archive.commands import Look, linked_images, watched
from benchmarks.measure import ratio, store, summaries
from benchmarks.measure.programs import COMMAND
from deepcovid_edge.archive.images.image_list import ImageList
from deepcovid_edge.archive.stamp import read_stamp
from deepcovid_edge.decision.record_table import records_of

_SHARDS = 10


def lines_of(path: Path) -> Callable[[], int]:
    """Counts the records of `infer` so far."""
    state = [0, 0]

    def count() -> int:
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(state[0])
                block = stream.read()
            state[0] += len(block)
            state[1] += block.count(b"\n")
        return state[1]

    return count


def in_shards(folder: Path) -> Callable[[], int]:
    """Counts the records of whole shards so far."""

    def count() -> int:
        stamp = read_stamp(folder)
        if stamp is None:
            return 0
        numbers = [int(path.stem.split("-")[1]) for path in folder.glob("shard-*.parquet")]
        return sum(stop - start for start, stop in map(stamp.rows, numbers))

    return count


def stretch(looks: list[Look], images: int) -> dict[str, float]:
    """Seconds and processor seconds an image, without the start: see the module."""
    first = next(look for look in looks if look.images >= images // _SHARDS)
    last = next(look for look in looks if look.images >= images)
    done = last.images - first.images
    return {
        "seconds": (last.seconds - first.seconds) / done,
        "cpu_seconds": (last.cpu_seconds - first.cpu_seconds) / done,
        "wall": looks[-1].seconds,
    }


def records_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Path -> record of a folder of results, without timings."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard-*.parquet")):
        for record in records_of(pq.read_table(path)):
            assert record["path"] not in found, f"{record['path']} has two records"
            found[record["path"]] = _untimed(record)
    return found


def records_of_infer(path: Path) -> dict[str, dict[str, Any]]:
    """Path -> record of `infer`, without timings."""
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {record["path"]: _untimed(record) for record in lines}


def _untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "timings_ms"}


def measured(data: Path, place: Path, images: int, rounds: int, variant: str) -> dict[str, Any]:
    """The figures of all rounds."""
    folder = linked_images(data, images, place)
    manifest, output = place / "m.parquet", place / "infer.jsonl"
    watched(["manifest", folder, "-o", manifest], lambda: 0, place / "log")
    assert ImageList(manifest).count == images
    options = ["--variant", variant]
    shards = ["--shard-size", images // _SHARDS]
    samples: dict[str, list[dict[str, float]]] = {"infer": [], "screen": [], "ray": []}
    differing = {"screen": 0, "ray": 0}
    for _ in range(rounds):
        output.unlink(missing_ok=True)
        looks = watched(["infer", folder, "-o", output, *options], lines_of(output), place / "log")
        samples["infer"].append(stretch(looks, images))
        expected = records_of_infer(output)
        for side, more in (("screen", []), ("ray", ["--on", "ray"])):
            results = place / side
            shutil.rmtree(results, ignore_errors=True)
            command = ["screen", manifest, "-o", results, *options, *shards, *more]
            looks = watched(command, in_shards(results), place / "log")
            samples[side].append(stretch(looks, images))
            found = records_in(results)
            assert found.keys() == expected.keys()
            differing[side] += sum(found[path] != expected[path] for path in expected)
    return figures(samples, differing, images)


def figures(
    samples: Mapping[str, list[dict[str, float]]], differing: Mapping[str, int], images: int
) -> dict[str, Any]:
    """What is stored."""
    columns = {
        name: {side: [one[name] for one in found] for side, found in samples.items()}
        for name in ("seconds", "cpu_seconds", "wall")
    }
    rates = {side: [1 / one for one in found] for side, found in columns["seconds"].items()}
    return {
        "images": images,
        "command": [*COMMAND[1:], "screen"],
        "images_a_second": summaries(rates),
        "cpu_ms_an_image": summaries(
            {side: [1000 * one for one in found] for side, found in columns["cpu_seconds"].items()}
        ),
        "whole_seconds": summaries(columns["wall"]),
        "speed_to_infer": {
            side: ratio(columns["seconds"]["infer"], columns["seconds"][side])
            for side in ("screen", "ray")
        },
        "cpu_to_infer": {
            side: ratio(columns["cpu_seconds"][side], columns["cpu_seconds"]["infer"])
            for side in ("screen", "ray")
        },
        "records_that_differ": dict(differing),
    }


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(description="The speed of `screen` beside `infer`.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--store", action="store_true", help="store the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-") as place:
        found = measured(options.data, Path(place), options.images, options.rounds, options.variant)
    print(json.dumps(found, indent=1))
    if options.store:
        store("archive-speed", found, "archive")


if __name__ == "__main__":
    main()
