"""Decisions as `infer` makes them: with the indeterminate range, not by the threshold alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE
from deepcovid_edge.decision.statistics import Scores
from deepcovid_edge.manifest import IndeterminateRange

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
    def of(cls, before: Scores, now: Scores, span: IndeterminateRange) -> Decisions:
        """Decide as records do.

        Args:
            before: Probabilities of the reference, rounded as in records, of shape (images,).
            now: Those of the candidate; NaN for an image without a result, which is no decision.
            span: The reference's indeterminate range.
        """
        old, new = (
            np.where(np.isnan(it), "", _RISING[np.digitize(it, (span.low, span.high))])
            for it in (before, now)
        )
        return cls(int((old != new).sum()), counted(old.tolist()), counted(new.tolist()))


def counted(decisions: Iterable[str | None]) -> dict[str, int]:
    """`positive`, `negative` and `indeterminate` to how many of the decisions are so."""
    found = Counter(decisions)
    return {name: found[name] for name in (POSITIVE, NEGATIVE, INDETERMINATE)}
