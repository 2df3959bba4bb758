"""From the file to the network's input: ours beside others', on one core, and what they change.

All sides take turns over the same images, one image at a time. Ratios are taken image by image over
the medians of its rounds, and their median is quoted. Ours also checks the file, hashes it and
classifies its exposure. `opencv` has our decoder and rule, and OpenCV's INTER_AREA. `moved` is what
another preparation does to the same network: how far pixels and softmax are apart, and how
many decisions differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Pixels, Seconds
from benchmarks.measure.options import parser_of
from benchmarks.peers import onnxruntime_loop, torchvision_prepare
from benchmarks.variants import named
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, softmax
from deepcovid_edge.datasets.dataset import walk_files

Prepare = Callable[[Path], Pixels]


def main() -> None:
    """Measure on one core, and store the result."""
    parser = parser_of(__doc__, data="folder that holds test/", model="one", rounds=5)
    options = parser.parse_args()
    images = list(walk_files(options.data / "test"))
    with (
        measure.on_one_core(),
        load_backend(named(options.model), backend="onnxruntime") as backend,
    ):
        figures = compare(backend, images, options.rounds)
    measure.print_medians("times as slow as ours:", figures["ratios"])
    measure.store("prepare-speed", figures)


def compare(backend: Backend, images: list[Path], rounds: int) -> dict[str, Any]:
    """Times of all sides, and what the others change."""
    sides: dict[str, Prepare] = {
        "ours": partial(measure.prepared, spec=backend.manifest.input),
        "opencv": onnxruntime_loop.prepared,
    }
    for way in torchvision_prepare.WAYS:
        sides[f"torchvision_{way}"] = torchvision_prepare.make(way)
    ms = medians(sides, images, rounds)
    peers = [name for name in sides if name != "ours"]
    return {
        "model": backend.manifest.name,
        "images": len(images),
        "ms": measure.summaries(ms),
        "ratios": {name: measure.ratio(ms[name], ms["ours"]) for name in peers},
        "moved": {name: moved(backend, images, sides["ours"], sides[name]) for name in peers},
    }


def medians(sides: dict[str, Prepare], images: list[Path], rounds: int) -> Seconds:
    """Each image's median over the rounds, milliseconds."""
    given = ((image,) for _ in range(rounds + 1) for image in images)
    seconds = measure.in_turn(sides, given, warm_up=len(images))
    return {
        name: np.median(np.reshape(values, (rounds, -1)) * 1e3, axis=0).tolist()
        for name, values in seconds.items()
    }


def moved(backend: Backend, images: list[Path], ours: Prepare, other: Prepare) -> dict[str, Any]:
    """How far another preparation moves pixels, softmax and decisions."""
    apart, scores = [], []
    for image in images:
        pair = np.stack([ours(image), other(image)])
        apart.append(np.abs(pair[0].astype(int) - pair[1]).mean())
        scores.append(softmax(backend.infer(pair).logits)[:, backend.manifest.positive_index])
    before, now = np.array(scores).T
    threshold = backend.manifest.threshold
    return {
        "grey_levels_median": float(np.median(apart)),
        "probability_max": float(np.abs(before - now).max()),
        "turned": int(((before >= threshold) != (now >= threshold)).sum()),
    }


if __name__ == "__main__":
    main()
