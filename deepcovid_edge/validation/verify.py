"""Is a candidate as accurate as its reference? The equivalence check.

Two models classify the same images; what is compared is what a clinic would notice: decisions that
turned, sensitivity, specificity and area under the curve at the operating point; and, when asked,
whether both look at the same places.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend, Inference, identity, softmax
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels, dataset_sha256
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.record import DECIMALS
from deepcovid_edge.decision.statistics import (
    Scores,
    Truth,
    auc,
    auc_change,
    mcnemar_exact,
    paired_difference,
    upper_bound,
    wilson,
)
from deepcovid_edge.errors import DataError, ModelFileError, NotAssessedError, UsageError
from deepcovid_edge.heatmaps.agreement import (
    MapComparison,
    choose_images,
    compare_models,
    summarise,
)
from deepcovid_edge.heatmaps.heatmap import OCCLUSION
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import VERSION, InputSpec, ModelManifest

SCHEMA_VERSION = 1
UNCHANGED, CHANGED, INSUFFICIENT = "unchanged", "changed", "insufficient"
_CHUNK = 32


@dataclass(frozen=True)
class EquivalenceRules:
    """When a candidate counts as unchanged. A manifest's `equivalence` may set other values.

    Attributes:
        max_flips: Largest share of images whose decision turns.
        max_auc_change: Largest change of the area under the curve, either way.
        smallest_change: Smallest change of sensitivity or specificity that the images must be able
            to show: one image of the class may weigh no more.
        paired_interval: Whether the paired 95 % intervals of the changes of sensitivity and
            specificity must hold zero.
        min_heatmap_correlation: Smallest median of the rank correlations of heat maps, where maps
            were compared.
    """

    max_flips: float = 0.01
    max_auc_change: float = 0.003
    smallest_change: float = 0.01
    paired_interval: bool = True
    min_heatmap_correlation: float = 0.95

    def __post_init__(self) -> None:
        shares = ("max_flips", "max_auc_change", "smallest_change", "min_heatmap_correlation")
        for name in shares:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"equivalence.{name}: got {value}, expected 0 to 1")

    @classmethod
    def of(cls, manifest: ModelManifest, **changes: Any) -> EquivalenceRules:
        """The rules of a model's manifest, with changes; None changes nothing."""
        known = {item.name for item in fields(cls)}
        stated = {name: value for name, value in manifest.equivalence.items() if name in known}
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**stated, **given})


@dataclass(frozen=True)
class Predictions:
    """What two models say of the same images.

    Attributes:
        images: The images that were assessed.
        reference: The reference's logits, of shape (N, classes), float32.
        candidate: The candidate's logits, likewise.
        not_assessed: Files that could not be assessed, with their reason.
        unlike: Whether each model's out-of-distribution limits refuses each image; None for a model
            without one. The images are classified all the same.
    """

    images: list[LabelledImage]
    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]
    not_assessed: dict[str, str]
    unlike: tuple[Truth | None, ...]


def classify(
    reference: Backend, candidate: Backend, images: Sequence[LabelledImage]
) -> Predictions:
    """Let two models classify the same images, each read once.

    Raises:
        ModelFileError: The models differ in classes, input or positive class.
        DataError: No image could be assessed.
    """
    _check_comparable(reference.manifest, candidate.manifest)
    kept: list[LabelledImage] = []
    not_assessed: dict[str, str] = {}
    said: tuple[list[Inference], list[Inference]] = ([], [])
    for chunk in _prepared(images, reference.manifest.input):
        good = [(image, pixels) for image, pixels in chunk if isinstance(pixels, np.ndarray)]
        not_assessed |= {str(image.path): code for image, code in chunk if isinstance(code, str)}
        if good:
            batch = np.stack([pixels for _, pixels in good])
            kept += [image for image, _ in good]
            said[0].append(reference.infer(batch))
            said[1].append(candidate.infer(batch))
    if not kept:
        raise DataError(f"none of {len(images)} images could be assessed")
    logits = [np.concatenate([one.logits for one in side]) for side in said]
    models = (reference.manifest, candidate.manifest)
    unlike = tuple(_unlike(*pair) for pair in zip(models, said, strict=True))
    return Predictions(kept, logits[0], logits[1], not_assessed, unlike)


def _unlike(manifest: ModelManifest, said: Sequence[Inference]) -> Truth | None:
    equivalence = OodLimits.of(manifest)
    rows = [one.ood_scores for one in said if one.ood_scores is not None]
    return equivalence.beyond(np.concatenate(rows)) if equivalence and rows else None


