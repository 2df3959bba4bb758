"""Runs that measure an image a few times only: a slowdown must not hide in the image's own median.

What a run measures and how its windows are assessed is tested in test_bench.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from deepcovid_edge.benchmarking.samples import Query, Samples
from deepcovid_edge.benchmarking.scenarios import MILLISECOND
from deepcovid_edge.benchmarking.settings import SERVER, SINGLE
from deepcovid_edge.benchmarking.stability import FEWEST_VISITS, Verdict, assess_stability


def run_of(milliseconds: Iterable[float], images: int) -> Samples:
    """Queries one after another, for which the images come in turn."""
    queries, now = [], 0
    for number, value in enumerate(milliseconds):
        end = now + round(value * MILLISECOND)
        queries.append(Query(now, now, end, number % images, 1))
        now = end
    return Samples.of(queries)


def verdict_on(samples: Samples, scenario: str = SINGLE) -> Verdict:
    return assess_stability(samples, scenario, {}, {})


def slower(count: int, factor: float) -> Sequence[float]:
    """Times that rise evenly to so many times the first."""
    rising: list[float] = np.linspace(80, 80 * factor, count).tolist()
    return rising


@pytest.mark.parametrize("visits", [1, 2, 3, FEWEST_VISITS, 10])
@pytest.mark.parametrize(("factor", "drift"), [(1.1, 0.09), (2.0, 0.6)])
def test_a_run_that_slows_down_is_unstable_however_rarely_its_images_come(
    visits: int, factor: float, drift: float
) -> None:
    """With the defaults, a device slower than 78 ms an image measures each of 64 once."""
    verdict = verdict_on(run_of(slower(120, factor), 120 // visits))
    assert not verdict.stable
    assert verdict.drift == pytest.approx(drift, rel=0.15)
    assert verdict.reasons[0].startswith("drift: +")


def test_processes_that_all_slow_down_are_unstable_though_each_image_is_as_it_was() -> None:
    """Each of three processes measures each image once; the windows rise within each of them."""
    joined = Samples.joined([run_of(slower(64, 2.0), 64)] * 3)
    verdict = verdict_on(joined, SERVER)
    assert not verdict.stable
    assert verdict.variation == pytest.approx(0.17, abs=0.05)
    assert any(reason.startswith("variation: ") for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("visits", "stable"), [(FEWEST_VISITS - 1, False), (FEWEST_VISITS, True)], ids=["few", "enough"]
)
def test_images_that_differ_count_as_instability_only_where_they_come_too_rarely(
    visits: int, stable: bool
) -> None:
    """The last quarter of the images takes five times as long."""
    own = np.where(np.arange(40) < 30, 10.0, 50.0)
    assert verdict_on(run_of(np.tile(own, visits), 40)).stable == stable


def test_a_steady_run_that_measures_each_image_once_is_stable() -> None:
    times = np.random.default_rng(3).normal(80, 1, 64)
    verdict = verdict_on(run_of(times, 64))
    assert verdict.stable
    assert max(verdict.windows) != 1
