"""What differs between two models on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.results import PlainResult, plain_fields
from deepcovid_edge.decision.statistics import Rate


@dataclass(frozen=True)
class Flips:
    """Images on the other side of the threshold than before.

    How many, their share, and its upper limit with 95 % certainty.
    """

    count: int
    share: float
    upper_95: float


@dataclass(frozen=True)
class McNemar:
    """Right answers that were lost and gained, and the p-value of McNemar's exact test."""

    lost: int
    gained: int
    p: float


@dataclass(frozen=True)
class RateChange(PlainResult):
    """A proportion of both models on the same images; the interval is a paired one."""

    reference: Rate
    candidate: Rate
    change: float
    interval_95: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the number of images once."""
        values = {"images": self.reference.trials, **plain_fields(self)}
        for rate in (values["reference"], values["candidate"]):
            del rate["successes"], rate["trials"]
        return values


@dataclass(frozen=True)
class AucChange:
    """The area under the curve of both models on the same images, with DeLong's interval.

    The interval is None where there is none (`statistics.auc_change`).
    """

    reference: float
    candidate: float
    change: float
    interval_95: tuple[float, float] | None


@dataclass(frozen=True)
class Differences:
    """Absolute differences of the same numbers from both models.

    `relative_rmse` is the root of their mean square over the standard deviation of the reference's
    numbers.
    """

    max: float
    median: float
    rmse: float
    relative_rmse: float

    @classmethod
    def of(cls, before: NDArray[Any], now: NDArray[Any]) -> Differences:
        """Compare two arrays of one shape."""
        apart = np.abs(now.astype(np.float64) - before)
        spread, rmse = float(np.std(before)), float(np.sqrt(np.mean(apart**2)))
        relative = rmse / spread if spread else 0.0
        return cls(float(apart.max()), float(np.median(apart)), rmse, relative)


@dataclass(frozen=True)
class FlippedImage:
    """An image whose decision turned, with the probabilities of both models.

    The candidate's is None where its result is no number.
    """

    path: str
    label: str
    source: str
    reference: float
    candidate: float | None


@dataclass(frozen=True)
class GroupChange:
    """The images of one label or source: called positive by each model, and what changed.

    An image without a result counts as turned, with a difference of 1.
    """

    images: int
    called_positive: Mapping[str, int]
    flips: int
    max_probability_difference: float