def verify(
    reference: Backend,
    candidate: Backend,
    images: Sequence[LabelledImage],
    *,
    rules: EquivalenceRules | None = None,
    heatmaps: MapComparison | None = None,
) -> dict[str, Any]:
    """Compare a candidate with its reference on labelled images.

    Args:
        reference: The model whose accuracy is known.
        candidate: The model that shall replace it.
        images: Labelled images; both classes must occur for a verdict.
        rules: When the candidate counts as unchanged; None for the reference's own.
        heatmaps: Which heat maps are compared too; None for none.

    Returns:
        Differences, flips, paired statistics and the verdict, as plain values for JSON.

    Raises:
        ModelFileError: The models cannot be compared.
        DataError: No image could be assessed.
        UsageError: A window of the heat maps is larger than the models' input.
    """
    manifest = reference.manifest
    rules = rules or EquivalenceRules.of(manifest)
    check_labels(images, manifest.known_labels)
    classified = classify(reference, candidate, images)
    scores = tuple(
        np.round(softmax(logits)[:, manifest.positive_index], DECIMALS)
        for logits in (classified.reference, classified.candidate)
    )
    positive = np.array([image.label in manifest.positive_labels for image in classified.images])
    figures = _figures(scores[0], scores[1], positive, manifest.threshold)
    models = (reference, candidate)
    figures["heatmap"] = heatmaps and _heatmaps(models, classified.images, positive, heatmaps)
    figures["ood"] = _ood(classified)
    failed = _failures(figures, rules, manifest, candidate.manifest)
    missing = _missing(positive, rules)
    verdict = CHANGED if failed else INSUFFICIENT if missing else UNCHANGED
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict,
        "failed": failed,
        "missing": missing,
        "rules": asdict(rules),
        "reference": identity(reference),
        "candidate": identity(candidate),
        "threshold": manifest.threshold,
        "images": len(classified.images),
        "not_assessed": classified.not_assessed,
        "data_sha256": dataset_sha256(classified.images),
        "logits": _differences(classified.reference, classified.candidate),
        "probability": _differences(scores[0], scores[1]),
        **figures,
        "flipped": _flipped(classified.images, scores, manifest.threshold),
        **_by_group(classified.images, scores, manifest.threshold),
        "created_with": {"deepcovid-edge": VERSION},
    }


def _check_comparable(reference: ModelManifest, candidate: ModelManifest) -> None:
    for name in ("classes", "positive_class", "input"):
        expected, got = getattr(reference, name), getattr(candidate, name)
        if expected != got:
            raise ModelFileError(
                f"{name}: candidate has {got}, reference has {expected}: "
                "only models of the same task and input can be compared"
            )


def _prepared(
    images: Sequence[LabelledImage], spec: InputSpec
) -> Iterator[list[tuple[LabelledImage, NDArray[np.uint8] | str]]]:
    def read(image: LabelledImage) -> NDArray[np.uint8] | str:
        try:
            return prepare(read_radiograph(image.path), spec)
        except NotAssessedError as error:
            return error.reason.code

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            yield list(zip(chunk, pool.map(read, chunk), strict=True))


def _figures(before: Scores, now: Scores, positive: Truth, threshold: float) -> dict[str, Any]:
    """Flips and the changes of sensitivity, specificity and area under the curve."""
    called = (before >= threshold, now >= threshold)
    right = (called[0] == positive, called[1] == positive)
    lost, gained = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    flips = int((called[0] != called[1]).sum())
    figures: dict[str, Any] = {
        "flips": {
            "count": flips,
            "share": flips / len(before),
            "upper_95": upper_bound(flips, len(before)),
        },
        "mcnemar": {"lost": lost, "gained": gained, "p": mcnemar_exact(lost, gained)},
        "sensitivity": _change(right, positive),
        "specificity": _change(right, ~positive),
        "auc": None,
    }
    if positive.any() and not positive.all():
        change, interval = auc_change(before, now, positive)
        values = {"reference": auc(before, positive), "candidate": auc(now, positive)}
        figures["auc"] = {**values, "change": change, "interval_95": list(interval)}
    return figures


def _change(right: tuple[Truth, Truth], group: Truth) -> dict[str, Any] | None:
    before, now = right[0][group], right[1][group]
    if not len(before):
        return None
    change, interval = paired_difference(before, now)
    return {
        "images": len(before),
        "reference": _rate(before),
        "candidate": _rate(now),
        "change": change,
        "interval_95": list(interval),
    }


def _ood(classified: Predictions) -> dict[str, int] | None:
    """How many images the out-of-distribution limits refuse, and on how many they differ."""
    before, now = classified.unlike
    if before is None or now is None:
        return None
    counts = (before, now, before != now)
    return {
        name: int(count.sum())
        for name, count in zip(("reference", "candidate", "differ"), counts, strict=True)
    }


def _rate(right: Truth) -> dict[str, Any]:
    successes, trials = int(right.sum()), len(right)
    return {"value": successes / trials, "interval_95": list(wilson(successes, trials))}


