"""Bootstrap over patients: images of one patient are drawn together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import UsageError
from deepcovid_export.evaluation.metrics import Scores, Truth
from deepcovid_export.evaluation.results import Interval, PatientIntervals

Weights = NDArray[np.float64]
_CHUNK = 250
"""Replicates that are computed at once; memory is this times the images."""
FEWEST_PATIENTS = 10
"""Of a class, for an interval.

Percentile intervals of few are too narrow (Hesterberg 2015, The American Statistician 69:371): that
of a mean of 10 has 0.82 of the width of Student's, one of 5 has 0.63.
"""


@dataclass(frozen=True)
class BootstrapSettings:
    """How often patients are drawn.

    Attributes:
        replicates: Draws of as many patients as there are, with replacement.
        seed: Seed of the draws.
    """

    replicates: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 100:
            raise UsageError(f"replicates: got {self.replicates}, expected 100 or more")


def bootstrap(
    scores: Scores,
    positive: Truth,
    patients: Sequence[str],
    threshold: float,
    settings: BootstrapSettings | None = None,
) -> PatientIntervals | None:
    """95 % percentile intervals over draws of patients (Efron and Tibshirani 1993, chapter 13).

    An image without a patient counts as a patient of its own. Sensitivity and specificity are taken
    at the threshold. A figure has no interval where a class that it needs has fewer than
    `FEWEST_PATIENTS` (10) patients, or where all draws give the same value, such as 100 %: draws of
    the same images do not show what others would give.

    Returns:
        The intervals; None where no patient is known.
    """
    settings = settings or BootstrapSettings()
    if not any(patients):
        return None
    count, owner = number_patients(patients)
    enough = [_patients_among(owner, group) >= FEWEST_PATIENTS for group in (positive, ~positive)]
    shown = {"sensitivity": enough[0], "specificity": enough[1]}
    draws: dict[str, list[Weights]] = {}
    for weights in _weights(count, owner, settings):
        for name, values in _figures(weights, scores, positive, threshold).items():
            draws.setdefault(name, []).append(values)
    return PatientIntervals(
        patients=count,
        images_without_patient=sum(not patient for patient in patients),
        replicates=settings.replicates,
        seed=settings.seed,
        **{
            name: _interval(np.concatenate(parts)) if shown.get(name, all(enough)) else None
            for name, parts in draws.items()
        },
    )


def has_few_patients(positive: Truth, patients: Sequence[str]) -> bool:
    """Whether patients are known, and a class has fewer than `FEWEST_PATIENTS` of them."""
    _, owner = number_patients(patients)
    fewest = min(_patients_among(owner, group) for group in (positive, ~positive))
    return any(patients) and fewest < FEWEST_PATIENTS


def _patients_among(owner: NDArray[np.intp], chosen: Truth) -> int:
    return len(np.unique(owner[chosen]))


def number_patients(patients: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """How many patients there are, and the number of each image's, of shape (images,).

    An image without a patient counts as a patient of its own.
    """
    names = [patient or f"\0image {number}" for number, patient in enumerate(patients)]
    unique, owner = np.unique(names, return_inverse=True)
    return len(unique), owner


def _weights(
    patients: int, owner: NDArray[np.intp], settings: BootstrapSettings
) -> Iterator[Weights]:
    """How often each image occurs in each replicate, of shape (replicates, images), in chunks."""
    draw = np.random.default_rng(settings.seed)
    for start in range(0, settings.replicates, _CHUNK):
        size = min(_CHUNK, settings.replicates - start)
        times = draw.multinomial(patients, np.full(patients, 1 / patients), size=size)
        yield times[:, owner].astype(np.float64)


def _figures(
    weights: Weights, scores: Scores, positive: Truth, threshold: float
) -> dict[str, Weights]:
    """Figures of every replicate, each of shape (replicates,); NaN where a class is missing."""
    called = scores >= threshold
    order = np.argsort(scores)
    starts = np.unique(scores[order], return_index=True)[1]  # images of equal score are one step
    of_positive, of_negative = (
        np.add.reduceat((weights * group)[:, order], starts, axis=1)
        for group in (positive, ~positive)
    )
    positives, negatives = of_positive.sum(axis=1), of_negative.sum(axis=1)
    found = of_positive[:, ::-1].cumsum(axis=1)
    alarms = of_negative[:, ::-1].cumsum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = of_negative.cumsum(axis=1) - of_negative / 2
        area = (of_positive * below).sum(axis=1) / (positives * negatives)
        precision = np.nan_to_num(found / (found + alarms))
        average = (precision * of_positive[:, ::-1]).sum(axis=1) / positives
        return {
            "sensitivity": weights @ (called & positive) / positives,
            "specificity": weights @ (~called & ~positive) / negatives,
            "auc": area,
            "average_precision": average,
        }


def _interval(values: Weights) -> Interval | None:
    known = values[np.isfinite(values)]
    if not known.size or known.min() == known.max():
        return None
    low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return low, high
