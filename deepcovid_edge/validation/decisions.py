"""Decisions as `infer` makes them: with the indeterminate range, not by the threshold alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE
from deepcovid_edge.decision.statistics import Scores
from deepcovid_edge.manifest import ModelManifest

_RISING = np.array([NEGATIVE, INDETERMINATE, POSITIVE])
"""The decisions in the order of the probability."""


@dataclass(frozen=True)
class Decisions:
    """The decisions of two models on the same images.

    Attributes:
        differ: Images on which they are not the same.
        reference: `positive`, `negative` and `indeterminate` to number of images.
        candidate: Likewise.
    """

    differ: int
    reference: Mapping[str, int]
    candidate: Mapping[str, int]

    @classmethod
    def of(
        cls, scores: tuple[Scores, ...], manifests: tuple[ModelManifest, ModelManifest]
    ) -> Decisions:
        """Decide as records do.

        Args:
            scores: Probabilities of the reference and of the candidate, rounded as in records, each
                of shape (images,); NaN for an image without a result or out of distribution, which
                is no decision.
            manifests: Theirs: each model has its own limits.
        """
        old, new = (_decide(*side) for side in zip(scores, manifests, strict=True))
        return cls(int((old != new).sum()), counted(old.tolist()), counted(new.tolist()))


def _decide(scores: Scores, manifest: ModelManifest) -> NDArray[np.str_]:
    span, threshold = manifest.indeterminate_range, manifest.threshold
    limits = (span.low, span.high) if span else (threshold, threshold)
    return np.where(np.isnan(scores), "", _RISING[np.digitize(scores, limits)])


def counted(decisions: Iterable[str | None]) -> dict[str, int]:
    """`positive`, `negative` and `indeterminate` to how many of the decisions are so."""
    found = Counter(decisions)
    return {name: found[name] for name in (POSITIVE, NEGATIVE, INDETERMINATE)}
