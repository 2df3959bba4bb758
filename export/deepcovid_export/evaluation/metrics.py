"""Figures of a binary decision: rates and areas with their intervals.

Wilson's interval and the area under the ROC curve come from `deepcovid_edge.decision`, so that a
cart and `evaluate` cannot differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision import statistics
from deepcovid_export.evaluation.results import Accuracy, Area, Rate

Scores = NDArray[np.floating[Any]]
"""Probability of the positive class, of shape (images,)."""
Truth = NDArray[np.bool_]
"""Whether each image is positive, of shape (images,)."""


def auc(scores: Scores, positive: Truth) -> float | None:
    """Area under the ROC curve, or None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    return statistics.auc(scores.astype(np.float64), positive)


def auc_interval(scores: Scores, positive: Truth) -> tuple[float, float] | None:
    """95 % interval of the area (`statistics.area_interval`), or None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    return statistics.area_interval(scores.astype(np.float64), positive)


def area(scores: Scores, positive: Truth) -> Area:
    """Counts, area under the curve and its interval."""
    count, interval = int(positive.sum()), auc_interval(scores, positive)
    return Area(len(scores), count, auc(scores, positive), interval)


def normal_half_width(successes: int, trials: int) -> float:
    """Half of the 95 % interval of a proportion by the normal approximation.

    1.96 sqrt(r (1 - r) / n), as in Minaee et al. 2020 (arXiv 2004.09363). It is zero at rates of 0
    and 1, so reports show Wilson's interval beside it.

    Raises:
        ValueError: There are no trials.
    """
    if trials < 1:
        raise ValueError("no trials: a proportion has no interval")
    share = successes / trials
    return statistics.Z_95 * math.sqrt(share * (1 - share) / trials)


def normal_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion by the normal approximation, cut to 0 to 1."""
    half = normal_half_width(successes, trials)
    share = successes / trials
    return max(0.0, share - half), min(1.0, share + half)


def rate(successes: int, trials: int) -> Rate:
    """A proportion with its 95 % intervals, Wilson's and the normal one."""
    if trials == 0:
        return Rate(None, 0, 0, None, None)
    intervals = statistics.wilson(successes, trials), normal_interval(successes, trials)
    return Rate(successes / trials, successes, trials, *intervals)


def at_threshold(scores: Scores, positive: Truth, threshold: float) -> Accuracy:
    """Sensitivity and specificity of `score >= threshold`, each with its intervals."""
    called = scores >= threshold
    return Accuracy(
        rate(int((called & positive).sum()), int(positive.sum())),
        rate(int((~called & ~positive).sum()), int((~positive).sum())),
    )
