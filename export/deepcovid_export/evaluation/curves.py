"""What a report draws and tabulates: curves of scikit-learn, tables and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    precision_recall_curve,
    roc_curve,
)

from deepcovid_edge.decision.thresholds import find_threshold
from deepcovid_export.evaluation.metrics import Scores, Truth, at_threshold
from deepcovid_export.evaluation.results import (
    Columns,
    Confusion,
    Histograms,
    OperatingPoint,
    Reliability,
    ThresholdRow,
)

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds of the table; the model's own is added."""
HISTOGRAM_BINS = 25
RELIABILITY_BINS = 10
MOST_POINTS = 500
"""A curve of more points is thinned evenly."""
_DECIMALS = 6
_ABOVE_ALL = 1 + 10**-_DECIMALS
"""A threshold that no probability reaches."""


def curves(scores: Scores, positive: Truth) -> dict[str, Columns] | None:
    """ROC, precision over recall, and sensitivity and specificity over the threshold.

    Returns:
        Lists of equal length for each curve; None where a class is missing.
    """
    if positive.all() or not positive.any():
        return None
    false_rate, true_rate, _ = roc_curve(positive, scores)
    precision, recall, _ = precision_recall_curve(positive, scores, drop_intermediate=True)
    # Every score is a step here: what lies on a line of the ROC curve is still one of this curve.
    false_all, true_all, threshold = roc_curve(positive, scores, drop_intermediate=False)
    return {
        "roc": _lists(false_positive_rate=false_rate, sensitivity=true_rate),
        "precision_recall": _lists(recall=recall, precision=precision),
        "over_threshold": _lists(  # from where nothing is called positive to where all is
            threshold=np.append(np.minimum(threshold, _ABOVE_ALL), 0.0),
            sensitivity=np.append(true_all, 1.0),
            specificity=np.append(1 - false_all, 0.0),
        ),
    }


def average_precision(scores: Scores, positive: Truth) -> float | None:
    """Area under the precision-recall curve as steps, or None without a positive image."""
    return float(average_precision_score(positive, scores)) if positive.any() else None


def threshold_table(scores: Scores, positive: Truth, own: float) -> list[ThresholdRow]:
    """Sensitivity and specificity at chosen thresholds and at the model's own, ascending."""
    return [
        ThresholdRow(value, value == own, **vars(at_threshold(scores, positive, value)))
        for value in sorted({*THRESHOLDS, own})
    ]


def operating_points(
    scores: Scores, positive: Truth, own: float, origin: str
) -> list[OperatingPoint]:
    """The model's own operating point, then two that are read off the images themselves.

    A point that no threshold reaches (a negative image with a probability of 1) is missing.

    `own` is the model's threshold and `origin` says how it was chosen.
    """
    points = [("own", own, origin)]
    if positive.any() and not positive.all():
        read_off = "read off these images: no promise for others"
        points.append(("sensitivity 98 %", find_threshold(scores, positive, 0.98), read_off))
        # A negative image that is called negative is a "positive found" of the mirrored scores.
        mirrored = 1 - find_threshold(1 - scores, ~positive, 0.95)
        if (scores[~positive] < mirrored).mean() >= 0.95:
            points.append(("specificity 95 %", mirrored, read_off))
    return [
        OperatingPoint(name, value, text, **vars(at_threshold(scores, positive, value)))
        for name, value, text in points
    ]


def confusion(
    truth: NDArray[np.intp], predicted: NDArray[np.intp], classes: Sequence[str]
) -> Confusion:
    """Images of each class (rows) by the class that they are called (columns)."""
    counts = confusion_matrix(truth, predicted, labels=range(len(classes)))
    return Confusion(list(classes), counts.tolist())


def histograms(scores: Scores, labels: Sequence[str]) -> Histograms:
    """Number of images by probability of the positive class, for each label of the data set."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    names = np.array(labels)
    counts = {
        name: np.histogram(scores[names == name], edges)[0].tolist() for name in sorted(set(labels))
    }
    return Histograms(edges.round(_DECIMALS).tolist(), counts)


def reliability(scores: Scores, positive: Truth) -> Reliability:
    """Reliability in ten bins of equal width, expected calibration error and Brier score.

    The expected calibration error is the mean distance of share and probability over the images
    (Naeini, Cooper and Hauskrecht 2015, AAAI), here of the positive class.
    """
    share, probability = calibration_curve(positive, scores, n_bins=RELIABILITY_BINS)
    inner = np.linspace(0, 1, RELIABILITY_BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner, scores), minlength=RELIABILITY_BINS)
    weights = counts[counts > 0] / len(scores)
    columns = _lists(probability=probability, share_positive=share)
    return Reliability(
        bins={"images": counts[counts > 0].tolist(), **columns},
        expected_calibration_error=float(weights @ np.abs(share - probability)),
        brier=float(brier_score_loss(positive, scores, pos_label=True)),
    )


def _lists(**columns: NDArray[Any]) -> Columns:
    """Columns of one length as rounded lists, thinned."""
    count = len(next(iter(columns.values())))
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    return {name: values[kept].round(_DECIMALS).tolist() for name, values in columns.items()}
