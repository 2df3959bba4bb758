"""Tests of whether two samples come from one distribution, by NumPy alone.

Tests compare them with SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_CLOSE = 1e-7
"""By how much a probability may differ by rounding and still count as the same."""


def smirnov_distance(first: Values, second: Values) -> float:
    """Largest distance of two empirical distribution functions, 0 to 1 (Smirnov 1939).

    Args:
        first: A sample, of shape (N,).
        second: Another, of shape (M,).
    """
    places = np.concatenate([first, second])
    shares = [
        np.searchsorted(np.sort(sample), places, side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def smirnov_p(distance: float, first: int, second: int) -> float:
    """Probability of at least this distance between two samples of one distribution.

    Exact for values of which no two are equal, else too large, by counting lattice paths (Hodges
    1957, Arkiv for Matematik 3:469; the recursion of R's `psmirnov`).

    Args:
        distance: The two-sided distance.
        first: Size of a sample.
        second: Size of the other.
    """
    few, many = sorted((first, second))
    limit = (0.5 + math.floor(distance * few * many - _CLOSE)) / (few * many)
    steps = np.arange(many + 1) / many
    inside: Values = (steps <= limit).astype(np.float64)
    for row in range(1, few + 1):
        is_near = np.abs(row / few - steps) <= limit
        # Each path comes from the row before or from the left; it may not leave the band.
        inside = np.cumsum(np.where(is_near, inside * (row / (row + many)), 0.0)) * is_near
    return float(min(1.0, max(0.0, 1.0 - inside[-1])))


def fisher_p(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Two-sided p-value of Fisher's exact test of two proportions (Fisher 1934).

    Args:
        first: How many of how many.
        second: How many of how many.
    """
    hits, trials = first[0] + second[0], first[1] + second[1]

    def log_ways(number: int) -> float:
        return _log_choose(first[1], number) + _log_choose(second[1], hits - number)

    whole = _log_choose(trials, hits)
    possible = range(max(0, hits - second[1]), min(hits, first[1]) + 1)
    shares = [math.exp(log_ways(number) - whole) for number in possible]
    seen = math.exp(log_ways(first[0]) - whole)
    return min(1.0, sum(share for share in shares if share <= seen * (1 + _CLOSE)))


def _log_choose(whole: int, part: int) -> float:
    return math.lgamma(whole + 1) - math.lgamma(part + 1) - math.lgamma(whole - part + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Args:
        p_values: Of the single tests.

    Returns:
        For each the level of all tests together at which it would be significant.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    found, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, p_values[at] * (len(p_values) - rank)))
        found[at] = highest
    return found
