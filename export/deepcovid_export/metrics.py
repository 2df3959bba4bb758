"""Figures of a binary decision: scikit-learn's curves, SciPy's intervals, one operating point."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

Scores = NDArray[np.floating[Any]]
Truth = NDArray[np.bool_]


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


def auc(scores: Scores, positive: Truth) -> float | None:
    """Area under the ROC curve, or None where a class is missing."""
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def rate(successes: int, trials: int) -> dict[str, Any]:
    """A proportion with its 95 % interval after Wilson (1927); value None without trials."""
    if trials == 0:
        return {"value": None, "successes": 0, "trials": 0, "interval_95": None}
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return {
        "value": successes / trials,
        "successes": successes,
        "trials": trials,
        "interval_95": [float(interval.low), float(interval.high)],
    }


def at_threshold(scores: Scores, positive: Truth, threshold: float) -> dict[str, Any]:
    """Sensitivity and specificity of `score >= threshold`, each with its interval."""
    called = scores >= threshold
    return {
        "sensitivity": rate(int((called & positive).sum()), int(positive.sum())),
        "specificity": rate(int((~called & ~positive).sum()), int((~positive).sum())),
    }
