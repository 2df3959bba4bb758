"""What every benchmark here shares: images, medians, where results go, what stands beside them."""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.variants import present_files
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.device.processor import computes_int8_exactly
from deepcovid_edge.files import file_sha256
from deepcovid_edge.heatmaps.agreement import choose_images
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import VERSION, InputSpec, ModelManifest
from deepcovid_edge.validation.diagnostics import backend_facts, device_facts

CORES = len(os.sched_getaffinity(0))
PAUSE = 0.05
"""Seconds in which the threads of a runtime fall asleep: they spin for a while after a call."""
AVX2_ALONE = "BENCHMARKS_AVX2_ALONE"
"""Environment variable: set in a command that avx2_alone.py runs."""
RESULTS = Path(__file__).parents[1] / "results"
SCHEMA_VERSION = 1

Pixels = NDArray[Any]
"""An image or a map, of shape (rows, columns)."""
Summary = dict[str, Any]
Seconds = dict[str, list[float]]
"""Side -> its samples."""


def summary(samples: Sequence[float]) -> Summary:
    """Raw samples with their median and range."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def summaries(samples: Mapping[str, Sequence[float]]) -> dict[str, Summary]:
    """The summary of each side."""
    return {name: summary(values) for name, values in samples.items()}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest tenth and minimum of measures of agreement."""
    return {
        "median": float(np.median(values)),
        "quantile_10": float(np.quantile(values, 0.1)),
        "min": min(values),
    }


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process, and children that it starts, on one core while the block runs."""
    import cv2

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def seconds_of(step: Callable[..., object], *given: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    step(*given)
    return time.perf_counter() - started


def in_turn(
    sides: Mapping[str, Callable[..., object]],
    rounds: Iterable[tuple[Any, ...]],
    *,
    pause: float = 0.0,
    warm_up: int = 1,
) -> Seconds:
    """Seconds of each side, all of them one after the other in every round.

    Args:
        sides: Name -> what is timed.
        rounds: What every side is called with in a round.
        pause: Seconds before each call; `PAUSE` where threads may still spin.
        warm_up: Rounds at the beginning that are not counted.
    """
    seconds: Seconds = {name: [] for name in sides}
    for number, given in enumerate(rounds):
        for name, side in sides.items():
            time.sleep(pause)
            spent = seconds_of(side, *given)
            if number >= warm_up:
                seconds[name].append(spent)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Summary:
    """Ratios round by round, with their median."""
    return summary([one / other for one, other in zip(slower, faster, strict=True)])


def ratios_to(seconds: Seconds, ours: Iterable[str], others: Iterable[str]) -> dict[str, Summary]:
    """How many times as fast our sides are as others, as `OURS_to_OTHER`."""
    others = list(others)
    return {
        f"{side}_to_{other}": ratio(seconds[other], seconds[side])
        for side in ours
        for other in others
        if other in seconds and other != side
    }


def print_medians(title: str, found: Mapping[str, Summary], unit: str = "") -> None:
    """Print the median of each summary on a line."""
    for name, value in found.items():
        print(f"{title} {name}: {value['median']:.2f}{unit}".strip(), flush=True)


RUNS_THROUGH = (ExitCode.DONE, ExitCode.NOT_ASSESSED)
"""Exit codes of `infer` that has gone through a folder: `test` holds images of children."""


def this_device() -> dict[str, Any]:
    """The device, its processor with what decides how fast it computes INT8."""
    facts = device_facts()
    if AVX2_ALONE in os.environ:
        return {**facts, "processor": f"{facts['processor']}, AVX2 alone"}
    if computes_int8_exactly():
        return facts
    return {**facts, "processor": f"{facts['processor']} without VNNI"}


def device_name(facts: dict[str, Any]) -> str:
    """A folder name for a device: GPU, else cores and processor."""
    name = facts["gpus"][0] if facts["gpus"] else f"{facts['cores']}-core {facts['processor']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def of_both_classes(
    images: list[LabelledImage], manifest: ModelManifest, most: int | None
) -> list[LabelledImage]:
    """The first images of both classes alike, always the same ones; all of them for None."""
    if most is None:
        return images
    positive = np.array([image.label in manifest.positive_labels for image in images])
    return [images[place] for place in choose_images(positive, most)]


def prepared_val(
    data: Path, manifest: ModelManifest, most: int
) -> tuple[list[LabelledImage], list[Pixels]]:
    """Images of `val`, of both classes alike, and the same as the network sees them."""
    images = of_both_classes(load_dataset(data, split="val"), manifest, most)
    return images, [prepared(image.path, manifest.input) for image in images]


def prepared(path: Path, spec: InputSpec) -> Pixels:
    """An image as the network sees it."""
    return prepare(read_radiograph(path, spec), spec)


def store(
    name: str, figures: dict[str, Any], folder: str | None = None, place: Path | None = None
) -> Path:
    """Write a result with the device, the versions and the model files that made it.

    Args:
        name: Of the benchmark and of its file.
        figures: What was measured.
        folder: Where in results/, for figures that are not of a device; None for the device's own.
        place: The folder itself, where it is another than results/.
    """
    device = this_device()
    content = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"deepcovid-edge": VERSION, "python": sys.version.split()[0]},
        "device": device,
        "backends": backend_facts(),
        "files": {path.stem: file_sha256(path) for path in present_files()},
        **figures,
    }
    path = (place or RESULTS / (folder or device_name(device))) / f"{name}.json"
    write_json(path, content)
    own = Path(__file__).parents[2]
    print(path.relative_to(own) if path.is_relative_to(own) else path)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
