"""Templates of page and card, and their filters: figures with their intervals as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcovid_edge.datasets.contents import repeated_text
from deepcovid_export.evaluation.results import normal_half_width

_FOLDER = Path(__file__).parent / "templates"
MISSING = "-"


def render(name: str, **values: Any) -> str:
    """A template with its values; the filters are functions that write text. HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "rate": rate_text,
        "counted": counted_text,
        "area": area_text,
        "normal": normal_text,
        "change": change_text,
        "repeated": repeated_text,
    }
    return str(environment.get_template(name).render(**values))


def area_text(figures: Mapping[str, Any]) -> str:
    """An `Area` as text, such as `0.989 [0.977, 1.000]`."""
    if figures["auc"] is None:
        return MISSING
    low, high = figures["auc_interval_95"]
    return f"{figures['auc']:.3f} [{low:.3f}, {high:.3f}]"


def rate_text(rate: Mapping[str, Any]) -> str:
    """A `Rate` as text, such as `98.0% [93.1%, 99.5%]`."""
    if rate["value"] is None:
        return MISSING
    low, high = rate["interval_95"]
    return f"{rate['value']:.1%} [{low:.1%}, {high:.1%}]"


def counted_text(rate: Mapping[str, Any]) -> str:
    """The same with its counts, such as `98.0% [93.1%, 99.5%] (99/101)`."""
    if rate["value"] is None:
        return MISSING
    return f"{rate_text(rate)} ({rate['successes']}/{rate['trials']})"


def normal_text(rate: Mapping[str, Any]) -> str:
    """Half of the normal interval of a `Rate`."""
    if rate["value"] is None:
        return MISSING
    return f"\u00b1\u00a0{normal_half_width(rate['successes'], rate['trials']):.1%}"


def change_text(change: Mapping[str, Any]) -> str:
    """A `Change` as text, such as `+0.010 [-0.005, +0.025]`."""
    interval = ", ".join(f"{end:+.3f}" for end in change.get("interval_95", ())) or MISSING
    return f"{change['change']:+.3f} [{interval}]"
