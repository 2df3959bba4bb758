"""Do two models look at the same places? Their occlusion maps of the same images, compared.

A model in lower precision may keep its decisions and yet look elsewhere. Three figures show it: the
rank correlation of the maps, the overlap of their strongest tenths, and how far the peak moved.
NumPy alone, so that a cart can compare an engine with its parent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.decision.statistics import Truth
from deepcovid_edge.errors import UsageError
from deepcovid_edge.heatmaps.occlusion import Occluder, of_occlusion
from deepcovid_edge.heatmaps.windows import OcclusionSettings

_TOP_SHARE = 0.1
"""The share of a map's pixels that counts as its top."""
_FEW = 0.1
"""The quantile that describes the worst images; for a shift 1 less this."""


@dataclass(frozen=True)
class MapComparison:
    """Which maps are compared.

    Attributes:
        images: Images at most, half of each class: a map takes hundreds of inferences.
        occlusion: Which windows are hidden.
    """

    images: int = 50
    occlusion: OcclusionSettings = field(default_factory=OcclusionSettings)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UsageError(f"images: got {self.images}, expected 1 or more")
        if self.occlusion.budget_ms is not None:
            raise UsageError(
                f"budget_ms: got {self.occlusion.budget_ms}, expected none: values that are "
                "estimated cannot be compared"
            )


@dataclass(frozen=True)
class MapAgreement:
    """How alike two maps of one image are.

    Attributes:
        rank_correlation: Spearman's, over pixels, -1 to 1.
        top_overlap: Intersection over union of the top tenths, 0 to 1.
        peak_shift: Distance between the highest pixels, in pixels of the network's input.
        peak_shift_share: The same as a share of the input's longer side.
    """

    rank_correlation: float
    top_overlap: float
    peak_shift: float
    peak_shift_share: float


def compare_maps(reference: NDArray[Any], candidate: NDArray[Any]) -> MapAgreement:
    """Compare two maps of one image, of shape (height, width)."""
    shift = _peak_shift(reference, candidate)
    return MapAgreement(
        rank_correlation=rank_correlation(reference, candidate),
        top_overlap=top_overlap(reference, candidate),
        peak_shift=shift,
        peak_shift_share=shift / max(reference.shape),
    )


def compare_models(
    reference: Backend,
    candidate: Backend,
    images: Iterable[NDArray[np.uint8]],
    settings: OcclusionSettings,
) -> list[MapAgreement]:
    """Compare the occlusion maps of two models, image by image.

    Args:
        reference: The model whose maps are known.
        candidate: The model that shall replace it; both take the same input.
        images: As `imaging.prepare.prepare` makes them, of shape (height, width).
        settings: Which windows are hidden.

    Raises:
        UsageError: A window is larger than the models' input.
    """
    with Occluder(reference, settings) as before, Occluder(candidate, settings) as now:
        return [
            compare_maps(*(of_occlusion(side.explain(image), {}).values for side in (before, now)))
            for image in images
        ]


def summarise(found: Sequence[MapAgreement]) -> dict[str, Any]:
    """Medians, and what the worst tenth of the images reaches, as plain values for JSON."""
    summary = {}
    for name in asdict(found[0]):
        values = [getattr(image, name) for image in found]
        worst = 1 - _FEW if name.startswith("peak_shift") else _FEW
        quantile = {f"quantile_{100 * worst:.0f}": float(np.quantile(values, worst))}
        summary[name] = {"median": float(np.median(values)), **quantile}
    return summary


def choose_images(positive: Truth, most: int) -> list[int]:
    """Choose images, half of each class, evenly over their order; always the same ones.

    Args:
        positive: Whether each image is positive, of shape (N,).
        most: Images at most; where one class has too few, more of the other are chosen.

    Returns:
        Positions of the chosen images, ascending.
    """
    classes = sorted((np.flatnonzero(positive), np.flatnonzero(~positive)), key=len)
    fewer = min(len(classes[0]), most // 2)
    counts = (fewer, min(len(classes[1]), most - fewer))
    chosen: list[int] = []
    for places, count in zip(classes, counts, strict=True):
        chosen += places[spread_evenly(len(places), count)].tolist()
    return sorted(chosen)


def spread_evenly(length: int, count: int) -> list[int]:
    """`count` of the positions 0 to `length` - 1, evenly spread; all of them if they are fewer."""
    count = min(count, length)
    return [place * length // count for place in range(count)]


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's rank correlation (1904): Pearson's of the ranks, equal values sharing theirs.

    For a constant map the formula divides zero by zero. Two such maps agree: 1; one such map and
    another do not: 0.

    Args:
        first: Values of any shape.
        second: Values of the same shape.
    """
    ranks = [_ranks(values.ravel()) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    spread = [float(values @ values) for values in centred]
    if not all(spread):
        return 1.0 if not any(spread) else 0.0
    return float(centred[0] @ centred[1]) / math.sqrt(spread[0] * spread[1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Positions in ascending order from 1; equal values get the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: NDArray[np.float64] = last - (counts - 1) / 2
    return shared[inverse]


def top_overlap(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Intersection over union of the top pixels of two maps of one shape."""
    tops = [_top(values) for values in (first, second)]
    return float((tops[0] & tops[1]).sum() / (tops[0] | tops[1]).sum())


def _top(values: NDArray[Any]) -> NDArray[np.bool_]:
    """The highest pixels of a map; those equal to the lowest of these count too."""
    count = math.ceil(_TOP_SHARE * values.size)
    lowest = np.partition(values, values.size - count, axis=None)[values.size - count]
    top: NDArray[np.bool_] = values >= lowest
    return top


def _peak_shift(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Distance between the highest pixels of two maps; of equal pixels the first counts."""
    peaks = [np.unravel_index(int(values.argmax()), values.shape) for values in (first, second)]
    return math.dist(*peaks)
