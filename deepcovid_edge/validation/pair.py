"""Two models on the same images: their answers, and what changed between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend, Inference, softmax
from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.record import DECIMALS
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
from deepcovid_edge.device.process import cores
from deepcovid_edge.errors import DataError, ModelFileError, NotAssessedError
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec, ModelManifest
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

_CHUNK = 32
_Input: TypeAlias = tuple[str, NDArray[np.uint8]]
"""SHA-256 of a file, and the model input of shape (height, width)."""


@dataclass(frozen=True)
class Pair:
    """The answers of two models on the same images, the reference's first.

    Attributes:
        images: The images to which the reference has a result, each content once.
        not_assessed: File -> reason code.
        repeated: Files with the content of an earlier image.
        manifests: Of each model.
        logits: Of each model, of shape (images, classes), float32; the candidate's may be no
            numbers.
        rejected: Whether each model's out-of-distribution limits reject each image, which is
            classified all the same; None for a model without limits.
    """

    images: list[LabelledImage]
    not_assessed: dict[str, str]
    repeated: int
    manifests: tuple[ModelManifest, ModelManifest]
    logits: tuple[NDArray[np.float32], ...]
    rejected: tuple[Truth | None, ...]

    @property
    def manifest(self) -> ModelManifest:
        """The reference's."""
        return self.manifests[0]

    @cached_property
    def positive(self) -> Truth:
        """Whether the label of each image belongs to the positive class."""
        return np.array([image.label in self.manifest.positive_labels for image in self.images])

    @cached_property
    def has_result(self) -> Truth:
        """Whether the candidate's answer to each image is a number."""
        return _are_numbers(self.logits[1])

    @cached_property
    def scores(self) -> tuple[Scores, ...]:
        """Probabilities of the positive class as records have them; NaN without a result."""
        place = self.manifest.positive_index
        before, now = (
            np.round(softmax(logits)[:, place], DECIMALS)
            for logits in (self.logits[0], np.nan_to_num(self.logits[1]))
        )
        return before, np.where(self.has_result, now, np.nan)

    @cached_property
    def predicted(self) -> tuple[Truth, ...]:
        """Whether each model calls each image positive."""
        return tuple(scores >= self.manifest.threshold for scores in self.scores)

    @cached_property
    def turned(self) -> Truth:
        """The images that the candidate decides otherwise, or not at all."""
        turned: Truth = (self.predicted[0] != self.predicted[1]) | ~self.has_result
        return turned

    @cached_property
    def right(self) -> tuple[Truth, ...]:
        """Whether each model is right; no result is not."""
        before, now = (predicted == self.positive for predicted in self.predicted)
        return before, now & self.has_result

    def differences(self, values: tuple[NDArray[Any], ...]) -> Differences | None:
        """How far the models' numbers are apart; None where the candidate has none."""
        if not self.has_result.any():
            return None
        before, now = (each[self.has_result] for each in values)
        return Differences.of(before, now)

    def flips(self) -> Flips:
        """How many decisions turned."""
        count, images = int(self.turned.sum()), len(self.images)
        return Flips(count, count / images, upper_bound(count, images))

    def decisions(self) -> Decisions | None:
        """The decisions of `infer`; None where neither model has an indeterminate range."""
        if not any(manifest.indeterminate_range for manifest in self.manifests):
            return None
        decided = (
            scores if rejected is None else np.where(rejected, np.nan, scores)
            for scores, rejected in zip(self.scores, self.rejected, strict=True)
        )
        return Decisions.of(tuple(decided), self.manifests)

    def mcnemar(self) -> McNemar:
        """Whether one model is right more often than the other."""
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
        """Change of the area under the curve; None without results in both classes."""
        positive = self.positive[self.has_result]
        before, now = (scores[self.has_result] for scores in self.scores)
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
        """The images whose decision turned."""
        before, now = self.scores
        return tuple(
            FlippedImage(
                short_path(image.path),
                image.label,
                image.source,
                float(before[place]),
                float(now[place]) if self.has_result[place] else None,
            )
            for place, image in enumerate(self.images)
            if self.turned[place]
        )

    def groups(self, names: Sequence[str]) -> dict[str, GroupChange]:
        """The changes by a name of each image, such as its source."""
        keys = np.array([name or "not stated" for name in names])
        apart = np.where(self.has_result, np.abs(np.subtract(*self.scores)), 1.0)
        groups = {key: keys == key for key in sorted(set(keys.tolist()))}
        sides = dict(zip(("reference", "candidate"), self.predicted, strict=True))
        return {
            key: GroupChange(
                images=int(group.sum()),
                called_positive={
                    name: int(predicted[group].sum()) for name, predicted in sides.items()
                },
                flips=int(self.turned[group].sum()),
                max_probability_difference=float(apart[group].max()),
            )
            for key, group in groups.items()
        }


def classify_both(
    reference: Backend,
    candidate: Backend,
    images: Sequence[LabelledImage],
    progress: Callable[[int], object],
) -> Pair:
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
    known = _are_numbers(logits[0])
    not_assessed |= {
        str(image.path): Reason.RESULT.code
        for image, is_known in zip(kept, known, strict=True)
        if not is_known
    }
    if not known.any():
        raise DataError(f"{reference.name}: no result of the reference is a number")
    return Pair(
        [image for image, is_known in zip(kept, known, strict=True) if is_known],
        not_assessed,
        contents.repeated,
        manifests,
        tuple(each[known] for each in logits),
        tuple(None if each is None else each[known] for each in rejected),
    )


def _are_numbers(logits: NDArray[np.float32]) -> Truth:
    return np.asarray(np.isfinite(logits).all(axis=1))


def short_path(path: Path) -> str:
    """The end of a path, as reports name an image."""
    return "/".join(path.parts[-3:])


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

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            yield list(zip(chunk, pool.map(read, chunk), strict=True))
