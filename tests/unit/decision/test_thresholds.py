"""Thresholds for images to come: what they do where many images have the highest score."""

from __future__ import annotations

import numpy as np
import pytest

from deepcovid_edge.decision.thresholds import threshold_for_new_negatives


def test_no_threshold_spares_negatives_that_have_the_highest_score() -> None:
    """30 of 100 negatives at 1.0, where 10 may be called positive."""
    scores = np.concatenate([np.ones(30), np.linspace(0, 0.9, 70)])
    assert threshold_for_new_negatives(scores, 0.1) is None
    assert threshold_for_new_negatives(scores, 0.31) == pytest.approx(0.95)


def test_fewer_negatives_at_the_highest_score_than_are_allowed_leave_a_threshold() -> None:
    scores = np.concatenate([np.ones(9), np.linspace(0, 0.9, 91)])
    assert threshold_for_new_negatives(scores, 0.1) == pytest.approx(0.95)


@pytest.mark.parametrize("ones", [0.05, 0.08, 0.1, 0.12])
def test_new_negatives_of_whom_some_have_the_highest_score_are_called_as_promised(
    ones: float,
) -> None:
    """Of draws with a threshold and without: none calls no new negative positive."""
    draw = np.random.default_rng(5)
    called = []
    for _ in range(2000):
        known, new = np.where(draw.random((2, 100)) < ones, 1.0, draw.random((2, 100)) * 0.9)
        threshold = threshold_for_new_negatives(known, 0.1)
        called.append(0.0 if threshold is None else float((new >= threshold).mean()))
    assert np.mean(called) <= 0.1
