"""The plots of a report, as SVG that takes its colours from the page.

Matplotlib draws with the stand-in colours of `_INKS`; each is then replaced by a CSS variable, so
that one drawing serves light, dark and print. Text stays text. Nothing here computes a figure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INKS = {
    "#000001": "var(--ink)",
    "#000002": "var(--faint)",
    "#000003": "var(--positive)",
    "#000004": "var(--negative)",
    "#000005": "var(--soft)",
    **{f"#0000{number:02d}": f"var(--series-{number - 9})" for number in range(10, 18)},
}
_INK, _FAINT, _POSITIVE, _NEGATIVE, _SOFT, *_SERIES = _INKS
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deepcovid-edge",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlelocation": "left",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_WIDTH, _HEIGHT = 4.4, 3.5

Named = Sequence[tuple[str, Mapping[str, Any]]]
"""Evaluations with the name that each bears on the page."""


def roc(named: Named) -> str:
    """ROC curves of all models, each with its operating point."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("false alarms (1 - specificity)", "sensitivity")
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle="--")
        for colour, (name, figures) in zip(_colours(named), named, strict=True):
            curve, own = figures["curves"]["roc"], figures["operating_points"][0]
            axes.plot(
                curve["false_positive_rate"],
                curve["sensitivity"],
                color=colour,
                label=f"{name}, AUC {figures['overall']['auc']:.3f}",
            )
            alarms = 1 - own["specificity"]["value"]
            axes.plot(alarms, own["sensitivity"]["value"], "o", color=colour, clip_on=False)
        axes.legend(loc="lower right")
        return _svg(figure, "roc")


def precision_recall(named: Named) -> str:
    """Precision over recall of all models, with the share of positives as the floor."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("recall (sensitivity)", "precision")
        for colour, (name, figures) in zip(_colours(named), named, strict=True):
            curve, overall = figures["curves"]["precision_recall"], figures["overall"]
            share = overall["positives"] / overall["images"]
            axes.axhline(share, color=_SOFT, linewidth=1, linestyle="--")
            axes.plot(
                curve["recall"],
                curve["precision"],
                color=colour,
                drawstyle="steps-post",
                label=f"{name}, average {overall['average_precision']:.3f}",
            )
        axes.legend(loc="lower left")
        return _svg(figure, "precision-recall")


def over_threshold(figures: Mapping[str, Any], place: str) -> str:
    """Sensitivity and specificity over the threshold."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square("threshold", "share of images")
        curve = figures["curves"]["over_threshold"]
        for name, colour in (("sensitivity", _POSITIVE), ("specificity", _NEGATIVE)):
            axes.plot(
                curve["threshold"], curve[name], color=colour, drawstyle="steps-post", label=name
            )
        _mark_threshold(axes, figures["threshold"])
        axes.legend(loc="lower center")
        return _svg(figure, f"{place}-threshold")


def score_histograms(figures: Mapping[str, Any], place: str) -> str:
    """Probability of the positive class, for each label of the data set apart."""
    histograms, labels = figures["histograms"], figures["by_label"]
    order = sorted(histograms["images"], key=lambda label: (not labels[label]["positive"], label))
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, max(_HEIGHT, 0.9 * len(order) + 0.8)), layout="constrained")
        rows = figure.subplots(len(order), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, label in zip(rows, order, strict=True):
            counts = histograms["images"][label]
            share = [100 * count / sum(counts) for count in counts]
            colour = _POSITIVE if labels[label]["positive"] else _NEGATIVE
            axes.stairs(share, histograms["edges"], fill=True, color=colour, alpha=0.75)
            axes.set_title(f"{label}: {sum(counts)} images", fontsize=10)
            axes.set_xlim(0, 1)
            _mark_threshold(axes, figures["threshold"])
        figure.supylabel("% of the images of the label", fontsize=10, color=_INK)
        rows[-1].set_xlabel(f"probability of {figures['positive_class']}")
        return _svg(figure, f"{place}-histogram")


def reliability(figures: Mapping[str, Any], place: str) -> str:
    """Share of positives over the probability, in bins, with the images of each bin below."""
    bins = figures["reliability"]["bins"]
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle="--")
        upper.plot(
            bins["probability"], bins["share_positive"], "o-", color=_SERIES[0], clip_on=False
        )
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is positive")
        lower.bar(bins["probability"], bins["images"], width=0.03, color=_SERIES[0])
        lower.set(xlabel=f"probability of {figures['positive_class']}", ylabel="images")
        return _svg(figure, f"{place}-reliability")


def shortcut_areas(figures: Mapping[str, Any], place: str) -> str:
    """Areas under the curve, as points with intervals: whole, lungs only, lungs hidden, groups."""
    shortcuts = figures["shortcuts"]
    rows = [(name, it) for name, it in _shortcut_rows(shortcuts) if it["auc"] is not None][::-1]
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH * 1.5, 0.27 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        for height, (name, it) in enumerate(rows):
            low, high = it["auc_interval_95"]
            colour = _POSITIVE if name.startswith("lungs hidden") else _SERIES[0]
            axes.plot([low, high], [height, height], color=colour, linewidth=1.5)
            axes.plot(it["auc"], height, "o", color=colour, clip_on=False)
        axes.axvline(0.5, color=_SOFT, linestyle="--", linewidth=1)
        axes.axvline(shortcuts["limit"], color=_INK, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{name} ({it['images']})" for name, it in rows])
        axes.set(xlim=(0, 1), xlabel="area under the ROC curve (AUC)")
        axes.grid(visible=False, axis="y")
        return _svg(figure, f"{place}-shortcuts")


def _shortcut_rows(shortcuts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        ("whole image", shortcuts["whole"]),
        ("lungs only", shortcuts["lungs_only"]),
        *(
            (f"lungs hidden, {float(side):.0%} of the sides", it)
            for side, it in shortcuts["lungs_hidden_by_side"].items()
        ),
        *((f"{shape} images", it) for shape, it in shortcuts["by_shape"].items()),
        *((f"within {_short(name)}", it) for name, it in shortcuts["within_source"].items()),
    ]


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    return figure, axes


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=_INK, linestyle=":", linewidth=1)


def _colours(named: Named) -> list[str]:
    return [_SERIES[number % len(_SERIES)] for number in range(len(named))]


def _svg(figure: Figure, place: str) -> str:
    """The figure as an SVG element whose identifiers are its own on a page of many."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=_NO_METADATA, transparent=True)
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :].strip()
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'\bid="', f'id="{place}-', drawing)
    drawing = re.sub(r'(url\(|href=")#', rf"\1#{place}-", drawing)
    for ink, variable in _INKS.items():
        drawing = drawing.replace(ink, variable)
    return drawing
