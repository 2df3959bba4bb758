"""Curves and tables of a report against scikit-learn's and direct definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn (extra export) draws curves")

from deepcovid_export.evaluation.curves import (
    MOST_POINTS,
    RELIABILITY_BINS,
    THRESHOLDS,
    average_precision,
    confusion,
    curves,
    histograms,
    operating_points,
    reliability,
    threshold_table,
)
from deepcovid_export.evaluation.results import Confusion

IMAGES = st.lists(
    st.tuples(st.integers(0, 40).map(lambda step: step / 40), st.booleans()),
    min_size=2,
    max_size=80,
).filter(lambda images: len({positive for _, positive in images}) == 2)


def arrays(images: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = zip(*images, strict=True)
    return np.array(scores), np.array(positive)


@given(IMAGES)
def test_areas_under_the_stored_curves_are_those_of_the_scores(
    images: list[tuple[float, bool]],
) -> None:
    scores, positive = arrays(images)
    found = curves(scores, positive)
    assert found is not None
    roc, recall = found["roc"], found["precision_recall"]
    area = metrics.auc(roc["false_positive_rate"], roc["sensitivity"])
    assert area == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-4)
    steps = -np.diff(recall["recall"]) * np.array(recall["precision"])[:-1]
    assert steps.sum() == pytest.approx(average_precision(scores, positive), abs=1e-4)


@given(IMAGES)
def test_curve_over_the_threshold_is_what_the_threshold_does(
    images: list[tuple[float, bool]],
) -> None:
    scores, positive = arrays(images)
    found = curves(scores, positive)
    assert found is not None
    over = found["over_threshold"]
    assert over["threshold"][0] > 1
    assert over["threshold"][-1] == 0
    for threshold, sensitivity, specificity in zip(*over.values(), strict=True):
        called = scores >= threshold - 1e-9
        assert called[positive].mean() == pytest.approx(sensitivity, abs=1e-5)
        assert (~called[~positive]).mean() == pytest.approx(specificity, abs=1e-5)


def test_one_class_alone_has_no_curves() -> None:
    assert curves(np.array([0.1, 0.2]), np.array([False, False])) is None
    assert average_precision(np.array([0.1, 0.2]), np.array([False, False])) is None


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    draw = np.random.default_rng(0)
    positive = draw.random(5000) < 0.3
    found = curves(draw.normal(size=5000) + positive, positive)
    assert found is not None
    for curve in found.values():
        assert {len(values) for values in curve.values()} <= set(range(2, MOST_POINTS + 1))
    assert found["roc"]["sensitivity"][0] == 0
    assert found["roc"]["sensitivity"][-1] == 1


@given(IMAGES)
def test_calibration_error_is_the_mean_gap_of_share_and_probability(
    images: list[tuple[float, bool]],
) -> None:
    """Binned one by one: bins are open below and closed above, the first closed on both sides."""
    scores, positive = arrays(images)
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    gaps = 0.0
    for low, high in pairwise(edges):
        inside = (scores <= high) & ((scores > low) | (low == 0))
        if inside.any():
            gaps += abs(positive[inside].mean() - scores[inside].mean()) * inside.sum()
    found = reliability(scores, positive)
    assert found.expected_calibration_error == pytest.approx(gaps / len(scores), abs=1e-9)
    assert sum(found.bins["images"]) == len(scores)
    assert len({len(values) for values in found.bins.values()}) == 1
    assert found.brier == pytest.approx(np.mean((scores - positive) ** 2))


@given(IMAGES)
def test_histograms_lose_no_image(images: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(images)
    found = histograms(scores, ["covid" if truth else "normal" for truth in positive])
    assert sum(found.images["covid"]) == positive.sum()
    assert sum(found.images["normal"]) == (~positive).sum()


def test_confusion_has_every_class_even_one_without_images() -> None:
    found = confusion(np.array([0, 0, 2]), np.array([0, 2, 2]), ("a", "b", "c"))
    assert found == Confusion(["a", "b", "c"], [[1, 0, 1], [0, 0, 0], [0, 0, 1]])


def test_threshold_table_holds_the_models_own_threshold_in_its_place() -> None:
    scores, positive = np.array([0.02, 0.6, 0.9]), np.array([False, True, True])
    rows = threshold_table(scores, positive, 0.07)
    assert [row.threshold for row in rows] == sorted({*THRESHOLDS, 0.07})
    assert [row.threshold for row in rows if row.own] == [0.07]
    assert rows[-1].sensitivity.successes == 0


@given(IMAGES)
def test_operating_points_reach_what_they_are_named_after(images: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(images)
    own, sensitive, *specific = operating_points(scores, positive, 0.5, "chosen elsewhere")
    assert own.threshold == 0.5
    assert own.origin == "chosen elsewhere"
    assert sensitive.sensitivity.value is not None
    assert sensitive.sensitivity.value >= 0.98
    for point in specific:
        assert point.specificity.value is not None
        assert point.specificity.value >= 0.95
    assert specific or (scores[~positive] == 1).mean() > 0.05
