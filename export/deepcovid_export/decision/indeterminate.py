"""The indeterminate range: probabilities too close to the threshold to call, chosen on `val`.

A threshold is chosen on a few images; other images of the same kind would have given another one.
The indeterminate range measures that chance: draw patients of `val` again, choose the threshold by
the model's own rule on each draw, and take the middle 95 % of the thresholds (percentile bootstrap
over patients: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). An image in
the range is positive by one choice of images and negative by another. A person decides such an
image (a reject option, Chow 1970, IEEE Transactions on Information Theory 16:41).

Persons should rarely be asked: a range that holds more than one image of `val` in twenty is
narrowed, evenly in the logit, until it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256
from deepcovid_edge.decision.thresholds import threshold_for_new_images
from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import IndeterminateRange, ModelManifest
from deepcovid_export.decision.conformal import conformal_range
from deepcovid_export.evaluation.bootstrap import number_patients
from deepcovid_export.evaluation.metrics import Scores, Truth
from deepcovid_export.evaluation.predictions import Predictions, classify
from deepcovid_export.onnx_export.to_onnx import rewrite_manifest
from deepcovid_export.recipe import RangeSettings

SPLIT = "val"
Rule = Callable[[Scores, Truth], float]
_EDGE = 1e-6
"""Probabilities in records have six decimals."""


@dataclass(frozen=True)
class IndeterminateSettings:
    """How an indeterminate range is chosen.

    Attributes:
        confidence: Share of the drawn thresholds that the range spans.
        most: Largest share of the images that it may hold.
        replicates: Number of draws.
        seed: Seed of the draws.
    """

    confidence: float = 0.95
    most: float = 0.05
    replicates: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1 or not 0 <= self.most <= 1:
            raise UsageError(
                f"indeterminate_range: got confidence {self.confidence} and most {self.most}, "
                "expected 0 to 1"
            )
        if self.replicates < 100:
            raise UsageError(
                f"indeterminate_range.replicates: got {self.replicates}, expected 100 or more"
            )


def fit_indeterminate_range(
    scores: Scores,
    positive: Truth,
    threshold: float,
    *,
    rule: Rule,
    patients: Sequence[str] = (),
    settings: IndeterminateSettings | None = None,
) -> IndeterminateRange:
    """Choose the indeterminate range of a threshold.

    Args:
        scores: Scores of images of both classes.
        positive: Their truth.
        threshold: The model's threshold.
        rule: How the threshold was chosen from scores and truth.
        patients: Patient of each image; empty where every image has its own.
        settings: Confidence, largest share, draws.

    Returns:
        A range that holds the threshold, and how it was chosen.
    """
    settings = settings or IndeterminateSettings()
    drawn = _draw_thresholds(scores, positive, rule, patients, settings)
    ends = (1 - settings.confidence) / 2
    low, high = (float(end) for end in np.quantile(drawn, [ends, 1 - ends]))
    spanned = min(low, threshold), max(high, threshold)
    low, high = _narrow(scores, threshold, spanned, settings.most)
    held = (scores >= low) & (scores < high)
    origin = {
        "rule": f"middle {settings.confidence:.0%} of the thresholds of {len(drawn)} draws of "
        f"patients, holding at most {settings.most:.0%} of the images",
        "split": SPLIT,
        "images": len(scores),
        "indeterminate": int(held.sum()),
        "spanned": [round(end, 6) for end in spanned],
        **asdict(settings),
    }
    return IndeterminateRange(low, high, origin)


def fit_model_indeterminate_range(path: Path, images: Sequence[LabelledImage]) -> ModelManifest:
    """Choose the indeterminate range of an exported file on `val` and write it into the file.

    Args:
        path: The .onnx file, whose threshold `train` chose on these images.
        images: Labelled images of `val`.

    Raises:
        UsageError: The manifest does not state the sensitivity that the threshold was chosen for.
        DataError: No image was assessed.
    """
    with load_backend(path) as backend:
        classified = classify(backend, images)
        manifest = backend.manifest
    span = _range_of(classified)
    origin = {**span.origin, "data_sha256": dataset_sha256(classified.images)}
    manifest = replace(manifest, indeterminate_range=replace(span, origin=origin))
    rewrite_manifest(path, manifest)
    return manifest


def _range_of(classified: Predictions) -> IndeterminateRange:
    """Conformal where the threshold is that of the worst source, else by draws of patients."""
    manifest, scores, positive = classified.manifest, classified.scores, classified.positive
    rule = threshold_rule(manifest)
    if "by_source" in manifest.threshold_origin:
        sources = [image.source for image in classified.images]
        promised = RangeSettings(**manifest.training["recipe"].get("range", {}))
        if span := conformal_range(scores, positive, sources, manifest.threshold, promised):
            return span
    return fit_indeterminate_range(
        scores, positive, manifest.threshold, rule=rule, patients=classified.patients
    )


def threshold_rule(manifest: ModelManifest) -> Rule:
    """How a model's threshold was chosen.

    Raises:
        UsageError: The manifest does not state the sensitivity that the threshold was chosen for.
    """
    recipe = manifest.training.get("recipe", {})
    sensitivity = recipe.get("sensitivity")
    if sensitivity is None or manifest.threshold_origin.get("split") != SPLIT:
        raise UsageError(
            f"{manifest.name}: its threshold was not chosen on {SPLIT} for a sensitivity, so no "
            "indeterminate range can be fitted: train the model with `deepcovid-edge train`"
        )
    return lambda scores, positive: threshold_for_new_images(scores, positive, sensitivity)[0]


def _draw_thresholds(
    scores: Scores,
    positive: Truth,
    rule: Rule,
    patients: Sequence[str],
    settings: IndeterminateSettings,
) -> NDArray[np.float64]:
    count, owner = number_patients([*patients] or [""] * len(scores))
    draw = np.random.default_rng(settings.seed)
    found = []
    for _ in range(settings.replicates):
        times = np.bincount(draw.integers(count, size=count), minlength=count)
        chosen = np.repeat(np.arange(len(scores)), times[owner])
        if positive[chosen].any():
            found.append(rule(scores[chosen], positive[chosen]))
    return np.array(found)


def _narrow(
    scores: Scores, threshold: float, ends: tuple[float, float], most: float
) -> tuple[float, float]:
    """Cut a range at one distance from the threshold, in logits, so that it holds few enough."""
    held = scores[(scores >= ends[0]) & (scores < ends[1])]
    allowed = math.floor(most * len(scores) + 1e-9)
    if len(held) <= allowed:
        return ends
    centre = _logit(np.array([threshold]))[0]
    away = np.sort(np.abs(_logit(held.astype(np.float64)) - centre))
    reach = (away[allowed] + (away[allowed - 1] if allowed else 0.0)) / 2
    low, high = (1 / (1 + math.exp(-(centre + sign * reach))) for sign in (-1, 1))
    return min(max(ends[0], low), threshold), max(min(ends[1], high), threshold)


def _logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    within = np.clip(values, _EDGE, 1 - _EDGE)
    logits: NDArray[np.float64] = np.log(within / (1 - within))
    return logits
