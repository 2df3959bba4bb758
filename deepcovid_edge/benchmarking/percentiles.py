"""Percentiles, and which of them a number of samples can support.

The rule is that of MLPerf Inference's early stopping (inference_rules.adoc, "Early Stopping";
loadgen/early_stopping.cc): of n independent samples, the number that lie above the true
percentile p is binomial. The percentile is stated only where, with the largest sample removed, the
next still lies above the true percentile with 99 % certainty:

    P(Binomial(n, 1 - p) <= 1) <= 0.01

so that a 50th percentile needs 11 samples, a 90th 64, a 95th 130, a 99th 662 and a 99.9th 6,636.
The upper limit of the true percentile, with that certainty, is an order statistic, whatever the
distribution (Wilks 1941).

Successive samples are not quite independent; `stability` says when they are far from it.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from deepcovid_edge.benchmarking.samples import Values

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
CERTAINTY = 0.99


def is_supported(percentile: float, samples: int) -> bool:
    """Whether this number of samples supports a percentile, by the rule above."""
    return _most_above(percentile, samples) >= 1


@cache
def smallest_count(percentile: float) -> int:
    """The smallest number of samples that supports a percentile."""
    return next(number for number in count(1) if is_supported(percentile, number))


def percentiles(values: Values) -> dict[str, dict[str, Any]]:
    """Each percentile with its value and upper limit, both None where n is too small.

    Args:
        values: Of shape (N,), any order.

    Returns:
        Such as `{"90": {"value": 2.1, "upper_99": 2.2, "needs": 64}}`. The value is the nearest
        rank: a sample, never a mixture of two.
    """
    ordered = np.sort(values)
    return {f"{percentile:g}": _percentile(ordered, percentile) for percentile in PERCENTILES}


def _percentile(ordered: Values, percentile: float) -> dict[str, Any]:
    size, value, upper = len(ordered), None, None
    above = _most_above(percentile, size)
    if above >= 1:
        rank = math.ceil(round(percentile * size / 100, 9))
        value, upper = float(ordered[rank - 1]), float(ordered[size - above - 1])
    return {"value": value, "upper_99": upper, "needs": smallest_count(percentile)}


def _most_above(percentile: float, samples: int) -> int:
    """The largest t with P(Binomial(n, 1 - p) <= t) <= 1 - certainty; -1 where there is none.

    Summed in logarithms: the first term is e to the power of -2,600 for a 90th of 25,000 samples.
    """
    share = 1 - percentile / 100
    odds = math.log(share / (1 - share))
    term = total = samples * math.log1p(-share)
    limit = math.log(1 - CERTAINTY)
    most = -1
    while total <= limit and most < samples:
        most += 1
        term += math.log((samples - most) / (most + 1)) + odds if most < samples else -math.inf
        total = max(total, term) + math.log1p(math.exp(-abs(total - term)))
    return most
