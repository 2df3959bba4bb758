"""Measure models on labelled images: how often they are right, and whether they read the source.

`report` makes a page of the figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.datasets.contents import Contents
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
from deepcovid_export.evaluation.localisation import LocalisationSettings, measure_localisation
from deepcovid_export.evaluation.metrics import Truth, area, at_threshold
from deepcovid_export.evaluation.predictions import Predictions, classify, with_truth
from deepcovid_export.evaluation.results import (
    SCHEMA_VERSION,
    Change,
    Comparison,
    Evaluation,
    Group,
    Indeterminate,
    LabelFigures,
    Overall,
    Rate,
    Shortcuts,
    SideBySide,
    SoftLabelFigures,
)
from deepcovid_export.evaluation.shortcuts import measure_shortcuts

NOT_STATED = "not stated"
_CREATED_WITH = {"deepcovid-edge": VERSION}


def evaluate(
    model: Path,
    images: Sequence[LabelledImage],
    *,
    description: str,
    shortcuts: bool = False,
    localisation: LocalisationSettings | None = None,
) -> Evaluation:
    """Measure a model on labelled images.

    Args:
        model: An .onnx file, an engine or a checkpoint.
        images: Images with their labels; the model's recipe says to which class a label belongs.
        description: What the images are, for the report.
        shortcuts: Also measure whether the model reads the source, in four more passes.
        localisation: Which heat maps are held against boxes, where images have some.

    Returns:
        Figures over all images and by label, source and view. Intervals take images as
        independent, except those of `bootstrap`, which draw patients. Each content counts once.

    Raises:
        DataError: No image was assessed, a label belongs to no class, or one image has two labels.
    """
    return _measure(model, images, description, shortcuts, localisation)[0]


def evaluate_side_by_side(
    models: Sequence[Path],
    images: Sequence[LabelledImage],
    *,
    description: str,
    shortcuts: bool = False,
    localisation: LocalisationSettings | None = None,
) -> SideBySide:
    """Measure several models on the same images, and how each differs from the first.

    Raises:
        UsageError: There are fewer than two models.
        DataError: As `evaluate`.
    """
    if len(models) < 2:
        raise UsageError(f"models: got {len(models)}, expected two or more to compare")
    measured = [_measure(model, images, description, shortcuts, localisation) for model in models]
    evaluations, predictions = (list(side) for side in zip(*measured, strict=True))
    return SideBySide(
        SCHEMA_VERSION,
        NOTICE,
        description,
        evaluations[0].data_sha256,
        evaluations,
        [_compare(predictions[0], other) for other in predictions[1:]],
        _CREATED_WITH,
    )


def _measure(
    model: Path,
    images: Sequence[LabelledImage],
    description: str,
    shortcuts: bool,
    localisation: LocalisationSettings | None,
) -> tuple[Evaluation, Predictions]:
    with load_backend(model) as backend:
        true, contents = with_truth(images, backend.manifest), Contents()
        try:
            classified = classify(backend, true, contents=contents)
        except DataError as error:
            raise DataError(f"{description}: {error}") from error
        found = measure_shortcuts(backend, true, classified) if shortcuts else None
        soft = _of_soft_labels(backend, images, contents)
        evaluation = replace(
            _evaluation(classified, soft, description, found),
            localisation=measure_localisation(backend, classified.images, localisation) or None,
            repeated=contents.repeated or None,
        )
    return evaluation, classified


def _of_soft_labels(
    backend: Backend, images: Sequence[LabelledImage], contents: Contents
) -> Predictions | None:
    """The images of labels that are no truth, if there are any; perhaps none was assessed."""
    soft = [image for image in images if image.label in backend.manifest.soft_labels]
    return classify(backend, soft, any_label=True, contents=contents) if soft else None


def _soft_labels(classified: Predictions) -> dict[str, SoftLabelFigures]:
    labels = np.array([image.label for image in classified.images])
    called = classified.scores >= classified.manifest.threshold
    held, accepted = _held(classified), classified.accepted
    return {
        label: SoftLabelFigures(
            int((labels == label).sum()),
            _share(called[labels == label]),
            None if held is None else _share(held[accepted & (labels == label)]),
        )
        for label in sorted(set(labels.tolist()))
    }


def _share(chosen: Truth) -> Rate:
    return Rate(int(chosen.sum()), chosen.size)


def _held(classified: Predictions) -> Truth | None:
    """Whether each image is accepted and too close to call; None without an indeterminate range."""
    span = classified.manifest.indeterminate_range
    if span is None:
        return None
    held: Truth = (classified.scores >= span.low) & (classified.scores < span.high)
    return held & classified.accepted


def _indeterminate_by_source(classified: Predictions) -> dict[str, Rate] | None:
    held = _held(classified)
    sources = np.array([image.source or NOT_STATED for image in classified.images])
    names = sorted(set(sources.tolist()))
    if held is None or len(names) < 2:
        return None
    return {name: _share(held[classified.accepted & (sources == name)]) for name in names}


def _evaluation(
    classified: Predictions,
    soft: Predictions | None,
    description: str,
    shortcuts: Shortcuts | None,
) -> Evaluation:
    manifest, run = classified.manifest, classified.run
    reasons = Counter(classified.not_assessed + (soft.not_assessed if soft else ()))
    scores, positive, threshold = classified.scores, classified.positive, manifest.threshold
    labels, rejected = [image.label for image in classified.images], classified.rejected
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        notice=NOTICE,
        data=description,
        data_sha256=dataset_sha256(classified.images),
        model=manifest.name,
        model_sha256=run.model_sha256,
        architecture=manifest.architecture,
        precision=manifest.precision,
        backend=run.backend,
        input={**asdict(manifest.input), "resize": manifest.input.resize.value},
        classes=list(manifest.classes),
        positive_class=manifest.positive_class,
        threshold=threshold,
        threshold_origin=dict(manifest.threshold_origin),
        export=manifest.training.get("export"),
        images=len(labels) + len(classified.not_assessed),
        not_assessed=dict(sorted(reasons.items())),
        out_of_distribution=None if rejected is None else _share(rejected),
        overall=_overall(classified),
        bootstrap=bootstrap(scores, positive, classified.patients, threshold),
        indeterminate_range=_indeterminate(classified),
        operating_points=operating_points(scores, positive, threshold, threshold_origin(manifest)),
        thresholds=threshold_table(scores, positive, threshold),
        by_label=_by_label(classified),
        by_source=_by_group(classified, [image.source for image in classified.images]),
        by_view=_by_group(classified, [image.view for image in classified.images]),
        confusion=confusion(classified.truth, classified.predicted, manifest.classes),
        curves=curves(scores, positive),
        histograms=histograms(scores, labels),
        reliability=reliability(scores, positive),
        shortcuts=shortcuts,
        created_with=_CREATED_WITH,
        soft_labels=_soft_labels(soft) if soft and soft.images else None,
        indeterminate_by_source=_indeterminate_by_source(classified),
    )


def threshold_origin(manifest: ModelManifest) -> str:
    """How a model's threshold was chosen, in a few words."""
    origin = manifest.threshold_origin
    if "rule" not in origin:
        return "not stated by the model"
    images = f"{origin['images']} images of " if "images" in origin else ""
    return f"{origin['rule']}, on {images}{origin.get('split', 'other data')}"


