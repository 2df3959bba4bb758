"""Figures: operating points, rates and areas, against scikit-learn, statsmodels and the paper."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="scikit-learn (extra export) is the reference")

from sklearn.metrics import roc_auc_score

from deepcovid_edge.decision.thresholds import find_threshold, threshold_for_new_images
from deepcovid_export.evaluation.metrics import (
    Scores,
    Truth,
    area,
    at_threshold,
    auc,
    auc_interval,
)
from deepcovid_export.evaluation.results import Rate, normal_half_width, normal_interval

TRUTH = st.lists(st.booleans(), min_size=2, max_size=60).filter(lambda t: any(t) and not all(t))


def scores_of(data: st.DataObject, truth: list[bool], steps: int = 20) -> np.ndarray:
    """Scores on a coarse grid, so that there are ties."""
    drawn = data.draw(st.lists(st.integers(0, steps), min_size=len(truth), max_size=len(truth)))
    return np.array(drawn) / steps


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
    threshold = find_threshold(scores, truth, sensitivity)
    needed = np.ceil(sensitivity * len(positives) - 1e-9)
    assert (scores[truth] >= threshold).sum() >= needed
    for higher in sorted({score for score in positives if score > threshold}):
        kept = (scores[truth] > higher).sum()
        assert kept < needed or (scores[truth] >= higher).sum() >= needed
    without = at_threshold(scores, truth, threshold).sensitivity.value
    assert without is not None
    assert without >= sensitivity - 1e-9


def test_operating_point_lies_between_two_images() -> None:
    scores = np.array([0.9, 0.8, 0.3, 0.6, 0.1])
    truth = np.array([True, True, True, False, False])
    assert find_threshold(scores, truth, 0.98) == pytest.approx(0.2)
    assert find_threshold(scores, truth, 0.6) == pytest.approx(0.7)


def test_the_threshold_keeps_on_new_images_what_it_promises() -> None:
    """Drawn again and again, 52 images set it and 52 others classify it."""
    draw = np.random.default_rng(11)
    positive = np.ones(53, bool)
    found, plain = [], []
    for _ in range(4000):
        scores = np.append(draw.normal(0, 1, 52), -9.0)  # a negative far below
        positive[52] = False
        threshold, expected = threshold_for_new_images(scores, positive, 0.98)
        new = draw.normal(0, 1, 52)
        found.append((new >= threshold).mean())
        plain.append((new >= find_threshold(scores, positive, 0.98)).mean())
    assert expected == pytest.approx(52 / 53)
    assert np.mean(found) >= 0.98
    assert np.mean(plain) < 0.98  # midway down to the next score, and still too few


def test_too_few_positives_promise_less_and_say_so() -> None:
    scores = np.array([0.9, 0.8, 0.3, 0.1])
    threshold, expected = threshold_for_new_images(scores, scores > 0.2, 0.98)
    assert threshold == pytest.approx(0.2)
    assert expected == 0.75
    threshold, expected = threshold_for_new_images(scores, scores > 0.2, 0.5)
    assert threshold == pytest.approx(0.55)
    assert expected == 0.5


def test_operating_point_needs_a_positive() -> None:
    with pytest.raises(ValueError, match="no positive image"):
        find_threshold(np.array([0.1]), np.array([False]), 0.98)


@given(st.integers(1, 5000), st.data())
def test_rates_have_the_intervals_of_statsmodels(trials: int, data: st.DataObject) -> None:
    proportion = pytest.importorskip(
        "statsmodels.stats.proportion", reason="statsmodels (extra dev) is the reference"
    )
    successes = data.draw(st.integers(0, trials))
    figures = Rate(successes, trials)
    for name, method in (("interval_95", "wilson"), ("interval_95_normal", "normal")):
        expected = proportion.proportion_confint(successes, trials, 0.05, method=method)
        assert figures.as_dict()[name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "trials", "half"), [(98, 100, 2.7), (2787, 3000, 0.9)], ids=["98 %", "92.9 %"]
)
def test_the_papers_own_intervals_come_out(successes: int, trials: int, half: float) -> None:
    """Minaee et al. 2020: sensitivity 98 % of 100 images, specificity 92.9 % of 3,000."""
    assert round(100 * normal_half_width(successes, trials), 1) == half


def test_wilson_interval_of_98_of_100() -> None:
    """Newcombe 1998, method 3 (Wilson without continuity correction)."""
    figures = Rate(98, 100)
    assert figures.value == 0.98
    assert figures.interval_95 == pytest.approx([0.9300, 0.9945], abs=1e-4)


def test_rate_without_trials_is_no_number() -> None:
    assert Rate(0, 0).as_dict()["value"] is Rate(0, 0).as_dict()["interval_95_normal"] is None
    with pytest.raises(ValueError, match="no trials"):
        normal_interval(0, 0)


@given(TRUTH, st.data())
def test_area_is_scikit_learns_and_lies_in_its_interval(
    truth: list[bool], data: st.DataObject
) -> None:
    scores, positive = scores_of(data, truth), np.array(truth)
    figures = area(scores, positive)
    assert figures.auc == pytest.approx(roc_auc_score(positive, scores))
    assert figures.auc is not None
    assert figures.auc_interval_95 is not None
    low, high = figures.auc_interval_95
    assert 0 <= low <= figures.auc + 1e-9
    assert figures.auc - 1e-9 <= high <= 1


def test_area_needs_both_classes() -> None:
    one_class = np.array([True, True])
    assert auc(np.array([0.1, 0.9]), one_class) is None
    assert auc_interval(np.array([0.1, 0.9]), one_class) is None
    assert auc(np.array([0.1, 0.9]), np.array([False, True])) == 1.0


def test_a_perfect_ranking_of_few_images_is_no_certainty() -> None:
    """DeLong's standard error is 0 there; one image against eleven proves little."""
    scores = np.arange(12) / 12
    low, high = auc_interval(scores, scores == scores.max()) or (1, 1)
    assert 0.2 < low < 0.7
    assert high == 1
    low, high = auc_interval(scores, scores == scores.min()) or (0, 0)
    assert low == 0
    assert 0.3 < high < 0.8


