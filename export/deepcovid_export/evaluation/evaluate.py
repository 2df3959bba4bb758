"""Measure models on labelled images: how often right, how sure, and by what they tell.

The figures are plain values for JSON; `report` makes a page of them. Their keys stay what they are
within a `schema_version`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256
from deepcovid_edge.decision.statistics import auc_change, mcnemar_exact, paired_difference
from deepcovid_edge.errors import DataError, UsageError
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_edge.reasons import NOTICE
from deepcovid_export.evaluation.bootstrap import bootstrap
from deepcovid_export.evaluation.curves import (
    average_precision,
    confusion,
    curves,
    histograms,
    operating_points,
    reliability,
    threshold_table,
)
from deepcovid_export.evaluation.metrics import area, at_threshold, rate
from deepcovid_export.evaluation.predictions import Predictions, classify
from deepcovid_export.evaluation.shortcuts import measure_shortcuts

SCHEMA_VERSION = 2
NOT_STATED = "not stated"


def evaluate(
    model: Path, images: Sequence[LabelledImage], *, description: str, shortcuts: bool = False
) -> dict[str, Any]:
    """Measure a model on labelled images.

    Args:
        model: An .onnx file, an engine or a checkpoint.
        images: Images with their labels; a label belongs to the class into which the model's recipe
            puts it.
        description: What the images are, for the report.
        shortcuts: Also measure what the model tells from the source (`shortcuts`); images are read
            four more times.

    Returns:
        Figures over all images and by label, source and view, as plain values for JSON. Intervals
        take images as independent, but for those of `bootstrap`, which draw patients.

    Raises:
        DataError: No image was assessed, or a label belongs to no class.
    """
    return _measured(model, images, description, shortcuts)[0]


def evaluate_side_by_side(
    models: Sequence[Path],
    images: Sequence[LabelledImage],
    *,
    description: str,
    shortcuts: bool = False,
) -> dict[str, Any]:
    """Measure several models on the same images, and how each differs from the first.

    Returns:
        `evaluations`: what `evaluate` says of each; `comparisons`: of each but the first, the
        paired differences from the first.

    Raises:
        UsageError: There are fewer than two models.
        DataError: As `evaluate`.
    """
    if len(models) < 2:
        raise UsageError(f"models: got {len(models)}, expected two or more to compare")
    measured = [_measured(model, images, description, shortcuts) for model in models]
    first = measured[0][1]
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "data": description,
        "data_sha256": measured[0][0]["data_sha256"],
        "evaluations": [figures for figures, _ in measured],
        "comparisons": [_comparison(first, classified) for _, classified in measured[1:]],
        "created_with": {"deepcovid-edge": VERSION},
    }


def _measured(
    model: Path, images: Sequence[LabelledImage], description: str, shortcuts: bool
) -> tuple[dict[str, Any], Predictions]:
    with load_backend(model) as backend:
        try:
            classified = classify(backend, images)
        except DataError as error:
            raise DataError(f"{description}: {error}") from error
        found = measure_shortcuts(backend, images, classified) if shortcuts else None
    figures = {**_identity(classified, description), **_figures(classified)}
    figures["shortcuts"] = found
    figures["created_with"] = {"deepcovid-edge": VERSION}
    return figures, classified


def _identity(classified: Predictions, description: str) -> dict[str, Any]:
    manifest, run = classified.manifest, classified.run
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "data": description,
        "data_sha256": dataset_sha256(classified.images),
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


def _figures(classified: Predictions) -> dict[str, Any]:
    scores, positive = classified.scores, classified.positive
    threshold, labels = classified.manifest.threshold, [image.label for image in classified.images]
    not_assessed = classified.not_assessed
    return {
        "images": len(classified.images) + len(not_assessed),
        "not_assessed": {
            reason: not_assessed.count(reason) for reason in sorted(set(not_assessed))
        },
        "out_of_distribution": None
        if classified.unlike is None
        else rate(classified.unlike, len(classified.images)),
        "overall": {
            **_group(classified),
            "average_precision": average_precision(scores, positive),
        },
        "bootstrap": bootstrap(
            scores, positive, [image.patient for image in classified.images], threshold
        ),
        "indeterminate_range": _indeterminate_range(classified),
        "operating_points": operating_points(
            scores, positive, threshold, threshold_origin(classified.manifest)
        ),
        "thresholds": threshold_table(scores, positive, threshold),
        "by_label": _by_label(classified),
        "by_source": _by_group(classified, [image.source for image in classified.images]),
        "by_view": _by_group(classified, [image.view for image in classified.images]),
        "confusion": confusion(classified.truth, classified.called, classified.manifest.classes),
        "curves": curves(scores, positive),
        "histograms": histograms(scores, labels),
        "reliability": reliability(scores, positive),
    }


def threshold_origin(manifest: ModelManifest) -> str:
    """How a model's threshold was chosen, in a few words."""
    origin = manifest.threshold_origin
    if "rule" not in origin:
        return "not stated by the model"
    images = f"{origin['images']} images of " if "images" in origin else ""
    return f"{origin['rule']}, on {images}{origin.get('split', 'other data')}"


