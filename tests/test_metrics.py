"""Figures: the operating point and the intervals, against definitions and the paper's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="scikit-learn (extra export) computes the figures")

from deepcovid_export.metrics import at_threshold, auc, operating_point, rate


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=80),
    st.lists(st.floats(0, 1), max_size=80),
    st.floats(0.01, 1),
)
def test_operating_point_keeps_the_sensitivity_and_is_the_highest_that_does(
    positives: list[float], negatives: list[float], sensitivity: float
) -> None:
    scores = np.array(positives + negatives)
    truth = np.array([True] * len(positives) + [False] * len(negatives))
    threshold = operating_point(scores, truth, sensitivity)
    needed = np.ceil(sensitivity * len(positives) - 1e-9)
    assert (scores[truth] >= threshold).sum() >= needed
    for higher in sorted({score for score in positives if score > threshold}):
        kept = (scores[truth] > higher).sum()
        assert kept < needed or (scores[truth] >= higher).sum() >= needed
    without = at_threshold(scores, truth, threshold)["sensitivity"]["value"]
    assert without >= sensitivity - 1e-9


def test_operating_point_lies_between_two_films() -> None:
    scores = np.array([0.9, 0.8, 0.3, 0.6, 0.1])
    truth = np.array([True, True, True, False, False])
    assert operating_point(scores, truth, 0.98) == pytest.approx(0.2)
    assert operating_point(scores, truth, 0.6) == pytest.approx(0.7)


def test_operating_point_needs_a_positive() -> None:
    with pytest.raises(ValueError, match="no positive film"):
        operating_point(np.array([0.1]), np.array([False]), 0.98)


def test_wilson_interval_of_98_of_100() -> None:
    """Newcombe 1998, method 3 (Wilson without continuity correction)."""
    figures = rate(98, 100)
    assert figures["value"] == 0.98
    assert figures["interval_95"] == pytest.approx([0.9300, 0.9945], abs=1e-4)


def test_rate_without_trials_is_no_number() -> None:
    assert rate(0, 0)["value"] is rate(0, 0)["interval_95"] is None


def test_auc_needs_both_classes() -> None:
    assert auc(np.array([0.1, 0.9]), np.array([True, True])) is None
    assert auc(np.array([0.1, 0.9]), np.array([False, True])) == 1.0
