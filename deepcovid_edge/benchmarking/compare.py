"""Is one measurement faster than another? Ratios with intervals, of runs that were measured alike.

A ratio is the candidate's time over the reference's: 1.10 is 10 % slower. Its 95 % interval is a
percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over circular blocks of successive
samples (Politis and Romano 1992). A block is as long as the root of the number of samples, so that
samples which resemble their neighbours do not make the interval too narrow. Over simulated pairs it
holds the truth about 9 times in 10, whether neighbours resemble each other or not.

Such an interval does not cover what differs between any two processes (placement in memory, core,
temperature, other load), so a change smaller than `smallest_change` never counts as a difference.
Where several processes measured both runs, the interval is Welch's (1947) over the logarithms of
each process's figure: as wide as the processes differ (Kalibera and Jones, ISMM 2013).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.benchmarking.percentiles import is_supported
from deepcovid_edge.benchmarking.results import Result, Run
from deepcovid_edge.benchmarking.samples import Samples, Values
from deepcovid_edge.benchmarking.settings import OFFLINE
from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.decision.statistics import student_quantile
from deepcovid_edge.errors import IncomparableRunsError, UsageError

_CHUNK = 4_000_000
"""Samples that are drawn at once."""
_CLOCKS_APART = 0.05
_SHOWN = 0.95
_SETTINGS = ("seconds", "warm_up")
_EQUAL = {
    "device": (
        *("machine", "processor", "cores", "memory_mib", "gpus", "jetpack", "power_mode"),
        *("gpu_driver", "gpu_cuda"),
    ),
    "model": ("input",),
    "data": ("sha256",),
    "settings": _SETTINGS,
}
"""Facts of a header that must be equal in measurements that are compared."""
_TAIL = (90.0, 99.0)
Rows = NDArray[np.intp]
Statistic = Callable[[Samples, Rows], Values]
"""A figure of samples, for each row of indices, of shape (R, N): milliseconds, of shape (R,)."""


@dataclass(frozen=True)
class CompareRules:
    """What counts as a difference.

    Attributes:
        smallest_change: Ratios nearer to 1 than this are no difference.
        replicates: Replicates of the bootstrap.
        confidence: Level of the interval that must exclude 1; higher where many are looked at.
        seed: Seed of the bootstrap.
        force: Compare runs that were not measured alike.
    """

    smallest_change: float = 0.02
    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.smallest_change < 1:
            raise UsageError(f"smallest_change: got {self.smallest_change}, expected 0 to below 1")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence: got {self.confidence}, expected between 0 and 1")
        if self.replicates < 100:
            raise UsageError(f"replicates: got {self.replicates}, expected 100 or more")


@dataclass(frozen=True)
class Ratio:
    """One figure of a run, in two measurements.

    Attributes:
        run: Such as `network, single-stream`.
        figure: Such as `median`, or `time per image`.
        reference: Milliseconds.
        candidate: Milliseconds.
        ratio: Candidate over reference; above 1 is slower.
        interval_95: Interval of the ratio.
        significant: Whether the interval excludes 1 and the change is large enough.
    """

    run: str
    figure: str
    reference: float
    candidate: float
    ratio: float
    interval_95: tuple[float, float]
    significant: bool


@dataclass(frozen=True)
class Comparison(PlainResult):
    """A candidate against the reference.

    Attributes:
        reference: Name of the reference.
        candidate: Name of the candidate.
        ratios: Ratios of all figures that both have enough samples for.
        not_comparable: Differences that make a comparison invalid; empty unless it was forced.
        changed: Differences that may explain a ratio: model, versions, settings.
        unstable: Runs of either that were unstable, with the reasons.
        only_one: Runs that only one of the two has.
    """

    reference: str
    candidate: str
    ratios: tuple[Ratio, ...]
    not_comparable: tuple[str, ...]
    changed: tuple[str, ...]
    unstable: tuple[str, ...]
    only_one: tuple[str, ...]

    def slower_than(self, slowdown: float) -> list[Ratio]:
        """Significant ratios above 1 + slowdown."""
        return [ratio for ratio in self.ratios if ratio.significant and ratio.ratio > 1 + slowdown]


def compare(
    reference: Result,
    candidate: Result,
    names: tuple[str, str] = ("reference", "candidate"),
    rules: CompareRules | None = None,
) -> Comparison:
    """Compare the runs that two measurements have in common.

    Args:
        reference: The measurement that the candidate is compared with.
        candidate: The other.
        names: Names of both, for people.
        rules: What counts as a difference.

    Raises:
        IncomparableRunsError: They were not measured alike, or have no run in common.
        MissingDependencyError: Several processes measured both, and SciPy is not installed.
    """
    rules = rules or CompareRules()
    before, now = ({run.key: run for run in result.runs} for result in (reference, candidate))
    common = [key for key in before if key in now]
    differing = [*_differing_headers(reference, candidate), *_differing_clocks(before, now, common)]
    if differing and not rules.force:
        raise IncomparableRunsError(
            f"{names[1]}: not measured like {names[0]}: {'; '.join(differing)}: measure both "
            "alike, or set `force`"
        )
    if not common:
        raise IncomparableRunsError(
            f"{names[1]}: no run in common with {names[0]}: got {'; '.join(_listed(now))}, "
            f"expected {'; '.join(_listed(before))}: measure both with the same scope, scenario "
            "and batch"
        )
    draw = np.random.default_rng(rules.seed)
    return Comparison(
        reference=names[0],
        candidate=names[1],
        ratios=tuple(
            ratio for key in common for ratio in _ratios(before[key], now[key], rules, draw)
        ),
        not_comparable=tuple(differing),
        changed=tuple(_changed(reference.header, candidate.header)),
        unstable=tuple(
            f"{name}: {reason}"
            for name, result in zip(names, (reference, candidate), strict=True)
            for reason in result.unstable()
        ),
        only_one=tuple(sorted(_listed(before.keys() ^ now.keys()))),
    )


Key = tuple[str, str, int, int, float | None, float | None]


def _listed(keys: Iterable[Key]) -> list[str]:
    return [
        f"{scope}, {scenario}, batch {batch}, lanes {lanes}" + (f", {rate:g}/s" if rate else "")
        for scope, scenario, batch, lanes, rate, _ in keys
    ]


def _differing_headers(reference: Result, candidate: Result) -> Iterator[str]:
    for part, names in _EQUAL.items():
        before, now = reference.header[part], candidate.header[part]
        for name in names:
            if before.get(name) != now.get(name):
                yield f"{part}: {name} {before.get(name)} and {now.get(name)}"


def _differing_clocks(
    before: Mapping[Key, Run], now: Mapping[Key, Run], common: list[Key]
) -> Iterator[str]:
    for key in common:
        for name in ("cpu_mhz", "gpu_mhz"):
            first, second = (run.watched.get(name) for run in (before[key], now[key]))
            if first and second:
                if abs(second["median"] / first["median"] - 1) > _CLOCKS_APART:
                    medians = f"{first['median']:.0f} and {second['median']:.0f}"
                    yield f"clocks: {before[key].name}: {name} {medians}"
            elif first or second:
                yield f"clocks: {before[key].name}: only one has {name}"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for part in ("model", "versions", "environment", "settings"):
        first, second = before.get(part, {}), now.get(part, {})
        for name in dict.fromkeys((*first, *second)):
            if first.get(name) != second.get(name) and name not in _SETTINGS:
                yield f"{part}: {name} {first.get(name)} -> {second.get(name)}"


def _ratios(
    before: Run, now: Run, rules: CompareRules, draw: np.random.Generator
) -> Iterator[Ratio]:
    for figure, statistic in _figures(before, now):
        first, second = (_whole(run.samples, statistic) for run in (before, now))
        levels = (_SHOWN, rules.confidence)
        shown, decisive = _intervals(before, now, statistic, rules, draw, levels)
        ratio = second / first
        yield Ratio(
            run=before.name,
            figure=figure,
            reference=first,
            candidate=second,
            ratio=ratio,
            interval_95=shown,
            significant=not decisive[0] <= 1 <= decisive[1]
            and abs(ratio - 1) >= rules.smallest_change,
        )


def _intervals(
    before: Run,
    now: Run,
    statistic: Statistic,
    rules: CompareRules,
    draw: np.random.Generator,
    levels: Sequence[float],
) -> list[tuple[float, float]]:
    """Intervals of the ratio of a statistic, one for each level."""
    invocations = [[part for part in run.by_invocation() if len(part)] for run in (before, now)]
    if min(map(len, invocations)) > 1:
        sides = [[math.log(_whole(part, statistic)) for part in side] for side in invocations]
        return [_welch(sides[0], sides[1], level) for level in levels]
    draws = [_replicates(run.samples, statistic, rules.replicates, draw) for run in (before, now)]
    ratios = draws[1] / draws[0]
    ends = (np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]) for level in levels)
    return [(float(low), float(high)) for low, high in ends]


def _welch(before: Sequence[float], now: Sequence[float], level: float) -> tuple[float, float]:
    """Interval of the ratio of a figure, given as the logarithms of its repeated measurements."""
    spreads = [statistics.variance(side) / len(side) for side in (before, now)]
    change = statistics.fmean(now) - statistics.fmean(before)
    error = sum(spreads)
    if error == 0:
        return math.exp(change), math.exp(change)
    freedom = error**2 / sum(
        spread**2 / (len(side) - 1) for spread, side in zip(spreads, (before, now), strict=True)
    )
    half = student_quantile(freedom, (1 + level) / 2) * math.sqrt(error)
    return math.exp(change - half), math.exp(change + half)


def _figures(before: Run, now: Run) -> Iterator[tuple[str, Statistic]]:
    """Figures that the samples of both runs support."""
    fewest = min(len(before.samples), len(now.samples))
    if fewest < 2:
        return
    if before.scenario == OFFLINE:
        yield "time per image", _time_per_image
        return
    yield "median", _median
    for percentile in _TAIL:
        if is_supported(percentile, fewest):
            yield f"{percentile:g}th percentile", partial(_percentile, percentile)


def _whole(samples: Samples, statistic: Statistic) -> float:
    """The statistic of all samples."""
    return float(statistic(samples, np.arange(len(samples))[None])[0])


def _time_per_image(samples: Samples, rows: Rows) -> Values:
    """All time over all images: results have different numbers of images."""
    return np.asarray(np.average(samples.gaps_ms[rows], axis=1, weights=samples.images[rows]))


def _median(samples: Samples, rows: Rows) -> Values:
    return np.asarray(np.median(samples.latency_ms[rows], axis=1))


def _percentile(percentile: float, samples: Samples, rows: Rows) -> Values:
    """Nearest rank of each row."""
    values = samples.latency_ms[rows]
    return np.asarray(np.percentile(values, percentile, axis=1, method="inverted_cdf"))


def _replicates(
    samples: Samples, statistic: Statistic, replicates: int, draw: np.random.Generator
) -> Values:
    """The statistic of each replicate of blocks, of shape (replicates,)."""
    count = len(samples)
    length = max(1, round(count**0.5))
    blocks = -(-count // length)
    at_once = max(1, _CHUNK // count)
    found = []
    for start in range(0, replicates, at_once):
        size = min(at_once, replicates - start)
        first = draw.integers(0, count, (size, blocks, 1))
        chosen = ((first + np.arange(length)) % count).reshape(size, -1)[:, :count]
        found.append(statistic(samples, chosen))
    return np.concatenate(found)
