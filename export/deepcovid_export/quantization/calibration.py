"""Calibration: which images measure the ranges of activations, and which ranges lose least.

Images come only from the `train` split and are balanced over the model's classes. Activations are
kept as histograms, so memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from deepcovid_edge.datasets.dataset import SPLITS, LabelledImage, load_dataset
from deepcovid_edge.device.progress import counted
from deepcovid_edge.errors import DataError, ModelFileError, NotAssessedError
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_export.onnx_export.graphs import copy_model
from deepcovid_export.onnx_export.session import open_session

SPLIT = "train"
FEWEST_IMAGES = 16
BATCH = 8
MOST_MEASURED, MOST_FITTED = 64, 128
"""Calibration images at most that measure errors, and that weights are fitted on.

They are kept prepared: 64 of 224 x 224 are 3.2 MB.
"""
BINS = 8192
_CLIPPING = np.linspace(0.2, 1.0, 81)
"""Shares of the largest value that are tried as the end of a range."""
_POWER = 3
"""Of the error that a range makes smallest.

Squares clip too much: the few large values of a late layer decide about an image.
"""

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class CalibrationImages:
    """Images to calibrate on.

    Attributes:
        images: The images, the same number of each class.
        by_class: Class name to number of images.
        not_assessed: Files that could not be read, with their reason code.
        split: `train`, or empty where the data has no splits.
    """

    images: list[LabelledImage]
    by_class: dict[str, int]
    not_assessed: dict[str, str]
    split: str


def choose_images(data: Path, manifest: ModelManifest, count: int) -> CalibrationImages:
    """Choose calibration images: from `train`, balanced over classes, the same ones every time.

    Within a class the labels take turns, each in the order of the SHA-256 of its file names. This
    spreads the choice over sources and depends neither on the order of folders nor on chance.

    Args:
        data: A data set; where it has splits, only `train` is used.
        manifest: The model's manifest; its recipe says which labels belong to which class.
        count: Largest number of images, all classes together.

    Raises:
        DataError: There is no `train` split, a class has no image, or there are too few.
    """
    images, split = _train_images(data)
    queues = {name: _in_turn(images, labels) for name, labels in _labels(manifest).items()}
    not_assessed: dict[str, str] = {}
    share = count // len(queues)
    chosen = {
        name: list(islice(_readable(queue, not_assessed), share)) for name, queue in queues.items()
    }
    found = {name: len(part) for name, part in chosen.items()}
    smallest = min(found.values())
    if smallest * len(found) < FEWEST_IMAGES:
        needed = math.ceil(FEWEST_IMAGES / len(found))
        counts = ", ".join(f"{name} {number}" for name, number in found.items())
        raise DataError(
            f"{data}: got {sum(found.values())} calibration images ({counts}), expected at least "
            f"{FEWEST_IMAGES}, that is {needed} of each class: add labelled images of these classes"
        )
    balanced = list(chain.from_iterable(zip(*chosen.values(), strict=False)))
    return CalibrationImages(balanced, dict.fromkeys(found, smallest), not_assessed, split)


def _train_images(data: Path) -> tuple[list[LabelledImage], str]:
    forbidden = set(SPLITS) - {SPLIT}
    if data.resolve().name in forbidden:
        raise DataError(
            f"{data}: is the split {data.resolve().name!r}; images to calibrate on come from "
            f"{SPLIT!r}: give the folder above it"
        )
    images = load_dataset(data)
    splits = sorted({image.split for image in images if image.split})
    if not splits:
        return images, ""
    if SPLIT not in splits:
        raise DataError(
            f"{data}: has the splits {', '.join(splits)}; images to calibrate on come from "
            f"{SPLIT!r}: give data with that split"
        )
    return [image for image in images if image.split == SPLIT], SPLIT


def _labels(manifest: ModelManifest) -> dict[str, tuple[str, ...]]:
    grouped = manifest.training.get("recipe", {}).get("classes", {})
    return {name: (name, *grouped.get(name, ())) for name in manifest.classes}


def _in_turn(images: Sequence[LabelledImage], labels: Sequence[str]) -> Iterator[LabelledImage]:
    """Images of some labels, one of each label in turn."""
    rows = [
        sorted((image for image in images if image.label == label), key=_name_digest)
        for label in dict.fromkeys(labels)
    ]
    for turn in zip_longest(*rows):
        yield from filter(None, turn)


def _name_digest(image: LabelledImage) -> bytes:
    return hashlib.sha256(image.path.name.encode()).digest()


def _readable(
    images: Iterator[LabelledImage], not_assessed: dict[str, str]
) -> Iterator[LabelledImage]:
    for image in images:
        try:
            read_radiograph(image.path)
        except NotAssessedError as error:
            not_assessed[str(image.path)] = error.reason.code
        else:
            yield image


class ImageBatches:
    """Batches of prepared images, read from the files in every iteration; none is kept."""

    def __init__(self, images: Sequence[LabelledImage], spec: InputSpec) -> None:
        self.images = list(images)
        self.spec = spec

    @property
    def halves(self) -> tuple[ImageBatches, ImageBatches]:
        """Images that measure errors, and others that weights are fitted on.

        Half and half, as far as `MOST_MEASURED` and `MOST_FITTED` allow.
        """
        middle = min(len(self.images) // 2, MOST_MEASURED)
        parts = self.images[:middle], self.images[middle : middle + MOST_FITTED]
        return ImageBatches(parts[0], self.spec), ImageBatches(parts[1], self.spec)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.images), BATCH):
            part = self.images[start : start + BATCH]
            read = (read_radiograph(image.path, self.spec) for image in part)
            yield np.stack([prepare(image, self.spec) for image in read])


class Histogram:
    """Counts of values in equal bins between -reach and reach, which doubles when it must.

    Attributes:
        lowest: The lowest value seen.
        highest: The highest value seen.
    """

    def __init__(self) -> None:
        self.lowest = math.inf
        self.highest = -math.inf
        self._counts = np.zeros(BINS, np.int64)
        self._reach = 2.0**-20

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values of any shape."""
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        while max(-self.lowest, self.highest) >= self._reach:
            paired = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(paired, BINS // 4)
            self._reach *= 2
        scaled = values.ravel() * np.float32(BINS / 2 / self._reach) + np.float32(BINS / 2)
        places = np.minimum(scaled.astype(np.int32), BINS - 1)
        self._counts += np.bincount(places, minlength=BINS)

    def best_range(self, *, symmetric: bool) -> tuple[float, float]:
        """The range whose quantisation has the smallest mean cubed error.

        A shorter range cuts off rare large values and shows the others in finer steps.

        Args:
            symmetric: int8 around zero (127 steps either way) instead of uint8 with a zero point.
        """
        edges: NDArray[np.float64] = np.linspace(-self._reach, self._reach, BINS + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        used = self._counts > 0
        values, weights = centres[used], self._counts[used].astype(np.float64)
        candidates = [self._range(float(share), symmetric=symmetric) for share in _CLIPPING]
        errors = [
            float(
                weights @ np.abs(values - _quantise(values, *ends, symmetric=symmetric)) ** _POWER
            )
            for ends in candidates
        ]
        return candidates[int(np.argmin(errors))]

    def _range(self, share: float, *, symmetric: bool) -> tuple[float, float]:
        low, high = min(self.lowest, 0.0) * share, max(self.highest, 0.0) * share
        reach = max(-low, high)
        return (-reach, reach) if symmetric else (low, high)


def _quantise(
    values: NDArray[np.float64], low: float, high: float, *, symmetric: bool
) -> NDArray[np.float64]:
    """Values as they come out of QuantizeLinear and DequantizeLinear (ONNX operators)."""
    lowest, highest = (-127, 127) if symmetric else (0, 255)
    step = (high - low) / (highest - lowest) or 1.0
    zero = 0 if symmetric else round(-low / step)
    stored = np.clip(np.rint(values / step) + zero, lowest, highest)
    restored: NDArray[np.float64] = (stored - zero) * step
    return restored


def channel_peaks(
    model: onnx.ModelProto, tensors: Sequence[str], batches: ImageBatches
) -> dict[str, NDArray[np.float64]]:
    """The largest magnitude in each channel of tensors of shape (N, channels, h, w).

    Raises:
        ModelFileError: A tensor has values that are not finite.
    """
    peaks: dict[str, NDArray[np.float64]] = {}

    def note(name: str, values: NDArray[np.float32]) -> None:
        seen = np.abs(values).max(axis=(0, 2, 3)).astype(np.float64)
        peaks[name] = np.maximum(peaks.get(name, seen), seen)

    _watch(model, tensors, batches, note)
    return peaks


def best_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], batches: ImageBatches, *, symmetric: bool
) -> Ranges:
    """Ranges of tensors by `Histogram.best_range`, over all batches.

    Raises:
        ModelFileError: A tensor has values that are not finite.
    """
    histograms = {name: Histogram() for name in tensors}
    _watch(model, tensors, batches, lambda name, values: histograms[name].add(values))
    return {name: seen.best_range(symmetric=symmetric) for name, seen in histograms.items()}


def _watch(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: ImageBatches,
    note: Callable[[str, NDArray[np.float32]], None],
) -> None:
    """Run images through a network and pass some of its tensors to `note`, batch by batch.

    Raises:
        ModelFileError: A tensor has values that are not finite, which have no range.
    """
    if not tensors:  # ONNX Runtime would give all outputs
        return
    watched = copy_model(model)
    present = {output.name for output in watched.graph.output}
    for name in tensors:
        if name not in present:
            watched.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(watched)
    total = math.ceil(len(batches.images) / BATCH)
    for batch in counted(batches, total, "batches to calibrate on"):
        seen = session.run(list(tensors), {"images": batch})
        for name, values in zip(tensors, seen, strict=True):
            if not np.isfinite(values).all():
                raise ModelFileError(
                    f"activation {name}: got values that are not finite, expected numbers: these "
                    "weights overflow in FP32: export another checkpoint"
                )
            note(name, values)
