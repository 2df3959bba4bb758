"""Is a candidate as accurate as its reference? The equivalence check.

Two models classify the same images. What is compared is what a clinic would notice: decisions that
turned; sensitivity, specificity and area under the curve at the operating point; and, on request,
whether both look at the same places.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend, Inference, identity, softmax
from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels, dataset_sha256
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.record import DECIMALS
from deepcovid_edge.decision.results import PlainResult, plain_fields
from deepcovid_edge.decision.statistics import (
    Rate,
    Scores,
    Truth,
    auc,
    auc_change,
    mcnemar_exact,
    paired_difference,
    upper_bound,
)
from deepcovid_edge.errors import DataError, ModelFileError, NotAssessedError
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
from deepcovid_edge.model import Model, backend_of
from deepcovid_edge.validation.decisions import Decisions
from deepcovid_edge.validation.equivalence import EquivalenceRules

UNCHANGED, CHANGED, INSUFFICIENT = "unchanged", "changed", "insufficient"
_CHUNK = 32
_Input: TypeAlias = tuple[str, NDArray[np.uint8]]
"""SHA-256 of a file, and the model input of shape (height, width)."""


@dataclass(frozen=True)
class Flips:
    """Images on the other side of the threshold than before.

    How many, their share, and its upper limit with 95 % certainty.
    """

    count: int
    share: float
    upper_95: float


@dataclass(frozen=True)
class McNemar:
    """Right answers that were lost and gained, and the p-value of McNemar's exact test."""

    lost: int
    gained: int
    p: float


@dataclass(frozen=True)
class RateChange(PlainResult):
    """A proportion of both models on the same images; the interval is a paired one."""

    reference: Rate
    candidate: Rate
    change: float
    interval_95: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the number of images once."""
        values = {"images": self.reference.trials, **plain_fields(self)}
        for rate in (values["reference"], values["candidate"]):
            del rate["successes"], rate["trials"]
        return values


@dataclass(frozen=True)
class AucChange:
    """The area under the curve of both models on the same images, with DeLong's interval."""

    reference: float
    candidate: float
    change: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class Differences:
    """Absolute differences of the same numbers from both models.

    `relative_rmse` is the root of their mean square over the standard deviation of the reference's
    numbers.
    """

    max: float
    median: float
    rmse: float
    relative_rmse: float

    @classmethod
    def of(cls, before: NDArray[Any], now: NDArray[Any]) -> Differences:
        """Compare two arrays of one shape."""
        apart = np.abs(now.astype(np.float64) - before)
        spread, rmse = float(np.std(before)), float(np.sqrt(np.mean(apart**2)))
        relative = rmse / spread if spread else 0.0
        return cls(float(apart.max()), float(np.median(apart)), rmse, relative)


@dataclass(frozen=True)
class FlippedImage:
    """An image whose decision turned, with the probabilities of both models."""

    path: str
    label: str
    source: str
    reference: float
    candidate: float


@dataclass(frozen=True)
class GroupChange:
    """The images of one label or source: called positive by each model, and what changed."""

    images: int
    called_positive: Mapping[str, int]
    flips: int
    max_probability_difference: float


