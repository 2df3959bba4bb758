"""Statistics of decisions and of repeated measurements.

All but `student_quantile` need NumPy alone, so that a cart can check an engine.

Each formula names its source; tests compare them with SciPy, statsmodels and scikit-learn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.errors import require

Truth = NDArray[np.bool_]
Scores = NDArray[np.float64]
Z_95 = 1.959963984540054
FEW_IMAGES = 200
"""With fewer images of a class DeLong's standard error is too small for areas near 1."""

FEWEST_FOR_CHANGE = 10
"""Images of a class for an interval of a change of the area: a normal one of fewer is too narrow.

With 10, its 1.96 is 0.87 of Student's 2.26; with 5, 0.71 of 2.78.
"""
_ROUNDING = 1e-12
"""A standard error of 0 as floating-point numbers give it."""


@dataclass(frozen=True)
class Rate(PlainResult):
    """A proportion: how many of how many, with its 95 % interval (Wilson's).

    Attributes:
        successes: Such as the positive images that were called positive.
        trials: Such as all positive images.
    """

    successes: int
    trials: int

    @classmethod
    def of(cls, right: Truth) -> Rate:
        """The share of True in an array."""
        return cls(int(right.sum()), right.size)

    @property
    def value(self) -> float | None:
        """The proportion, 0 to 1; None without trials."""
        return self.successes / self.trials if self.trials else None

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson's interval; 0 to 1 without trials."""
        return wilson(self.successes, self.trials)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; value and interval are None without trials."""
        return {
            "value": self.value,
            "successes": self.successes,
            "trials": self.trials,
            "interval_95": list(self.interval_95) if self.trials else None,
        }

    def text(self) -> str:
        """Such as `98.0% [93.1%, 99.5%]`; `-` without trials."""
        low, high = self.interval_95
        return "-" if self.value is None else f"{self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True)
class PatientRate(Rate):
    """A proportion of images of which a patient may have several.

    Its interval is that of fewer images. The design effect is 1 + (b - 1) rho, and b is
    sum(m^2) / n for patients of m images each (Kish 1965, Survey Sampling, chapters 5 and 6). Here
    rho is 1: all images of a patient are taken to be right or wrong together. So n images count as
    n^2 / sum(m^2).

    Attributes:
        effective_trials: As how many independent images they count, rounded down.
    """

    effective_trials: int

    @classmethod
    def of_patients(cls, right: Truth, patients: Sequence[str]) -> PatientRate:
        """The share of True in an array; an image without a patient has one of its own."""
        images = Counter(filter(None, patients))
        squares = sum(count**2 for count in images.values()) + right.size - images.total()
        return cls(int(right.sum()), right.size, right.size**2 // squares if squares else 0)

    @property
    def is_of_fewer(self) -> bool:
        """Whether a patient has several of the images."""
        return self.effective_trials < self.trials

    @property
    def effective_successes(self) -> tuple[int, int]:
        """The same share of the effective images, rounded down and up."""
        product, most = self.successes * self.effective_trials, max(self.trials, 1)
        return product // most, -(-product // most)

    @property
    def interval_95(self) -> tuple[float, float]:
        """Wilson's interval of the effective images, the wider way where they are rounded."""
        low, high = (wilson(part, self.effective_trials) for part in self.effective_successes)
        return low[0], high[1]

    def as_dict(self) -> dict[str, Any]:
        """As `Rate`; with the effective images where they are fewer."""
        own = {"effective_trials": self.effective_trials} if self.is_of_fewer else {}
        return {**super().as_dict(), **own}