def _group(classified: Predictions, among: Any = slice(None)) -> dict[str, Any]:
    scores, positive = classified.scores[among], classified.positive[among]
    return {
        **area(scores, positive),
        **at_threshold(scores, positive, classified.manifest.threshold),
    }


def _by_group(classified: Predictions, names: Sequence[str]) -> dict[str, Any]:
    groups = np.array([name or NOT_STATED for name in names])
    return {name: _group(classified, groups == name) for name in sorted(set(groups.tolist()))}


def _by_label(classified: Predictions) -> dict[str, Any]:
    """How many images of each label of the data set are called positive."""
    called = classified.scores >= classified.manifest.threshold
    labels = np.array([image.label for image in classified.images])
    return {
        label: {
            "images": int((labels == label).sum()),
            "positive": label in classified.manifest.positive_labels,
            "called_positive": rate(
                int(called[labels == label].sum()), int((labels == label).sum())
            ),
        }
        for label in sorted(set(labels.tolist()))
    }


def _indeterminate_range(classified: Predictions) -> dict[str, Any] | None:
    """How many images the indeterminate range holds, and how often the others are right."""
    indeterminate_range = classified.manifest.indeterminate_range
    if indeterminate_range is None:
        return None
    positive, called = classified.positive, classified.scores >= indeterminate_range.high
    held = ~called & (classified.scores >= indeterminate_range.low)
    return {
        "low": indeterminate_range.low,
        "high": indeterminate_range.high,
        "indeterminate": rate(int(held.sum()), len(held)),
        "indeterminate_positives": rate(int((held & positive).sum()), int(positive.sum())),
        "decided_images": int((~held).sum()),
        "decided": at_threshold(
            classified.scores[~held], positive[~held], classified.manifest.threshold
        ),
    }


def _comparison(first: Predictions, other: Predictions) -> dict[str, Any]:
    """Paired differences of two models on the images that both assessed, other less first."""
    places = {image.path: index for index, image in enumerate(first.images)}
    pairs = [
        (places[image.path], i) for i, image in enumerate(other.images) if image.path in places
    ]
    left, right = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    positive = first.positive[left]
    figures: dict[str, Any] = {
        "reference": _name(first),
        "candidate": _name(other),
        "images": len(pairs),
    }
    if not np.array_equal(positive, other.positive[right]):
        return {**figures, "not_compared": "the models' positive classes hold different images"}
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


def _name(classified: Predictions) -> dict[str, str]:
    manifest = classified.manifest
    return {
        "model": manifest.name,
        "precision": manifest.precision,
        "sha256": classified.run.model_sha256,
    }