def _heatmaps(
    models: tuple[Backend, Backend],
    images: Sequence[LabelledImage],
    positive: Truth,
    asked: MapComparison,
) -> dict[str, Any]:
    """How alike the occlusion maps of some images are, on the whole and each."""
    spec, windows = models[0].manifest.input, asked.occlusion
    chosen = [images[place] for place in choose_images(positive, asked.images)]
    pixels = (prepare(read_radiograph(image.path), spec) for image in chosen)
    found = compare_models(*models, pixels, windows)
    return {
        "method": OCCLUSION,
        "window": windows.window,
        "stride": windows.stride,
        "baseline": windows.baseline,
        "images": len(chosen),
        **summarise(found),
        "by_image": [
            {"path": _short(image.path), "label": image.label, **asdict(agreement)}
            for image, agreement in zip(chosen, found, strict=True)
        ],
    }


def _failures(
    figures: dict[str, Any],
    rules: EquivalenceRules,
    reference: ModelManifest,
    candidate: ModelManifest,
) -> list[str]:
    failed = []
    if candidate.threshold != reference.threshold:
        failed.append(
            f"threshold: candidate has {candidate.threshold}, reference {reference.threshold}"
        )
    if reference.ood and not candidate.ood:
        failed.append(
            "out-of-distribution limits: reference has one, candidate classifies any image"
        )
    share = figures["flips"]["share"]
    if share > rules.max_flips:
        failed.append(f"flips: {share:.2%} of the decisions turned, allowed {rules.max_flips:.2%}")
    for name in ("sensitivity", "specificity"):
        change = figures[name]
        if change and rules.paired_interval:
            low, high = change["interval_95"]
            if not low <= 0 <= high:
                failed.append(
                    f"{name}: changed by {change['change']:+.2%} [{low:+.2%}, {high:+.2%}]"
                )
    moved = figures["auc"]
    if moved and abs(moved["change"]) > rules.max_auc_change:
        failed.append(f"AUC: changed by {moved['change']:+.4f}, allowed {rules.max_auc_change}")
    return [*failed, *_unlike_maps(figures["heatmap"], rules)]


def _unlike_maps(maps: dict[str, Any] | None, rules: EquivalenceRules) -> list[str]:
    alike = maps["rank_correlation"]["median"] if maps else 1.0
    if alike >= rules.min_heatmap_correlation:
        return []
    return [
        f"heat maps: median rank correlation {alike:.3f}, expected at least "
        f"{rules.min_heatmap_correlation}"
    ]


def _missing(positive: Truth, rules: EquivalenceRules) -> dict[str, Any]:
    """How many images of which class are too few to show the smallest change, if any."""
    if not rules.smallest_change:
        return {}
    needed = int(np.ceil(1 / rules.smallest_change - 1e-9))
    present = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
    return {
        name: {"images": count, "needed": needed}
        for name, count in present.items()
        if count < needed
    }


def _differences(before: NDArray[Any], now: NDArray[Any]) -> dict[str, float]:
    apart = np.abs(now.astype(np.float64) - before)
    spread = float(np.std(before))
    rmse = float(np.sqrt(np.mean(apart**2)))
    return {
        "max": float(apart.max()),
        "median": float(np.median(apart)),
        "rmse": rmse,
        "relative_rmse": rmse / spread if spread else 0.0,
    }


def _flipped(
    images: Sequence[LabelledImage], scores: tuple[Scores, ...], threshold: float
) -> list[dict[str, Any]]:
    return [
        {
            "path": _short(image.path),
            "label": image.label,
            "source": image.source,
            "reference": float(before),
            "candidate": float(now),
        }
        for image, before, now in zip(images, *scores, strict=True)
        if (before >= threshold) != (now >= threshold)
    ]


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _by_group(
    images: Sequence[LabelledImage], scores: tuple[Scores, ...], threshold: float
) -> dict[str, Any]:
    return {
        f"by_{kind}": _groups([getattr(image, kind) for image in images], scores, threshold)
        for kind in ("label", "source")
    }


def _groups(
    names: Sequence[str], scores: tuple[Scores, ...], threshold: float
) -> dict[str, dict[str, Any]]:
    keys = np.array([name or "not stated" for name in names])
    groups = {}
    for key in sorted(set(keys.tolist())):
        before, now = (part[keys == key] for part in scores)
        groups[key] = {
            "images": len(before),
            "called_positive": {
                "reference": int((before >= threshold).sum()),
                "candidate": int((now >= threshold).sum()),
            },
            "flips": int(((before >= threshold) != (now >= threshold)).sum()),
            "max_probability_difference": float(np.abs(now - before).max()),
        }
    return groups
