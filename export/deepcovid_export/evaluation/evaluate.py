"""Measure models on labelled films: how often right, how sure, and by what they tell.

The figures are plain values for JSON; `report` makes a page of them. Their keys stay what they are
within a `schema_version`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge import NOTICE, __version__
from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledFilm, dataset_sha256
from deepcovid_edge.decision.statistics import auc_change, mcnemar_exact, paired_difference
from deepcovid_edge.errors import DataError, UsageError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.evaluation.bootstrap import bootstrap
from deepcovid_export.evaluation.curves import (
    average_precision,
    calibration,
    confusion,
    curves,
    histograms,
    operating_points,
    threshold_table,
)
from deepcovid_export.evaluation.metrics import area, at_threshold, rate
from deepcovid_export.evaluation.predictions import Judged, judge
from deepcovid_export.evaluation.shortcuts import measure_shortcuts

SCHEMA_VERSION = 2
NOT_STATED = "not stated"


def evaluate(
    model: Path, films: Sequence[LabelledFilm], *, description: str, shortcuts: bool = False
) -> dict[str, Any]:
    """Measure a model on labelled films.

    Args:
        model: An .onnx file, an engine or a checkpoint.
        films: Films with their labels; a label belongs to the class into which the model's recipe
            puts it.
        description: What the films are, for the report.
        shortcuts: Also measure what the model tells from the source (`shortcuts`); films are read
            four more times.

    Returns:
        Figures over all films and by label, source and view, as plain values for JSON. Intervals
        take films as independent, but for those of `bootstrap`, which draw patients.

    Raises:
        DataError: No film was assessed, or a label belongs to no class.
    """
    return _measured(model, films, description, shortcuts)[0]


def evaluate_side_by_side(
    models: Sequence[Path],
    films: Sequence[LabelledFilm],
    *,
    description: str,
    shortcuts: bool = False,
) -> dict[str, Any]:
    """Measure several models on the same films, and how each differs from the first.

    Returns:
        `evaluations`: what `evaluate` says of each; `comparisons`: of each but the first, the
        paired differences from the first.

    Raises:
        UsageError: There are fewer than two models.
        DataError: As `evaluate`.
    """
    if len(models) < 2:
        raise UsageError(f"models: got {len(models)}, expected two or more to compare")
    measured = [_measured(model, films, description, shortcuts) for model in models]
    first = measured[0][1]
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "data": description,
        "data_sha256": measured[0][0]["data_sha256"],
        "evaluations": [figures for figures, _ in measured],
        "comparisons": [_comparison(first, judged) for _, judged in measured[1:]],
        "created_with": {"deepcovid-edge": __version__},
    }


def _measured(
    model: Path, films: Sequence[LabelledFilm], description: str, shortcuts: bool
) -> tuple[dict[str, Any], Judged]:
    with load_backend(model) as backend:
        try:
            judged = judge(backend, films)
        except DataError as error:
            raise DataError(f"{description}: {error}") from error
        found = measure_shortcuts(backend, films, judged) if shortcuts else None
    figures = {**_identity(judged, description), **_figures(judged)}
    figures["shortcuts"] = found
    figures["created_with"] = {"deepcovid-edge": __version__}
    return figures, judged


def _identity(judged: Judged, description: str) -> dict[str, Any]:
    manifest, run = judged.manifest, judged.run
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "data": description,
        "data_sha256": dataset_sha256(judged.films),
        "model": manifest.name,
        "model_sha256": run.model_sha256,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "backend": run.backend,
        "input": {**asdict(manifest.input), "resize": manifest.input.resize.value},
        "classes": list(manifest.classes),
        "positive_class": manifest.positive_class,
        "threshold": manifest.threshold,
        "threshold_origin": dict(manifest.threshold_origin),
        "export": manifest.training.get("export"),
    }


def _figures(judged: Judged) -> dict[str, Any]:
    scores, positive = judged.scores, judged.positive
    threshold, labels = judged.manifest.threshold, [film.label for film in judged.films]
    refused = judged.refused
    return {
        "films": len(judged.films) + len(refused),
        "not_assessed": {reason: refused.count(reason) for reason in sorted(set(refused))},
        "out_of_distribution": None
        if judged.unlike is None
        else rate(judged.unlike, len(judged.films)),
        "overall": {
            **_group(judged),
            "average_precision": average_precision(scores, positive),
        },
        "bootstrap": bootstrap(
            scores, positive, [film.patient for film in judged.films], threshold
        ),
        "band": _band(judged),
        "operating_points": operating_points(
            scores, positive, threshold, threshold_origin(judged.manifest)
        ),
        "thresholds": threshold_table(scores, positive, threshold),
        "by_label": _by_label(judged),
        "by_source": _by_group(judged, [film.source for film in judged.films]),
        "by_view": _by_group(judged, [film.view for film in judged.films]),
        "confusion": confusion(judged.truth, judged.called, judged.manifest.classes),
        "curves": curves(scores, positive),
        "histograms": histograms(scores, labels),
        "calibration": calibration(scores, positive),
    }


def threshold_origin(manifest: ModelManifest) -> str:
    """How a model's threshold was chosen, in a few words."""
    origin = manifest.threshold_origin
    if "rule" not in origin:
        return "not stated by the model"
    films = f"{origin['films']} films of " if "films" in origin else ""
    return f"{origin['rule']}, on {films}{origin.get('split', 'other data')}"


