"""The page of a report: one self-contained HTML file.

Styles and drawings are inside. It has no scripts, and a content security policy forbids any
request.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
from markupsafe import Markup
from numpy.typing import NDArray

from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.manifest import VERSION, InputSpec
from deepcovid_edge.reasons import NOTICE
from deepcovid_export.evaluation.bootstrap import FEWEST_PATIENTS
from deepcovid_export.evaluation.shortcuts import hide_lungs, keep_lungs
from deepcovid_export.report import plots
from deepcovid_export.report.rendering import render

_PICTURE = 168
"""Sides of the example pictures, pixels."""


def as_html(report: Mapping[str, Any]) -> str:
    """The page of the JSON of `evaluate` or `evaluate_side_by_side`."""
    named = name_models(report.get("evaluations") or [report])
    drawn = [(name, it) for name, it in named if it["curves"]]
    return render(
        "report.html.j2",
        notice=NOTICE,
        version=VERSION,
        named=named,
        first=named[0][1],
        some_undecided=any(
            it["indeterminate_range"] or it["out_of_distribution"] for _, it in named
        ),
        fewest_patients=FEWEST_PATIENTS,
        comparisons=report.get("comparisons", []),
        name_of={it["model_sha256"]: name for name, it in named},
        curves=[(name, Markup(svg)) for name, svg in _draw_shared(drawn)],
        plots={name: _draw_own(it, f"m{number}") for number, (name, it) in enumerate(named)},
        pictures=_pictures(named[0][1]),
    )


def name_models(
    evaluations: Sequence[Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any]]]:
    """Evaluations with names that tell them apart: model, then precision, then digest."""
    for fields in (("model",), ("model", "precision"), ("model", "precision", "model_sha256")):
        names = [" ".join(_shown(it, field) for field in fields) for it in evaluations]
        if len(set(names)) == len(names):
            break
    return list(zip(names, evaluations, strict=True))


def _shown(figures: Mapping[str, Any], field: str) -> str:
    value: str = figures[field]
    return value[:16] if field == "model_sha256" else value


def _draw_shared(drawn: plots.Named) -> list[tuple[str, str]]:
    if not drawn:
        return []
    return [("roc", plots.roc(drawn)), ("precision_recall", plots.precision_recall(drawn))]


def _draw_own(figures: Mapping[str, Any], place: str) -> dict[str, Markup]:
    found = {
        "histogram": plots.score_histograms(figures, place),
        "reliability": plots.reliability(figures, place),
    }
    if figures["curves"]:
        found["threshold"] = plots.over_threshold(figures, place)
    if figures["shortcuts"] and figures["shortcuts"]["whole"]["auc"] is not None:
        found["shortcuts"] = plots.shortcut_areas(figures, place)
    return {name: Markup(svg) for name, svg in found.items()}


def _pictures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A drawn phantom as the network sees it: whole, with the lungs hidden and the lungs only."""
    if not figures["shortcuts"]:
        return []
    side = figures["shortcuts"]["side"]
    spec = InputSpec(_PICTURE, _PICTURE, figures["input"]["resize"])
    pixels = draw_phantom(1)
    image = Radiograph(pixels, 255, "", "PNG")
    made = {
        "whole": image,
        "lungs hidden": hide_lungs(image, spec, side),
        "lungs only": keep_lungs(image, spec, side),
    }
    return [(name, _data_uri(prepare(it, spec))) for name, it in made.items()]


def _data_uri(pixels: NDArray[Any]) -> str:
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
