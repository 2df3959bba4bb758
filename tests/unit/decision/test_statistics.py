"""Paired statistics against SciPy, scikit-learn and published worked examples."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcovid_edge.decision.statistics import (
    PatientRate,
    Rate,
    auc,
    auc_change,
    mcnemar_exact,
    paired_difference,
    student_quantile,
    upper_bound,
    wilson,
)
from deepcovid_edge.errors import MissingDependencyError

stats = pytest.importorskip("scipy.stats", reason="SciPy (extra export) is the reference")


@given(st.integers(1, 400), st.data())
def test_wilson_is_scipys(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(1, 3000), st.data())
@settings(max_examples=50)
def test_upper_bound_is_scipys_exact_one_sided_limit(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, min(trials, 60)))
    test = stats.binomtest(events, trials, alternative="less")
    expected = test.proportion_ci(0.95, method="exact").high
    assert upper_bound(events, trials) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (10, 2.228), (120, 1.980)]
)
def test_student_s_quantiles_are_those_of_the_printed_tables(freedom: int, expected: float) -> None:
    assert student_quantile(freedom, 0.975) == pytest.approx(expected, abs=5e-4)


def test_student_s_quantile_without_scipy_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deepcovid-edge\[export\]'"):
        student_quantile(4, 0.975)


def test_no_event_in_300_excludes_one_in_a_hundred() -> None:
    """The rule of three (Hanley and Lippman-Hand 1983)."""
    assert upper_bound(0, 300) == pytest.approx(0.01, abs=1e-4)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sign_test(lost: int, gained: int) -> None:
    flips = lost + gained
    expected = stats.binomtest(lost, flips).pvalue if flips else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, abs=1e-9)


def paired(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = [True] * both + [True] * lost + [False] * gained + [False] * neither
    now = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return np.array(before, bool), np.array(now, bool)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Newcombe 1998, Statistics in Medicine 17:2635, table II, method 10 (first less second).
        ((36, 12, 2, 0), (0.20, 0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.20, 0.0562, 0.3292)),
    ],
)
def test_paired_difference_gives_newcombes_worked_examples(
    table: tuple[int, int, int, int], expected: tuple[float, float, float]
) -> None:
    now, before = paired(*table)
    change, interval = paired_difference(before, now)
    assert (change, *interval) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_interval_holds_the_change_and_turns_with_the_sides(
    answers: list[tuple[bool, bool]],
) -> None:
    before, now = (np.array(side) for side in zip(*answers, strict=True))
    change, (low, high) = paired_difference(before, now)
    back, (back_low, back_high) = paired_difference(now, before)
    assert low - 1e-12 <= change <= high + 1e-12
    assert (back, back_low, back_high) == pytest.approx((-change, -high, -low), abs=1e-9)


def test_paired_interval_covers_as_often_as_it_says() -> None:
    """Answers of 101 images, 3 % turned for the worse and 1 % for the better."""
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        before, turned = draw.random(101) < 0.95, draw.random(101)
        now = np.where(before, turned >= 0.03, turned < 0.01)
        _, (low, high) = paired_difference(before, now)
        held += low <= -0.95 * 0.03 + 0.05 * 0.01 <= high
    assert held / 400 >= 0.93


def test_paired_interval_without_images_says_nothing() -> None:
    empty = np.array([], bool)
    assert paired_difference(empty, empty) == (0.0, (-1.0, 1.0))


@given(st.data())
@settings(max_examples=50)
def test_auc_is_scikit_learns(data: st.DataObject) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
    score = st.integers(0, 20)
    positives = data.draw(st.lists(score, min_size=1, max_size=30))
    negatives = data.draw(st.lists(score, min_size=1, max_size=30))
    scores = np.array(positives + negatives, float)
    positive = np.array([True] * len(positives) + [False] * len(negatives))
    assert auc(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores))


def test_delong_interval_covers_as_often_as_it_says() -> None:
    """Of 300 pairs of equally good raters, about 95 % of the intervals hold zero."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        positive = np.arange(160) < 70
        truth = positive * 1.2 + draw.normal(size=160)
        first, second = (truth + draw.normal(size=160) for _ in range(2))
        _, interval = auc_change(first, second, positive)
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert 0.91 <= held / 300 <= 0.985


def test_a_rate_of_patients_is_as_wide_as_that_of_fewer_images() -> None:
    """By hand: 4^2 / (3^2 + 1) is 1; 10^2 / (4 * 2^2 + 2) is 5, of which 8 of 10 are 4."""
    few = PatientRate.of_patients(np.array([True, True, True, False]), ["a", "a", "a", ""])
    assert (few.successes, few.trials, few.effective_trials) == (3, 4, 1)
    assert few.effective_successes == (0, 1)
    assert few.interval_95 == (0.0, 1.0)
    right = np.array([True] * 8 + [False] * 2)
    pairs = PatientRate.of_patients(right, [*"aabbccdd", "", ""])
    assert pairs.interval_95 == wilson(4, 5)
    assert pairs.as_dict()["effective_trials"] == 5
    alone = PatientRate.of_patients(right, [""] * 10)
    assert alone.as_dict() == Rate.of(right).as_dict()
    assert PatientRate.of_patients(right[:0], []).as_dict()["interval_95"] is None


def test_equal_scores_change_nothing() -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9])
    positive = np.array([False, True, False, True])
    assert auc_change(scores, scores, positive) == (0.0, None)


def test_no_interval_of_a_change_has_no_width() -> None:
    """Equal ranks, ranks that all change alike, and few images do not show what others would."""
    draw = np.random.default_rng(4)
    positive = np.arange(60) < 30
    scores, other = draw.normal(size=60), draw.normal(size=60)
    assert auc_change(scores, scores * 3 + 1, positive) == (0.0, None)
    turned = np.where(positive, 1.0, 0.0)
    assert auc_change(turned, 1 - turned, positive) == (-1.0, None)
    assert auc_change(scores, other, positive)[1] is not None
    few = [*range(9), *range(30, 60)]
    change, interval = auc_change(scores[few], other[few], positive[few])
    assert interval is None
    assert change == auc(other[few], positive[few]) - auc(scores[few], positive[few])


def test_a_rate_has_wilsons_interval_and_none_without_trials() -> None:
    rate = Rate.of(np.array([True] * 98 + [False] * 2))
    assert rate == Rate(98, 100)
    assert rate.interval_95 == wilson(98, 100)
    assert rate.text() == "98.0% [93.0%, 99.4%]"
    assert rate.as_dict() == {
        "value": 0.98,
        "successes": 98,
        "trials": 100,
        "interval_95": list(wilson(98, 100)),
    }
    nothing = {"value": None, "successes": 0, "trials": 0, "interval_95": None}
    assert Rate(0, 0).as_dict() == nothing
    assert Rate(0, 0).text() == "-"