def _group(judged: Judged, among: Any = slice(None)) -> dict[str, Any]:
    scores, positive = judged.scores[among], judged.positive[among]
    return {**area(scores, positive), **at_threshold(scores, positive, judged.manifest.threshold)}


def _by_group(judged: Judged, names: Sequence[str]) -> dict[str, Any]:
    groups = np.array([name or NOT_STATED for name in names])
    return {name: _group(judged, groups == name) for name in sorted(set(groups.tolist()))}


def _by_label(judged: Judged) -> dict[str, Any]:
    """How many films of each label of the data set are called positive."""
    called = judged.scores >= judged.manifest.threshold
    labels = np.array([film.label for film in judged.films])
    return {
        label: {
            "films": int((labels == label).sum()),
            "positive": label in judged.manifest.positive_labels,
            "called_positive": rate(
                int(called[labels == label].sum()), int((labels == label).sum())
            ),
        }
        for label in sorted(set(labels.tolist()))
    }


def _band(judged: Judged) -> dict[str, Any] | None:
    """What a model's band does: the films it holds, and how often it is right of the others."""
    band = judged.manifest.band
    if band is None:
        return None
    positive, called = judged.positive, judged.scores >= band.high
    held = ~called & (judged.scores >= band.low)
    return {
        "low": band.low,
        "high": band.high,
        "indeterminate": rate(int(held.sum()), len(held)),
        "indeterminate_positives": rate(int((held & positive).sum()), int(positive.sum())),
        "decided_films": int((~held).sum()),
        "decided": at_threshold(judged.scores[~held], positive[~held], judged.manifest.threshold),
    }


def _comparison(first: Judged, other: Judged) -> dict[str, Any]:
    """Paired differences of two models on the films that both assessed, other less first."""
    places = {film.path: index for index, film in enumerate(first.films)}
    pairs = [(places[film.path], i) for i, film in enumerate(other.films) if film.path in places]
    left, right = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    positive = first.positive[left]
    figures: dict[str, Any] = {
        "reference": _name(first),
        "candidate": _name(other),
        "films": len(pairs),
    }
    if not np.array_equal(positive, other.positive[right]):
        return {**figures, "not_compared": "the models' positive classes hold different films"}
    before, now = first.scores[left].astype(np.float64), other.scores[right].astype(np.float64)
    was = (before >= first.manifest.threshold) == positive
    is_now = (now >= other.manifest.threshold) == positive
    if positive.any() and not positive.all():
        figures["auc"] = _change(*auc_change(before, now, positive))
    for name, group in (("sensitivity", positive), ("specificity", ~positive)):
        if group.any():
            lost = int((was & ~is_now & group).sum())
            gained = int((~was & is_now & group).sum())
            figures[name] = {
                **_change(*paired_difference(was[group], is_now[group])),
                "lost": lost,
                "gained": gained,
                "mcnemar_p": mcnemar_exact(lost, gained),
            }
    return figures


def _change(change: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"change": change, "interval_95": list(interval)}


def _name(judged: Judged) -> dict[str, str]:
    manifest = judged.manifest
    return {
        "model": manifest.name,
        "precision": manifest.precision,
        "sha256": judged.run.model_sha256,
    }
