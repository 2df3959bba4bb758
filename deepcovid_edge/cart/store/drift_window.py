"""Which results are compared with each other: the worker watches them, and the page shows them."""

from __future__ import annotations

from datetime import timedelta

REFERENCE_RESULTS = 200
"""Results that a model gave first: what all later ones are compared with."""
LEAST_RESULTS = 50
"""Fewer results, in the reference or in the week, prove nothing."""
OUTCOME_KEY = "drift"
"""Of the table `meta`: what the last comparison found, as JSON with `model`, `site` and `words`."""
WEEK = timedelta(days=7)
"""Age of the results that are compared with the reference."""
