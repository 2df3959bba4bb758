"""What every benchmark here shares: images, medians, where results go, what stands beside them."""

from __future__ import annotations

import datetime
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.diagnostics import backend_facts, device_facts
from deepcovid_edge.heatmaps.agreement import choose_images
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import VERSION, InputSpec, ModelManifest

PAUSE = 0.05
"""Seconds in which the threads of a runtime fall asleep: after a call they spin for some more."""
RESULTS = Path(__file__).parents[1] / "results"
SCHEMA_VERSION = 1


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Raw samples with their median and range."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def in_turn(
    sides: Mapping[str, Callable[..., object]],
    rounds: Iterable[tuple[Any, ...]],
    *,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each side, all of them one after the other in every round.

    Args:
        sides: Name -> what is timed.
        rounds: What every side is called with in a round; the first round warms up.
        pause: Seconds before each call; `PAUSE` where threads may still spin.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, given in enumerate(rounds):
        for name, side in sides.items():
            time.sleep(pause)
            started = time.perf_counter()
            side(*given)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, Any]:
    """Ratios round by round, with their median."""
    return summary([one / other for one, other in zip(slower, faster, strict=True)])


def device_name(facts: dict[str, Any]) -> str:
    """A folder name for a device: GPU, else cores and processor."""
    name = facts["gpus"][0] if facts["gpus"] else f"{facts['cores']}-core {facts['processor']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def images_of_both_classes(data: Path, manifest: ModelManifest, most: int) -> list[LabelledImage]:
    """Images of `val`, of both classes alike, always the same ones."""
    images = load_dataset(data, split="val")
    positive = np.array([image.label in manifest.positive_labels for image in images])
    return [images[place] for place in choose_images(positive, most)]


def prepared(image: LabelledImage, spec: InputSpec) -> np.ndarray:
    """An image as the network sees it."""
    return prepare(read_radiograph(image.path), spec)


def store(
    name: str, figures: dict[str, Any], folder: str | None = None, place: Path | None = None
) -> Path:
    """Write a result with the device and the versions that made it.

    Args:
        name: Of the benchmark and of its file.
        figures: What was measured.
        folder: Where in results/, for figures that are not of a device; None for the device's own.
        place: The folder itself, where it is another than results/.
    """
    device = device_facts()
    content = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"deepcovid-edge": VERSION, "python": sys.version.split()[0]},
        "device": device,
        "backends": backend_facts(),
        **figures,
    }
    path = (place or RESULTS / (folder or device_name(device))) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    own = Path(__file__).parents[2]
    print(path.relative_to(own) if path.is_relative_to(own) else path)
    return path
