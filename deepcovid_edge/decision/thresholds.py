"""Thresholds, chosen on labelled images for images to come, and what they achieve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.results import PlainResult, plain_fields
from deepcovid_edge.decision.statistics import PatientRate, Truth

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class OperatingPoint(PlainResult):
    """A threshold with its sensitivity and specificity.

    Attributes:
        threshold: Probability from which an image is called positive.
        rule: How it was chosen; None for the model's own.
        expected_sensitivity: Share of new positives it is expected to find; None where unknown.
        sensitivity: Share of the positive images that are called positive.
        specificity: Share of the negative images that are called negative.
    """

    threshold: float
    rule: str | None
    expected_sensitivity: float | None
    sensitivity: PatientRate
    specificity: PatientRate

    @classmethod
    def of(
        cls,
        threshold: float,
        predicted: Truth,
        positive: Truth,
        patients: Sequence[str],
        *,
        rule: str | None = None,
        expected: float | None = None,
    ) -> OperatingPoint:
        """Count what is predicted positive against the labels, each of shape (images,).

        `patients` names the patient of each image; empty where it is not known.
        """
        found, spared = (
            PatientRate.of_patients(right[group], [*compress(patients, group)])
            for right, group in ((predicted, positive), (~predicted, ~positive))
        )
        return cls(threshold, rule, expected, found, spared)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; without `rule` and `expected_sensitivity` for the model's own."""
        values = plain_fields(self)
        if self.rule is None:
            del values["rule"], values["expected_sensitivity"]
        return values


def find_threshold(scores: Scores, positive: Truth, sensitivity: float) -> float:
    """The highest threshold at which enough positives are called positive.

    It lies midway between the last positive image that is needed and the next lower score, so that
    rounding on another device does not turn that image.

    Args:
        scores: Probabilities of the positive class, of shape (images,).
        positive: Whether each image is positive, of shape (images,).
        sensitivity: Share of the positives to call positive, 0 to 1.

    Raises:
        ValueError: There is no positive image.
    """
    if not positive.any():
        raise ValueError("no positive image: an operating point cannot be chosen")
    found = np.sort(scores[positive])[::-1]
    needed = int(np.ceil(sensitivity * len(found) - 1e-9))
    last = float(found[max(needed, 1) - 1])
    lower = scores[scores < last]
    return (last + float(lower.max())) / 2 if lower.size else last / 2


def threshold_for_new_images(
    scores: Scores, positive: Truth, sensitivity: float
) -> tuple[float, float]:
    """The highest threshold at which that share of new positives is expected to be found.

    Of n positives the k-th highest score is reached by a new one with probability k / (n + 1)
    (split conformal prediction: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random
    World), whatever the scores' distribution. The share found among the n themselves promises more
    than it keeps: 51 of 52 is 98.1 %, but 96.2 % is what to expect.

    Args:
        scores: Probabilities of the positive class, of shape (images,).
        positive: Whether each image is positive, of shape (images,).
        sensitivity: Share of new positives to call positive, 0 to 1.

    Returns:
        The threshold, and the sensitivity to expect, which is below the one asked for where there
        are too few positives to promise it.

    Raises:
        ValueError: There is no positive image.
    """
    known = int(positive.sum())
    needed = min(known, math.ceil(sensitivity * (known + 1) - 1e-9))
    share = needed / known if known else sensitivity
    return find_threshold(scores, positive, share), needed / (known + 1)


def allowed_alarms(negatives: int, alarms: float) -> int:
    """How many known negatives may reach a threshold that new ones reach in a share `alarms`."""
    return math.floor(alarms * (negatives + 1) + 1e-9)


def threshold_for_new_negatives(scores: Scores, alarms: float) -> float | None:
    """The lowest threshold that calls at most that share of new negatives positive.

    The mirror of `threshold_for_new_images`: of n negatives the k-th highest score is reached by a
    new one with probability k / (n + 1).

    Args:
        scores: Probabilities of the positive class of negative images, of shape (images,).
        alarms: Share of new negatives that may be called positive, 0 to 1.

    Returns:
        Midway between the last score that new ones may reach and the next higher; None where the
        images are too few to promise it, or as many of them as may reach it have the highest
        score there is, 1: then no threshold spares the others.
    """
    ordered = np.sort(scores.astype(np.float64))[::-1]
    allowed = allowed_alarms(len(ordered), alarms)
    if allowed < 1:
        return None
    if allowed > len(ordered):
        return 0.0
    last = float(ordered[allowed - 1])
    if last >= 1.0:
        return None
    above = ordered[ordered > last]
    return (last + (float(above[-1]) if len(above) else 1.0)) / 2