def _group(classified: Predictions, among: Any = slice(None)) -> Group:
    scores, positive = classified.scores[among], classified.positive[among]
    accuracy = at_threshold(scores, positive, classified.manifest.threshold)
    return Group(**vars(area(scores, positive)), **vars(accuracy))


def _overall(classified: Predictions) -> Overall:
    precision = average_precision(classified.scores, classified.positive)
    return Overall(**vars(_group(classified)), average_precision=precision)


def _by_group(classified: Predictions, names: Sequence[str]) -> dict[str, Group]:
    groups = np.array([name or NOT_STATED for name in names])
    return {name: _group(classified, groups == name) for name in sorted(set(groups.tolist()))}


def _by_label(classified: Predictions) -> dict[str, LabelFigures]:
    called = classified.scores >= classified.manifest.threshold
    labels = np.array([image.label for image in classified.images])
    found = {}
    for label in sorted(set(labels.tolist())):
        own = called[labels == label]
        is_positive = label in classified.manifest.positive_labels
        found[label] = LabelFigures(len(own), is_positive, _share(own))
    return found


def _indeterminate(classified: Predictions) -> Indeterminate | None:
    """How many accepted images the indeterminate range holds; how often the others are right."""
    span, held = classified.manifest.indeterminate_range, _held(classified)
    if span is None or held is None:
        return None
    scores, positive, accepted = classified.scores, classified.positive, classified.accepted
    decided = accepted & ~held
    return Indeterminate(
        low=span.low,
        high=span.high,
        indeterminate=_share(held[accepted]),
        indeterminate_positives=_share(held[accepted & positive]),
        decided_images=int(decided.sum()),
        decided=at_threshold(scores[decided], positive[decided], classified.manifest.threshold),
    )


def _compare(first: Predictions, other: Predictions) -> Comparison:
    """Paired differences of two models on the images that both assessed, other less first."""
    places = {image.path: index for index, image in enumerate(first.images)}
    pairs = [
        (places[image.path], i) for i, image in enumerate(other.images) if image.path in places
    ]
    left, right = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    positive = first.positive[left]
    models = _identity(first), _identity(other), len(pairs)
    if not np.array_equal(positive, other.positive[right]):
        reason = "the models' positive classes hold different images"
        return Comparison(*models, not_compared=reason)
    before, now = first.scores[left].astype(np.float64), other.scores[right].astype(np.float64)
    was = (before >= first.manifest.threshold) == positive
    is_now = (now >= other.manifest.threshold) == positive
    changes: dict[str, Any] = {}
    if positive.any() and not positive.all():
        changes["auc"] = Change(*auc_change(before, now, positive))
    for name, group in (("sensitivity", positive), ("specificity", ~positive)):
        if group.any():
            changes[name] = _rate_change(was[group], is_now[group])
    return Comparison(*models, **changes)


def _rate_change(was: Any, is_now: Any) -> Change:
    lost, gained = int((was & ~is_now).sum()), int((~was & is_now).sum())
    return Change(*paired_difference(was, is_now), lost, gained, mcnemar_exact(lost, gained))


def _identity(classified: Predictions) -> dict[str, str]:
    manifest = classified.manifest
    return {
        "model": manifest.name,
        "precision": manifest.precision,
        "sha256": classified.run.model_sha256,
    }
