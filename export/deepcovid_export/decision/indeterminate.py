"""The indeterminate range: probabilities too close to the threshold to call, chosen on `val`.

A threshold is read off a few images; other images of the same kind would have given another. The
indeterminate range is what that chance is worth: draw patients of `val` anew, choose the threshold
by the model's own rule on each draw, and take the middle 95 % of the thresholds (percentile
bootstrap over patients: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
An image between them is positive by one choice of images and negative by another. Such an image is
a matter for a person (a reject option, Chow 1970, IEEE Transactions on Information Theory 16:41).

What is asked of a person must stay rare: an indeterminate range that holds more than one image of
`val` in twenty is made narrower, evenly in the logit, until it does not.
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
from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import IndeterminateRange, ModelManifest
from deepcovid_export.evaluation.metrics import Scores, Truth, threshold_for_new_images
from deepcovid_export.evaluation.predictions import classify
from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

SPLIT = "val"
Rule = Callable[[Scores, Truth], float]
_EDGE = 1e-6
"""Probabilities in records have six decimals."""


@dataclass(frozen=True)
class IndeterminateSettings:
    """How an indeterminate range is chosen.

    Attributes:
        confidence: Share of the drawn thresholds that it spans.
        most: Largest share of the images that it may hold.
        replicates: Draws.
        seed: Of the draws.
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
        scores: Probability of the positive class, of shape (images,).
        positive: Whether each image is positive, of shape (images,); both kinds occur.
        threshold: The model's.
        rule: How the threshold was chosen, of scores and truth.
        patients: Patient of each image, who are drawn; empty for images that stand alone.
        settings: Confidence, largest share, draws.

    Returns:
        A indeterminate range that holds the threshold, with what it was chosen by.
    """
    settings = settings or IndeterminateSettings()
    drawn = _drawn_thresholds(scores, positive, rule, patients, settings)
    ends = (1 - settings.confidence) / 2
    low, high = (float(end) for end in np.quantile(drawn, [ends, 1 - ends]))
    spanned = min(low, threshold), max(high, threshold)
    low, high = _narrowed(scores, threshold, spanned, settings.most)
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


def fit_model_indeterminate_range(
    path: Path, images: Sequence[LabelledImage], settings: IndeterminateSettings | None = None
) -> ModelManifest:
    """Choose the indeterminate range of an exported file on `val` and write it into the file.

    Args:
        path: The .onnx file, whose threshold was chosen on these images by `train`.
        images: Labelled images of `val`.
        settings: Confidence, largest share, draws.

    Returns:
        The manifest that the file has now.

    Raises:
        UsageError: The model does not say by which sensitivity its threshold was chosen.
        DataError: No image was assessed.
    """
    with load_backend(path) as backend:
        classified = classify(backend, images)
        manifest = backend.manifest
    indeterminate_range = fit_indeterminate_range(
        classified.scores,
        classified.positive,
        manifest.threshold,
        rule=threshold_rule(manifest),
        patients=[image.patient for image in classified.images],
        settings=settings,
    )
    origin = {**indeterminate_range.origin, "data_sha256": dataset_sha256(classified.images)}
    manifest = replace(manifest, indeterminate_range=replace(indeterminate_range, origin=origin))
    rewrite_manifest(path, manifest)
    return manifest


def threshold_rule(manifest: ModelManifest) -> Rule:
    """How a model's threshold was chosen.

    Raises:
        UsageError: The model does not say by which sensitivity.
    """
    recipe = manifest.training.get("recipe", {})
    sensitivity = recipe.get("sensitivity")
    if sensitivity is None or manifest.threshold_origin.get("split") != SPLIT:
        raise UsageError(
            f"{manifest.name}: its threshold was not chosen on {SPLIT} by a sensitivity, so a "
            "indeterminate_range around it cannot be: train the model with `deepcovid-edge train`"
        )
    return lambda scores, positive: threshold_for_new_images(scores, positive, sensitivity)[0]


def _drawn_thresholds(
    scores: Scores,
    positive: Truth,
    rule: Rule,
    patients: Sequence[str],
    settings: IndeterminateSettings,
) -> NDArray[np.float64]:
    names = [*patients] or [""] * len(scores)
    owners = [name or f"\0image {number}" for number, name in enumerate(names)]
    unique, owner = np.unique(owners, return_inverse=True)
    draw = np.random.default_rng(settings.seed)
    found = []
    for _ in range(settings.replicates):
        times = np.bincount(draw.integers(len(unique), size=len(unique)), minlength=len(unique))
        chosen = np.repeat(np.arange(len(scores)), times[owner])
        if positive[chosen].any():
            found.append(rule(scores[chosen], positive[chosen]))
    return np.array(found)


def _narrowed(
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
