"""Figures of a binary decision: rates and areas with their intervals.

Wilson's interval and the area under the ROC curve come from `deepcovid_edge.decision`, so that a
cart and `evaluate` cannot differ.
"""

from __future__ import annotations

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


def at_threshold(scores: Scores, positive: Truth, threshold: float) -> Accuracy:
    """Sensitivity and specificity of `score >= threshold`, each with its intervals."""
    called = scores >= threshold
    return Accuracy(
        Rate(int((called & positive).sum()), int(positive.sum())),
        Rate(int((~called & ~positive).sum()), int((~positive).sum())),
    )
