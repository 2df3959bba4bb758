"""Figures of a binary decision: rates and areas with their intervals, and operating points.

Wilson's interval, the area under the ROC curve and DeLong's interval are the runtime's own
(`deepcovid_edge.statistics`), so that `verify` on a cart and `evaluate` here cannot differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge import statistics

Scores = NDArray[np.floating[Any]]
Truth = NDArray[np.bool_]
FEW_FILMS = 20
"""With fewer of a class DeLong's interval is not to be trusted."""


def operating_point(scores: Scores, positive: Truth, sensitivity: float) -> float:
    """The highest threshold at which enough positives are called positive.

    It lies midway between the last positive film that is needed and the next lower score, so that
    rounding on another device does not turn that film.

    Args:
        scores: Probabilities of the positive class, of shape (films,).
        positive: Whether each film is positive, of shape (films,).
        sensitivity: Share of the positives to call positive, 0 to 1.

    Raises:
        ValueError: There is no positive film.
    """
    if not positive.any():
        raise ValueError("no positive film: an operating point cannot be chosen")
    found = np.sort(scores[positive])[::-1]
    needed = int(np.ceil(sensitivity * len(found) - 1e-9))
    last = float(found[max(needed, 1) - 1])
    lower = scores[scores < last]
    return (last + float(lower.max())) / 2 if lower.size else last / 2


def threshold_for_new_films(
    scores: Scores, positive: Truth, sensitivity: float
) -> tuple[float, float]:
    """The highest threshold at which that share of new positives is expected to be found.

    Of n positives the k-th highest score is reached by a new one with probability k / (n + 1)
    (split conformal prediction: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random
    World), whatever the scores' distribution. The share found among the n themselves promises more
    than it keeps: 51 of 52 is 98.1 %, but 96.2 % is what to expect.

    Args:
        scores: Probabilities of the positive class, of shape (films,).
        positive: Whether each film is positive, of shape (films,).
        sensitivity: Share of new positives to call positive, 0 to 1.

    Returns:
        The threshold, and the sensitivity to expect, which is below the one asked for where there
        are too few positives to promise it.

    Raises:
        ValueError: There is no positive film.
    """
    known = int(positive.sum())
    needed = min(known, math.ceil(sensitivity * (known + 1) - 1e-9))
    share = needed / known if known else sensitivity
    return operating_point(scores, positive, share), needed / (known + 1)


def auc(scores: Scores, positive: Truth) -> float | None:
    """Area under the ROC curve, or None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    return statistics.auc(scores.astype(np.float64), positive)


def auc_interval(scores: Scores, positive: Truth) -> tuple[float, float] | None:
    """95 % interval of the area under the curve, or None where a class is missing.

    DeLong's; with few films of a class, or where the ranking is perfect, the score interval of
    Newcombe 2006 (Statistics in Medicine 25:559, method 5) on the variance of Hanley and McNeil
    1982 (Radiology 143:29). Of 5 positive and 30 negative films with a true area of 0.94, DeLong's
    holds it 7 times in 10 and Newcombe's 19 in 20 (`tests/test_metrics.py` measures both).
    """
    area = auc(scores, positive)
    if area is None:
        return None
    counts = int(positive.sum()), int((~positive).sum())
    if 0 < area < 1 and min(counts) >= FEW_FILMS:
        return statistics.auc_interval(scores.astype(np.float64), positive)
    return _newcombe(area, *counts)


def _newcombe(area: float, positives: int, negatives: int) -> tuple[float, float]:
    from scipy.optimize import brentq

    mean_count = (positives + negatives) / 2 - 1
    edge = 1e-9

    def excess(true: float) -> float:
        """Distance of the true from the measured area, less 1.96 standard errors."""
        spread = 1 + mean_count * ((1 - true) / (2 - true) + true / (1 + true))
        error = math.sqrt(true * (1 - true) * spread / (positives * negatives))
        return abs(area - true) - statistics.Z_95 * error

    low = brentq(excess, edge, min(area, 1 - edge)) if area > edge else 0.0
    high = brentq(excess, max(area, edge), 1 - edge) if area < 1 - edge else 1.0
    return float(low), float(high)


def area(scores: Scores, positive: Truth) -> dict[str, Any]:
    """Counts, area under the curve and its interval, as plain values for JSON."""
    interval = auc_interval(scores, positive)
    return {
        "films": len(scores),
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