def draws(counts: tuple[int, int], true: float, number: int) -> Iterator[tuple[Scores, Truth]]:
    """Normal scores whose area under the curve is `true`, often measured as 1."""
    apart = NormalDist().inv_cdf(true) * 2**0.5
    draw = np.random.default_rng(counts)
    positive = np.arange(sum(counts)) < counts[0]
    for _ in range(number):
        yield draw.normal(size=len(positive)) + apart * positive, positive


def delongs_interval(scores: Scores, positive: Truth) -> tuple[float, float]:
    """Symmetric about the area (DeLong et al. 1988)."""
    right = (np.sign(scores[positive][:, None] - scores[~positive]) + 1) / 2
    parts = right.mean(axis=1), right.mean(axis=0)
    half = 1.96 * sum(part.var(ddof=1) / len(part) for part in parts) ** 0.5
    return right.mean() - half, right.mean() + half


@pytest.mark.parametrize(
    ("counts", "true"),
    [
        ((2, 2), 0.94),
        ((5, 30), 0.94),
        ((13, 9), 0.94),
        ((30, 30), 0.94),
        ((20, 300), 0.99),
        ((20, 152), 0.98),
        ((40, 150), 0.99),
        ((101, 152), 0.98),
        ((200, 200), 0.99),
        ((250, 400), 0.7),
    ],
)
def test_interval_of_the_area_holds_the_truth_as_often_as_it_says(
    counts: tuple[int, int], true: float
) -> None:
    """Of 400 draws 370 or more: a fair 95 % gives fewer than that once in 40 such tests."""
    held = above = 0
    for scores, positive in draws(counts, true, 400):
        low, high = auc_interval(scores, positive) or (0, 0)
        held += low <= true <= high
        above += low > true
    assert held >= 370
    assert above <= 20


@pytest.mark.parametrize(("counts", "true", "most"), [((5, 30), 0.94, 320), ((20, 300), 0.99, 320)])
def test_delongs_own_interval_of_few_images_holds_the_truth_too_rarely(
    counts: tuple[int, int], true: float, most: int
) -> None:
    pairs = [delongs_interval(*drawn) for drawn in draws(counts, true, 400)]
    assert sum(low <= true <= high for low, high in pairs) < most


def test_interval_of_many_images_is_delongs_on_the_logit_scale() -> None:
    """Pepe 2003, section 5.2.5: log odds plus or minus 1.96 errors over area (1 - area)."""
    for scores, positive in draws((200, 260), 0.9, 3):
        value = roc_auc_score(positive, scores)
        error = (value - delongs_interval(scores, positive)[0]) / 1.96
        ends = [
            np.log(value / (1 - value)) + side * 1.96 * error / value / (1 - value)
            for side in (-1, 1)
        ]
        expected = [1 / (1 + np.exp(-end)) for end in ends]
        assert auc_interval(scores, positive) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("few", [199, 250])
def test_a_ranking_without_an_error_has_newcombes_interval_at_any_size(few: int) -> None:
    """A perfect ranking, its reverse and equal scores: DeLong's standard error is 0."""
    positive = np.arange(few + 300) < few
    low, high = auc_interval(positive.astype(float), positive) or (1, 1)
    assert 0.97 < low < 0.995
    assert high == 1
    assert auc_interval(-positive.astype(float), positive) == pytest.approx((0, 1 - low), abs=1e-9)
    low, high = auc_interval(np.zeros(len(positive)), positive) or (0.5, 0.5)
    assert 0.4 < low < 0.47
    assert high == pytest.approx(1 - low, abs=1e-9)
