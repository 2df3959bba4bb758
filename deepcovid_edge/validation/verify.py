"""Is a candidate as accurate as its reference? The equivalence check.

Two models classify the same images. What is compared is what a clinic would notice: decisions that
turned; sensitivity, specificity and area under the curve at the operating point; and, on request,
whether both look at the same places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from deepcovid_edge.backends.base import Backend, identity
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels, dataset_sha256
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.decision.statistics import Truth
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.heatmaps.agreement import (
    MapComparison,
    choose_images,
    compare_models,
    summarise,
)
from deepcovid_edge.heatmaps.heatmap import OCCLUSION
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_edge.model import Model, backend_of
from deepcovid_edge.reasons import Reason
from deepcovid_edge.validation.changes import (
    AucChange,
    Differences,
    FlippedImage,
    Flips,
    GroupChange,
    McNemar,
    RateChange,
)
from deepcovid_edge.validation.decisions import Decisions
from deepcovid_edge.validation.equivalence import EquivalenceRules
from deepcovid_edge.validation.pair import Pair, classify_both, short_path

UNCHANGED, CHANGED, INSUFFICIENT = "unchanged", "changed", "insufficient"


@dataclass(frozen=True, kw_only=True)
class Verification(PlainResult):
    """Whether a candidate is as accurate as its reference.

    Attributes:
        verdict: `unchanged`, `changed` or `insufficient` (too few images to tell).
        failed: Sentences that say which rules were broken.
        missing: Class with too few images -> how many `images` there are and are `needed`.
        unproved: Sentences that say which rate may be lower by more than the margin.
        reference: Name, hash, precision and backend of the model whose accuracy is known.
        candidate: Likewise, of the model that shall replace it.
        threshold: The reference's.
        images: How many were assessed, each content once.
        not_assessed: File -> reason code.
        repeated: Assessed files with the content of an earlier one.
        uncounted: Soft label of the reference's recipe -> its images: neither right nor wrong, so
            they are not compared.
        data_sha256: Over the images.
        logits: None without a result of the candidate that is a number.
        probability: Likewise, of the positive class.
        sensitivity: None without positive images.
        specificity: None without negative images.
        decisions: Those of `infer`, each model with its own indeterminate range. No rule is about
            their number, but the ranges must be the same. None where neither model has one.
        auc: None without images of both classes.
        heatmap: How alike the heat maps are; None where they were not compared.
        ood: Images that each model's limits reject, and on which they `differ`; None without
            limits on both sides.
    """

    schema_version: int = 1
    verdict: str
    failed: tuple[str, ...]
    missing: Mapping[str, Mapping[str, int]]
    unproved: tuple[str, ...] = ()
    rules: EquivalenceRules
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    threshold: float
    images: int
    not_assessed: Mapping[str, str]
    repeated: int = 0
    uncounted: Mapping[str, int] = field(default_factory=dict)
    data_sha256: str
    logits: Differences | None
    probability: Differences | None
    flips: Flips
    decisions: Decisions | None = None
    mcnemar: McNemar
    sensitivity: RateChange | None
    specificity: RateChange | None
    auc: AucChange | None
    heatmap: Mapping[str, Any] | None
    ood: Mapping[str, int] | None
    flipped: tuple[FlippedImage, ...]
    by_label: Mapping[str, GroupChange]
    by_source: Mapping[str, GroupChange]
    created_with: Mapping[str, str] = field(default_factory=lambda: {"deepcovid-edge": VERSION})


def verify(
    reference: Model | Backend,
    candidate: Model | Backend,
    images: Sequence[LabelledImage],
    *,
    rules: EquivalenceRules | None = None,
    heatmaps: MapComparison | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Verification:
    """Compare a candidate with its reference on labelled images.

    Args:
        reference: The model whose accuracy is known.
        candidate: The model that is to replace it.
        images: Labelled, of both classes for a verdict; soft labels are not compared.
        rules: When the candidate counts as unchanged; None for the reference's own.
        heatmaps: Which heat maps are compared too; None for none.
        progress: Called with the number of images that were classified since its last call.

    Raises:
        ModelFileError: The models cannot be compared.
        DataError: No image could be assessed, or one image has two labels.
        UsageError: A window of the heat maps is larger than the models' input.
    """
    reference, candidate = backend_of(reference), backend_of(candidate)
    manifest = reference.manifest
    rules = rules or EquivalenceRules.of(manifest)
    pair, uncounted = _compared(reference, candidate, images, progress)
    found: dict[str, Any] = {
        "flips": pair.flips(),
        "sensitivity": pair.rate_change(pair.positive),
        "specificity": pair.rate_change(~pair.positive),
        "auc": pair.auc_change(),
        "heatmap": heatmaps and _compare_heatmaps((reference, candidate), pair, heatmaps),
        "ood": pair.ood(),
    }
    failed = [*_model_failures(pair), *_failures(rules, len(pair.images), **found)]
    doubts = _doubts(rules, pair.positive, found["sensitivity"], found["specificity"])
    return Verification(
        verdict=CHANGED if failed else INSUFFICIENT if any(doubts.values()) else UNCHANGED,
        failed=tuple(failed),
        rules=rules,
        reference=identity(reference),
        candidate=identity(candidate),
        threshold=manifest.threshold,
        images=len(pair.images),
        not_assessed=pair.not_assessed,
        repeated=pair.repeated,
        uncounted=uncounted,
        data_sha256=dataset_sha256(pair.images),
        logits=pair.differences(pair.logits),
        probability=pair.differences(pair.scores),
        decisions=pair.decisions(),
        mcnemar=pair.mcnemar(),
        flipped=pair.flipped(),
        by_label=pair.groups([image.label for image in pair.images]),
        by_source=pair.groups([image.source for image in pair.images]),
        **doubts,
        **found,
    )


def _compared(
    reference: Backend,
    candidate: Backend,
    images: Sequence[LabelledImage],
    progress: Callable[[int], object],
) -> tuple[Pair, Mapping[str, int]]:
    """The answers to the images whose label says what they are; how many have which soft label."""
    known, soft = reference.manifest.known_labels, reference.manifest.soft_labels
    check_labels(images, known | soft)
    uncounted = Counter(image.label for image in images if image.label in soft)
    progress(uncounted.total())
    counted = [image for image in images if image.label not in soft]
    return classify_both(reference, candidate, counted, progress), uncounted


def uncounted_text(uncounted: Mapping[str, int]) -> str:
    """A sentence about images that were not compared, by their soft labels."""
    images = number_of(sum(uncounted.values()), "image")
    return f"neither right nor wrong, and not compared: {images} ({', '.join(sorted(uncounted))})"


def _compare_heatmaps(
    models: tuple[Backend, Backend], pair: Pair, asked: MapComparison
) -> dict[str, Any]:
    """How alike the occlusion maps of some images are, on the whole and each."""
    spec, windows = pair.manifest.input, asked.occlusion
    chosen = [pair.images[place] for place in choose_images(pair.positive, asked.images)]
    pixels = (prepare(read_radiograph(image.path, spec), spec) for image in chosen)
    found = compare_models(*models, pixels, windows)
    return {
        "method": OCCLUSION,
        "window": windows.window,
        "stride": windows.stride,
        "baseline": windows.baseline,
        "images": len(chosen),
        **summarise(found),
        "by_image": [
            {"path": short_path(image.path), "label": image.label, **asdict(agreement)}
            for image, agreement in zip(chosen, found, strict=True)
        ],
    }


def _model_failures(pair: Pair) -> Iterator[str]:
    """Sentences about what no rule allows."""
    before, now = map(_limits, pair.manifests)
    for name, limit in before.items():
        if limit != _NONE and now[name] != limit:  # a checkpoint has no limits yet
            yield f"{name}: candidate has {now[name]}, reference {limit}"
    if lost := int((~pair.has_result).sum()):
        yield (
            f"results: {lost} of {len(pair.images)} of the candidate are no numbers, for which "
            f"`infer` states {Reason.RESULT.code}"
        )


_NONE = "none"


def _limits(manifest: ModelManifest) -> dict[str, str]:
    """What decides besides the network. A variant has the very values of its parent."""
    span, ood = manifest.indeterminate_range, OodLimits.of(manifest)
    parts = ood and f"{', '.join(ood.parts)}: {ood.limit}, strict {ood.strict_limit}"
    return {
        "threshold": str(manifest.threshold),
        "indeterminate range": f"{span.low} to {span.high}" if span else _NONE,
        "out-of-distribution limits": f"({parts})" if parts else _NONE,
    }


def _failures(
    rules: EquivalenceRules,
    images: int,
    *,
    flips: Flips,
    sensitivity: RateChange | None,
    specificity: RateChange | None,
    auc: AucChange | None,
    heatmap: Mapping[str, Any] | None,
    ood: Mapping[str, int] | None,
) -> Iterator[str]:
    """Sentences about the rules that are broken."""
    if flips.share > rules.max_flips:
        yield f"flips: {flips.share:.2%} of the decisions turned, allowed {rules.max_flips:.2%}"
    alone = ood["differ"] / images if ood else 0.0
    if alone > rules.max_flips:
        yield (
            f"out of distribution: {alone:.2%} of the images for one model alone, allowed "
            f"{rules.max_flips:.2%}"
        )
    for name, change in (("sensitivity", sensitivity), ("specificity", specificity)):
        low, high = change.interval_95 if change and rules.paired_interval else (0.0, 0.0)
        if change and not low <= 0 <= high:
            yield f"{name}: changed by {change.change:+.2%} [{low:+.2%}, {high:+.2%}]"
    if auc and abs(auc.change) > rules.max_auc_change:
        yield f"AUC: changed by {auc.change:+.4f}, allowed {rules.max_auc_change}"
    alike = heatmap["rank_correlation"]["median"] if heatmap else 1.0
    least = rules.min_heatmap_correlation
    if not alike >= least:  # NaN fails too
        yield f"heat maps: median rank correlation {alike:.3f}, expected at least {least}"


def _doubts(
    rules: EquivalenceRules,
    positive: Truth,
    sensitivity: RateChange | None,
    specificity: RateChange | None,
) -> dict[str, Any]:
    """What the images are too few to tell, as fields of `Verification`."""
    unproved = tuple(_unproved(rules, sensitivity, specificity))
    return {"missing": _missing(positive, rules), "unproved": unproved}


def _missing(positive: Truth, rules: EquivalenceRules) -> dict[str, dict[str, int]]:
    """Classes of which one image would weigh more than the smallest change, if any."""
    needed = int(np.ceil(1 / rules.smallest_change - 1e-9))
    counts = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
    few = {name: count for name, count in counts.items() if count < needed}
    return {name: {"images": count, "needed": needed} for name, count in few.items()}


def _unproved(
    rules: EquivalenceRules, sensitivity: RateChange | None, specificity: RateChange | None
) -> Iterator[str]:
    """Sentences about the rates that may be lower by more than the margin."""
    for name, images, change in (
        ("sensitivity", "positive", sensitivity),
        ("specificity", "negative", specificity),
    ):
        low, high = change.interval_95 if change else (0.0, 0.0)
        if low < -rules.margin:
            yield (
                f"{name}: may be {-100 * low:.1f} points lower [{low:+.2%}, {high:+.2%}], allowed "
                f"{100 * rules.margin:g}: more {images} images are needed"
            )