@dataclass(frozen=True, kw_only=True)
class Verification(PlainResult):
    """Whether a candidate is as accurate as its reference.

    Attributes:
        verdict: `unchanged`, `changed` or `insufficient` (too few images to tell).
        failed: Sentences that say which rules were broken.
        missing: Class with too few images -> how many `images` there are and are `needed`.
        reference: Name, hash, precision and backend of the model whose accuracy is known.
        candidate: Likewise, of the model that shall replace it.
        threshold: The reference's.
        images: How many were assessed, each content once.
        not_assessed: File -> reason code.
        repeated: Assessed files with the content of an earlier one.
        data_sha256: Over the images.
        probability: Of the positive class.
        sensitivity: None without positive images.
        specificity: None without negative images.
        decisions: Those of `infer`, with the reference's indeterminate range, which no rule is
            about; None for a reference without one.
        auc: None without images of both classes.
        heatmap: How alike the heat maps are; None where they were not compared.
        ood: Images that each model's limits reject, and on which they `differ`; None without
            limits on both sides.
    """

    schema_version: int = 1
    verdict: str
    failed: tuple[str, ...]
    missing: Mapping[str, Mapping[str, int]]
    rules: EquivalenceRules
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    threshold: float
    images: int
    not_assessed: Mapping[str, str]
    repeated: int = 0
    data_sha256: str
    logits: Differences
    probability: Differences
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
        images: Labelled images; both classes must occur for a verdict.
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
    check_labels(images, manifest.known_labels)
    pair = _classify(reference, candidate, images, progress)
    found: dict[str, Any] = {
        "flips": pair.flips(),
        "sensitivity": pair.rate_change(pair.positive),
        "specificity": pair.rate_change(~pair.positive),
        "auc": pair.auc_change(),
        "heatmap": heatmaps and _compare_heatmaps((reference, candidate), pair, heatmaps),
    }
    failed = [*_manifest_failures(manifest, candidate.manifest), *_failures(rules, **found)]
    missing = _missing(pair.positive, rules)
    return Verification(
        verdict=CHANGED if failed else INSUFFICIENT if missing else UNCHANGED,
        failed=tuple(failed),
        missing=missing,
        rules=rules,
        reference=identity(reference),
        candidate=identity(candidate),
        threshold=manifest.threshold,
        images=len(pair.images),
        not_assessed=pair.not_assessed,
        repeated=pair.repeated,
        data_sha256=dataset_sha256(pair.images),
        logits=Differences.of(*pair.logits),
        probability=Differences.of(*pair.scores),
        decisions=pair.decisions(),
        mcnemar=pair.mcnemar(),
        ood=pair.ood(),
        flipped=pair.flipped(),
        by_label=pair.groups([image.label for image in pair.images]),
        by_source=pair.groups([image.source for image in pair.images]),
        **found,
    )


@dataclass(frozen=True)
class _Pair:
    """The answers of two models on the same images, the reference's first.

    Attributes:
        images: The images that were assessed, each content once.
        not_assessed: File -> reason code.
        repeated: Files with the content of an earlier image.
        manifest: The reference's.
        logits: Of each model, of shape (images, classes), float32.
        rejected: Whether each model's out-of-distribution limits reject each image, which is
            classified all the same; None for a model without limits.
    """

    images: list[LabelledImage]
    not_assessed: dict[str, str]
    repeated: int
    manifest: ModelManifest
    logits: tuple[NDArray[np.float32], ...]
    rejected: tuple[Truth | None, ...]

    @cached_property
    def positive(self) -> Truth:
        return np.array([image.label in self.manifest.positive_labels for image in self.images])

    @cached_property
    def scores(self) -> tuple[Scores, ...]:
        """Probabilities of the positive class as records have them."""
        place = self.manifest.positive_index
        return tuple(np.round(softmax(logits)[:, place], DECIMALS) for logits in self.logits)

    @cached_property
    def predicted(self) -> tuple[Truth, ...]:
        """Whether each model calls each image positive."""
        return tuple(scores >= self.manifest.threshold for scores in self.scores)

    @cached_property
    def turned(self) -> Truth:
        turned: Truth = self.predicted[0] != self.predicted[1]
        return turned

    @cached_property
    def right(self) -> tuple[Truth, ...]:
        return tuple(predicted == self.positive for predicted in self.predicted)

    def flips(self) -> Flips:
        count, images = int(self.turned.sum()), len(self.images)
        return Flips(count, count / images, upper_bound(count, images))

    def decisions(self) -> Decisions | None:
        (before, now), span = self.scores, self.manifest.indeterminate_range
        return Decisions.of(before, now, span) if span else None

    def mcnemar(self) -> McNemar:
        before, now = self.right
        lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
        return McNemar(lost, gained, mcnemar_exact(lost, gained))

    def rate_change(self, group: Truth) -> RateChange | None:
        """Change of the share of right answers among some images."""
        before, now = (right[group] for right in self.right)
        if not len(before):
            return None
        return RateChange(Rate.of(before), Rate.of(now), *paired_difference(before, now))

    def auc_change(self) -> AucChange | None:
        positive, (before, now) = self.positive, self.scores
        if positive.all() or not positive.any():
            return None
        change = auc_change(before, now, positive)
        return AucChange(auc(before, positive), auc(now, positive), *change)

    def ood(self) -> dict[str, int] | None:
        """How many images the limits of each model reject, and on how many they differ."""
        before, now = self.rejected
        if before is None or now is None:
            return None
        counts = {"reference": before, "candidate": now, "differ": before != now}
        return {name: int(count.sum()) for name, count in counts.items()}

    def flipped(self) -> tuple[FlippedImage, ...]:
        rows = zip(self.images, *self.scores, strict=True)
        return tuple(
            FlippedImage(_short(image.path), image.label, image.source, float(before), float(now))
            for (image, before, now), turned in zip(rows, self.turned, strict=True)
            if turned
        )

    def groups(self, names: Sequence[str]) -> dict[str, GroupChange]:
        """The changes by a name of each image, such as its source."""
        keys, apart = np.array([name or "not stated" for name in names]), np.subtract(*self.scores)
        groups = {key: keys == key for key in sorted(set(keys.tolist()))}
        sides = dict(zip(("reference", "candidate"), self.predicted, strict=True))
        return {
            key: GroupChange(
                images=int(group.sum()),
                called_positive={
                    name: int(predicted[group].sum()) for name, predicted in sides.items()
                },
                flips=int(self.turned[group].sum()),
                max_probability_difference=float(np.abs(apart[group]).max()),
            )
            for key, group in groups.items()
        }


