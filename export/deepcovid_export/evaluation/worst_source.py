"""Thresholds that hold at every source, not on the mean of all: the worst source counts.

Images pooled over sources hide the source that a threshold fails: a large source outvotes a small
one. So each source gives its own threshold, and the one that asks most is taken. A source with too
few images of a class to promise a share has no vote; it is counted with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.thresholds import (
    threshold_for_new_images,
    threshold_for_new_negatives,
)
from deepcovid_export.evaluation.metrics import Scores, Truth


@dataclass(frozen=True)
class WorstSource:
    """A threshold and the sources that had a vote.

    Attributes:
        threshold: The threshold of the source that asks most.
        source: That source; empty where no source had enough images and all were pooled.
        by_source: Threshold of each source with a vote.
    """

    threshold: float
    source: str
    by_source: Mapping[str, float]


def lowest_threshold(
    scores: Scores, positive: Truth, sources: Sequence[str], sensitivity: float
) -> WorstSource:
    """The highest threshold at which every source's new positives are found often enough.

    Args:
        scores: Probabilities of the positive class, of shape (images,).
        positive: Whether each image is positive, of shape (images,).
        sources: Source of each image.
        sensitivity: Share of a source's new positives to call positive, 0 to 1.

    Raises:
        ValueError: There is no positive image.
    """

    def of(own: Scores, truth: Truth) -> float | None:
        if not truth.any():
            return None
        threshold, expected = threshold_for_new_images(own, truth, sensitivity)
        return threshold if expected >= sensitivity - 1e-9 else None

    found = dict(_of_sources(scores, positive, sources, of))
    if not found:
        return WorstSource(threshold_for_new_images(scores, positive, sensitivity)[0], "", {})
    source = min(found, key=lambda name: found[name])
    return WorstSource(found[source], source, found)


def highest_threshold(
    scores: Scores, positive: Truth, sources: Sequence[str], alarms: float
) -> WorstSource | None:
    """The lowest threshold at which no source's new negatives are called positive too often.

    Args:
        scores: Probabilities of the positive class, of shape (images,).
        positive: Whether each image is positive, of shape (images,).
        sources: Source of each image.
        alarms: Share of a source's new negatives that may be called positive, 0 to 1.

    Returns:
        The threshold; None where even all negatives together are too few to promise it.
    """

    def of(own: Scores, truth: Truth) -> float | None:
        return threshold_for_new_negatives(own[~truth], alarms)

    found = dict(_of_sources(scores, positive, sources, of))
    if found:
        source = max(found, key=lambda name: found[name])
        return WorstSource(found[source], source, found)
    pooled = of(scores, positive)
    return None if pooled is None else WorstSource(pooled, "", {})


def _of_sources(
    scores: Scores,
    positive: Truth,
    sources: Sequence[str],
    threshold: Callable[[NDArray[np.floating], Truth], float | None],
) -> Iterator[tuple[str, float]]:
    names = np.array(sources)
    for name in sorted(set(names.tolist())):
        own = threshold(scores[names == name], positive[names == name])
        if own is not None:
            yield name, own
