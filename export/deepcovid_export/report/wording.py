"""Figures with their intervals as text: the same on the page, in model cards and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "-"


def area_text(figures: Mapping[str, Any]) -> str:
    """Such as `0.989 [0.977, 1.000]`, from `metrics.area`."""
    if figures["auc"] is None:
        return MISSING
    low, high = figures["auc_interval_95"]
    return f"{figures['auc']:.3f} [{low:.3f}, {high:.3f}]"


def rate_text(rate: Mapping[str, Any]) -> str:
    """Such as `98.0% [93.1%, 99.5%]`, from `metrics.rate`."""
    if rate["value"] is None:
        return MISSING
    low, high = rate["interval_95"]
    return f"{rate['value']:.1%} [{low:.1%}, {high:.1%}]"


def counted_text(rate: Mapping[str, Any]) -> str:
    """Such as `98.0% [93.1%, 99.5%] (99/101)`, from `metrics.rate`."""
    if rate["value"] is None:
        return MISSING
    return f"{rate_text(rate)} ({rate['successes']}/{rate['trials']})"
