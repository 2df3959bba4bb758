"""Which results are compared with each other: the worker watches them, and the page shows them."""

from __future__ import annotations

from datetime import datetime, timedelta

from deepcovid_edge.cart.store.clock import MOST_AHEAD

REFERENCE_RESULTS = 200
"""Results that a model gave first: what all later ones are compared with."""
LEAST_RESULTS = 50
"""Fewer results, in the reference or in the week, prove nothing."""
OUTCOME_KEY = "drift"
"""Of the table `meta`: what the last comparison found, as JSON with `model`, `site` and `words`."""
_WEEK = timedelta(days=7)


def week_until(now: datetime) -> tuple[str, str]:
    """Between which times, as the ledger has them, the results of the last seven days were made.

    A result of a clock that was far ahead is not of these days.
    """
    begins, ends = now - _WEEK, now + MOST_AHEAD
    return begins.isoformat(timespec="milliseconds"), ends.isoformat(timespec="milliseconds")