def _classify(
    reference: Backend,
    candidate: Backend,
    images: Sequence[LabelledImage],
    progress: Callable[[int], object],
) -> _Pair:
    """Let two models classify the same images, each read once."""
    manifests = (reference.manifest, candidate.manifest)
    _check_comparable(*manifests)
    kept: list[LabelledImage] = []
    not_assessed: dict[str, str] = {}
    contents = Contents()
    answers: tuple[list[Inference], list[Inference]] = ([], [])
    for chunk in _prepared(images, reference.manifest.input):
        good = [(image, read) for image, read in chunk if not isinstance(read, str)]
        not_assessed |= {str(image.path): code for image, code in chunk if isinstance(code, str)}
        new = [(image, pixels) for image, (sha, pixels) in good if contents.is_new(image, sha)]
        if new:
            batch = np.stack([pixels for _, pixels in new])
            kept += [image for image, _ in new]
            for model, found in zip((reference, candidate), answers, strict=True):
                found.append(model.infer(batch))
        progress(len(chunk))
    if not kept:
        raise DataError(f"none of {len(images)} images could be assessed")
    logits = tuple(np.concatenate([one.logits for one in found]) for found in answers)
    rejected = tuple(_rejected(*side) for side in zip(manifests, answers, strict=True))
    return _Pair(kept, not_assessed, contents.repeated, reference.manifest, logits, rejected)


def _rejected(manifest: ModelManifest, answers: Sequence[Inference]) -> Truth | None:
    limits = OodLimits.of(manifest)
    rows = [one.ood_scores for one in answers if one.ood_scores is not None]
    return limits.beyond(np.concatenate(rows)) if limits and rows else None


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
) -> Iterator[list[tuple[LabelledImage, _Input | str]]]:
    """Chunks of the images, each with its input or the reason code why it has none."""

    def read(image: LabelledImage) -> _Input | str:
        try:
            radiograph = read_radiograph(image.path, spec)
            return radiograph.sha256, prepare(radiograph, spec)
        except NotAssessedError as error:
            return error.reason.code

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            yield list(zip(chunk, pool.map(read, chunk), strict=True))


def _compare_heatmaps(
    models: tuple[Backend, Backend], pair: _Pair, asked: MapComparison
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
            {"path": _short(image.path), "label": image.label, **asdict(agreement)}
            for image, agreement in zip(chosen, found, strict=True)
        ],
    }


def _manifest_failures(reference: ModelManifest, candidate: ModelManifest) -> Iterator[str]:
    if candidate.threshold != reference.threshold:
        yield f"threshold: candidate has {candidate.threshold}, reference {reference.threshold}"
    if reference.ood and not candidate.ood:
        yield "out-of-distribution limits: reference has some, candidate classifies any image"


def _failures(
    rules: EquivalenceRules,
    *,
    flips: Flips,
    sensitivity: RateChange | None,
    specificity: RateChange | None,
    auc: AucChange | None,
    heatmap: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Sentences about the rules that are broken."""
    if flips.share > rules.max_flips:
        yield f"flips: {flips.share:.2%} of the decisions turned, allowed {rules.max_flips:.2%}"
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


def _missing(positive: Truth, rules: EquivalenceRules) -> dict[str, dict[str, int]]:
    """Classes with too few images to show the smallest change, if any."""
    needed = int(np.ceil(1 / rules.smallest_change - 1e-9))
    counts = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
    few = {name: count for name, count in counts.items() if count < needed}
    return {name: {"images": count, "needed": needed} for name, count in few.items()}


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
