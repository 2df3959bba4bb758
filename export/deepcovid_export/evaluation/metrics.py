"""Figures of a binary decision: rates and areas with their intervals, and operating points.

Intervals, the area under the ROC curve and the rules of thresholds are the runtime's own
(`deepcovid_edge.decision`), so that a cart and `evaluate` cannot differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision import statistics
from deepcovid_edge.decision.thresholds import operating_point, threshold_for_new_images

Scores = NDArray[np.floating[Any]]
Truth = NDArray[np.bool_]

__all__ = [
    "Scores",
    "Truth",
    "area",
    "at_threshold",
    "auc",
    "auc_interval",
    "normal_half_width",
    "normal_interval",
    "operating_point",
    "rate",
    "threshold_for_new_images",
]


def auc(scores: Scores, positive: Truth) -> float | None:
    """Area under the ROC curve, or None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    return statistics.auc(scores.astype(np.float64), positive)


def auc_interval(scores: Scores, positive: Truth) -> tuple[float, float] | None:
    """95 % interval of the area under the curve, or None where a class is missing.

    `statistics.area_interval`.
    """
    if positive.all() or not positive.any():
        return None
    return statistics.area_interval(scores.astype(np.float64), positive)


def area(scores: Scores, positive: Truth) -> dict[str, Any]:
    """Counts, area under the curve and its interval, as plain values for JSON."""
    interval = auc_interval(scores, positive)
    return {
        "images": len(scores),
        "positives": int(positive.sum()),
        "auc": auc(scores, positive),
        "auc_interval_95": None if interval is None else list(interval),
    }


def normal_half_width(successes: int, trials: int) -> float:
    """Half of the 95 % interval of a proportion by the normal approximation, as the paper has it.

    1.96 sqrt(r (1 - r) / n), Minaee et al. 2020 (arXiv 2004.09363).
    It is zero at rates of 0 and 1, which is why Wilson's interval stands beside it.

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


def rate(successes: int, trials: int) -> dict[str, Any]:
    """A proportion with its 95 % intervals (Wilson's, and the normal one); None without trials."""
    if trials == 0:
        return {
            "value": None,
            "successes": 0,
            "trials": 0,
            "interval_95": None,
            "interval_95_normal": None,
        }
    return {
        "value": successes / trials,
        "successes": successes,
        "trials": trials,
        "interval_95": list(statistics.wilson(successes, trials)),
        "interval_95_normal": list(normal_interval(successes, trials)),
    }


def at_threshold(scores: Scores, positive: Truth, threshold: float) -> dict[str, Any]:
    """Sensitivity and specificity of `score >= threshold`, each with its intervals."""
    called = scores >= threshold
    return {
        "sensitivity": rate(int((called & positive).sum()), int(positive.sum())),
        "specificity": rate(int((~called & ~positive).sum()), int((~positive).sum())),
    }
