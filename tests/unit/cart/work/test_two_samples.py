"""Two-sample tests of the cart agree with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deepcovid_edge.cart.work.two_samples import fisher_p, holm, smirnov_distance, smirnov_p

SIZES = [(1, 1), (3, 5), (50, 50), (50, 200), (200, 61), (200, 1500)]


@pytest.mark.parametrize(("first", "second"), SIZES)
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 2.0])
def test_smirnov_is_scipy_s_exact_test(first: int, second: int, shift: float) -> None:
    random = np.random.default_rng(first * 1000 + second)
    one, other = random.normal(size=first), random.normal(shift, size=second)
    known = stats.ks_2samp(one, other, method="exact")
    distance = smirnov_distance(one, other)
    assert distance == pytest.approx(known.statistic, abs=1e-12)
    assert smirnov_p(distance, first, second) == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)


def test_smirnov_of_equal_values_is_too_careful_never_too_bold() -> None:
    random = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(400):
        one, other = (np.round(random.normal(size=60), 1) for _ in range(2))
        false_alarms += smirnov_p(smirnov_distance(one, other), 60, 60) < 0.05
    assert false_alarms / 400 <= 0.05


@pytest.mark.parametrize("first", [(0, 200), (3, 200), (50, 200), (200, 200)])
@pytest.mark.parametrize("second", [(0, 50), (1, 50), (9, 60), (50, 50), (300, 4000)])
def test_fisher_is_scipy_s(first: tuple[int, int], second: tuple[int, int]) -> None:
    table = [[hits, trials - hits] for hits, trials in (first, second)]
    known = stats.fisher_exact(table).pvalue
    assert fisher_p(first, second) == pytest.approx(known, rel=1e-5, abs=1e-12)


def test_holm_is_statsmodels_s() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    random = np.random.default_rng(1)
    for size in (1, 2, 7):
        p_values = random.uniform(0, 0.1, size)
        known = multitest.multipletests(p_values, method="holm")[1]
        np.testing.assert_allclose(holm(list(p_values)), known, rtol=1e-12)
    assert holm([]) == []