@dataclass(frozen=True)
class Estimate(PlainResult):
    """A figure with its 95 % interval.

    Attributes:
        value: Such as an area under the curve.
        interval_95: Its lower and upper end.
    """

    value: float
    interval_95: tuple[float, float]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, without continuity correction)."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, Z_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    half = Z_95 * spread / (1 + square / trials)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def student_quantile(freedom: float, share: float) -> float:
    """The quantile of Student's t distribution.

    Args:
        freedom: Degrees of freedom, above 0.
        share: Share of the distribution below the quantile, between 0 and 1.

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    scipy = require("scipy", extra="export")
    return float(scipy.special.stdtrit(freedom, share))


def paired_difference(reference: Truth, candidate: Truth) -> tuple[float, tuple[float, float]]:
    """Change of a proportion measured twice on the same images, with its 95 % interval.

    Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson's limits of both proportions,
    joined with their correlation.

    Args:
        reference: Whether each image was right before, of shape (N,).
        candidate: Whether each image is right now, of shape (N,).

    Returns:
        Candidate less reference, and the interval; (0, (-1, 1)) without images.
    """
    count = len(reference)
    if count == 0:
        return 0.0, (-1.0, 1.0)
    both = int((reference & candidate).sum())
    lost, gained = int((reference & ~candidate).sum()), int((~reference & candidate).sum())
    neither = count - both - lost - gained
    first, second = (both + gained) / count, (both + lost) / count
    low1, high1 = wilson(both + gained, count)
    low2, high2 = wilson(both + lost, count)
    phi = _phi(both, lost, gained, neither)
    change = first - second
    below, above = first - low1, high2 - second
    low = change - math.sqrt(below**2 - 2 * phi * below * above + above**2)
    over, under = high1 - first, second - low2
    high = change + math.sqrt(over**2 - 2 * phi * over * under + under**2)
    return change, (low, high)


def _phi(both: int, lost: int, gained: int, neither: int) -> float:
    """Newcombe's correlation of the two answers, continuity corrected where positive."""
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if product == 0:
        return 0.0
    determinant = float(both * neither - lost * gained)
    count = both + lost + gained + neither
    if determinant > 0:
        determinant = max(determinant - count / 2, 0.0)
    return determinant / math.sqrt(product)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value of McNemar's exact test: a fair coin's chance of so uneven a split."""
    flips = lost + gained
    tail = sum(math.comb(flips, number) for number in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / (1 << flips))


def upper_bound(events: int, trials: int) -> float:
    """One-sided 95 % upper limit of a proportion (Clopper and Pearson 1934), by bisection."""
    if trials == 0 or events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(_binomial(number, trials, middle) for number in range(events + 1))
        low, high = (middle, high) if tail > 0.05 else (low, middle)
    return high


def _binomial(events: int, trials: int, share: float) -> float:
    """Probability of a number of events, by logarithms: the coefficient overflows beyond 1029."""
    ways = math.lgamma(trials + 1) - math.lgamma(events + 1) - math.lgamma(trials - events + 1)
    return math.exp(ways + events * math.log(share) + (trials - events) * math.log1p(-share))


def auc(scores: Scores, positive: Truth) -> float:
    """Area under the ROC curve as the share of pairs in right order (Mann and Whitney 1947)."""
    return float(_placements(scores, positive)[0].mean())


def area_interval(scores: Scores, positive: Truth) -> tuple[float, float]:
    """95 % interval of the area under the curve.

    With fewer than 200 images of a class, the score interval of Newcombe 2006 (Statistics in
    Medicine 25:559, method 5) on the variance of Hanley and McNeil 1982 (Radiology 143:29). With
    more, DeLong's standard error (1988) on the logit scale (Pepe 2003, The Statistical Evaluation
    of Medical Tests for Classification and Prediction, section 5.2.5). That error is 0 where the
    ranking is perfect or all scores are equal: then Newcombe's interval is taken here too.

    DeLong's own interval, symmetric about the area, is too narrow and too high for areas near 1:
    of 20 positive and 300 negative images with a true area of 0.99 it holds it 3 times in 4
    (`tests/unit/export/evaluation/test_metrics.py` measures these).
    """
    parts = _placements(scores, positive)
    area, error = float(parts[0].mean()), _standard_error(parts)
    if min(map(len, parts)) < FEW_IMAGES or error == 0:
        return newcombe(area, *map(len, parts))
    return _logit_interval(area, error)


def _logit_interval(area: float, error: float) -> tuple[float, float]:
    """The normal interval of log(area / (1 - area)), whose standard error is the delta method's."""
    centre, half = math.log(area / (1 - area)), Z_95 * error / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - half, centre + half))
    return low, high


def newcombe(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % score interval of an area: where the true one is 1.96 of its standard errors away."""
    mean_count = (positives + negatives) / 2 - 1

    def is_near(true: float) -> bool:
        spread = 1 + mean_count * ((1 - true) / (2 - true) + true / (1 + true))
        error = math.sqrt(true * (1 - true) * spread / (positives * negatives))
        return abs(area - true) <= Z_95 * error

    def last_near(far: float) -> float:
        near = area
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (middle, far) if is_near(middle) else (near, middle)
        return near

    return last_near(0.0), last_near(1.0)


def auc_change(
    reference: Scores, candidate: Scores, positive: Truth
) -> tuple[float, tuple[float, float] | None]:
    """Change of the area under the curve on the same images, with its 95 % interval.

    DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837). There is no interval (None) with
    fewer than `FEWEST_FOR_CHANGE` images of a class, nor where no image's rank changed, or each by
    as much: the standard error is 0 then, which does not show what other images would give.

    Args:
        reference: Scores before, of shape (N,).
        candidate: Scores now, of shape (N,).
        positive: Whether each image is positive, of shape (N,); both kinds occur.
    """
    before, now = _placements(reference, positive), _placements(candidate, positive)
    changes = [second - first for first, second in zip(before, now, strict=True)]
    change, half = float(now[0].mean() - before[0].mean()), Z_95 * _standard_error(changes)
    if half < _ROUNDING or min(map(len, changes)) < FEWEST_FOR_CHANGE:
        return change, None
    return change, (change - half, change + half)


def _standard_error(parts: Sequence[Scores]) -> float:
    """Of the area, from the placements of positives and of negatives (DeLong)."""
    return math.sqrt(sum(np.var(part, ddof=1) / len(part) for part in parts if len(part) > 1))


def _placements(scores: Scores, positive: Truth) -> tuple[Scores, Scores]:
    """For each positive the share of negatives below it; for each negative, positives above."""
    above, below = scores[positive], np.sort(scores[~positive])
    for_positive = _share_below(above, below)
    for_negative = 1 - _share_below(scores[~positive], np.sort(above))
    return for_positive, for_negative


def _share_below(values: NDArray[Any], ordered: NDArray[Any]) -> Scores:
    """Share of `ordered` below each value, equal ones counted half."""
    left = np.searchsorted(ordered, values, side="left")
    right = np.searchsorted(ordered, values, side="right")
    share: Scores = (left + right) / (2 * len(ordered))
    return share
