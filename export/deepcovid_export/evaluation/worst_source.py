"""Thresholds that hold at every source, not on the mean of all: the worst source counts.

Images pooled over sources hide the source that a threshold fails: a large source outvotes a small
one. So each source gives its own threshold, and the one that asks most is taken. A source with too
few images of a class to promise a share has no vote, and the threshold promises nothing for it.
Where no source has a vote, all images are pooled: then the share is that of all sources together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.thresholds import (
    allowed_alarms,
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
        expected: Share of new images that is expected to be called positive: of positives at
            least, of negatives at most. It holds for each source with a vote, or where all were
            pooled for all of them together.
    """

    threshold: float
    source: str
    by_source: Mapping[str, float]
    expected: float

    @property
    def where(self) -> str:
        """Where the expected share holds, such as `at each of A, B`."""
        if not self.by_source:
            return "over all sources together, as none has enough images"
        return f"at each of {', '.join(name or 'not stated' for name in self.by_source)}"


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
    shares = {}

    def of(name: str, own: Scores, truth: Truth) -> float | None:
        if not truth.any():
            return None
        threshold, shares[name] = threshold_for_new_images(own, truth, sensitivity)
        return threshold if shares[name] >= sensitivity - 1e-9 else None

    found = dict(_of_sources(scores, positive, sources, of))
    if not found:
        pooled, expected = threshold_for_new_images(scores, positive, sensitivity)
        return WorstSource(pooled, "", {}, expected)
    source = min(found, key=lambda name: found[name])
    return WorstSource(found[source], source, found, min(shares[name] for name in found))


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
        The threshold; None where even all negatives together are too few to promise it. Where too
        many of a source have the probability 1, it is 1, and `expected` is more than `alarms`.
    """
    shares = {}

    def of(name: str, own: Scores, truth: Truth) -> float | None:
        found = _sparing(own[~truth], alarms)
        if found is None:
            return None
        threshold, shares[name] = found
        return threshold

    found = dict(_of_sources(scores, positive, sources, of))
    if not found:
        pooled = _sparing(scores[~positive], alarms)
        return pooled and WorstSource(pooled[0], "", {}, pooled[1])
    source = max(found, key=lambda name: (found[name], shares[name]))
    return WorstSource(found[source], source, found, max(shares.values()))


def _sparing(negatives: Scores, alarms: float) -> tuple[float, float] | None:
    """A threshold, and the share of new negatives that reaches it at most; None for too few."""
    if allowed_alarms(len(negatives), alarms) < 1:
        return None
    threshold = threshold_for_new_negatives(negatives, alarms)
    if threshold is not None:
        return threshold, alarms
    certain = int(np.count_nonzero(negatives >= 1.0))  # no threshold spares them
    return 1.0, (certain + 1) / (len(negatives) + 1)


def _of_sources(
    scores: Scores,
    positive: Truth,
    sources: Sequence[str],
    threshold: Callable[[str, NDArray[np.floating], Truth], float | None],
) -> Iterator[tuple[str, float]]:
    names = np.array(sources)
    for name in sorted(set(names.tolist())):
        own = threshold(name, scores[names == name], positive[names == name])
        if own is not None:
            yield name, own
