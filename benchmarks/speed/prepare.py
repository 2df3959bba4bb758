"""From the file to the network's input: ours beside others', on one core, and what they move.

All sides take turns over the same images, one image at a time; ratios are taken image by image over
the medians of its rounds, and their median is quoted. Ours also checks the file, hashes it and
classifies its exposure. `opencv` has our decoder and rule, and OpenCV's INTER_AREA. `moved` is what
another preparation does to the same network: how far pixels and softmax are apart, and how
many decisions turn.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.measure.measurement import ratio, store, summary
from benchmarks.peers import onnxruntime_loop, torchvision_prepare
from benchmarks.variants import named
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, softmax
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.models import DEFAULT_MODEL

Prepare = Callable[[Path], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds test/")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    cv2.setNumThreads(1)
    images = list(walk_files(options.data / "test"))
    with load_backend(named(options.model), backend="onnxruntime") as backend:
        figures = compare(backend, images, options.rounds)
    os.sched_setaffinity(0, cores)
    for name, found in figures["ratios"].items():
        print(f"{name}: {found['median']:.2f} times as slow, moved {figures['moved'][name]}")
    store("prepare-speed", figures)


def compare(backend: Backend, images: list[Path], rounds: int) -> dict[str, Any]:
    sides: dict[str, Prepare] = {
        "ours": partial(own, backend.manifest.input),
        "opencv": onnxruntime_loop.prepared,
    }
    for way in torchvision_prepare.WAYS:
        sides[f"torchvision_{way}"] = torchvision_prepare.make(way)
    ms = measure(sides, images, rounds)
    peers = [name for name in sides if name != "ours"]
    return {
        "model": backend.manifest.name,
        "images": len(images),
        "ms": {name: summary(values) for name, values in ms.items()},
        "ratios": {name: ratio(ms[name], ms["ours"]) for name in peers},
        "moved": {name: moved(backend, images, sides["ours"], sides[name]) for name in peers},
    }


def own(spec: InputSpec, path: Path) -> np.ndarray:
    return prepare(read_radiograph(path), spec)


def measure(sides: dict[str, Prepare], images: list[Path], rounds: int) -> dict[str, list[float]]:
    """Each image's median, milliseconds."""
    samples: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first round warms up
        for name, side in sides.items():
            row = []
            for image in images:
                started = time.perf_counter()
                side(image)
                row.append((time.perf_counter() - started) * 1e3)
            if number:
                samples[name].append(row)
    return {name: np.median(rows, axis=0).tolist() for name, rows in samples.items()}


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
