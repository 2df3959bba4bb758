"""Prepared images become records: inferred, checked, decided, explained.

`predict_groups` runs these steps for many images at once; nothing here knows of threads or order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from math import isfinite
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend, Inference, softmax
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.record import DECIMALS, Prediction, RunFacts, milliseconds
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.pipeline.disk_guard import DiskGuard
from deepcovid_edge.pipeline.reader import PreparedImage
from deepcovid_edge.reasons import Reason, WarningCode

BY_THE_PICTURE = "the picture looks like that of a child"
"""Detail of `E_AGE` where no header says so."""
_Outcome: TypeAlias = tuple[list[float], list[float] | None, tuple[float, float]]
"""Of an image: probabilities, out-of-distribution scores, its share of the batch's milliseconds and
the moment when that ended."""


@dataclass(frozen=True)
class Explained:
    """An assessed image whose heat map is wanted.

    Attributes:
        record: The image's result.
        image: The image with its model input, and its radiograph where `Explainer.draws`.
        activation_maps: What the network gave beside its logits, of shape (classes, h, w), where
            `Explainer.reads_activation_maps`.
    """

    record: Prediction
    image: PreparedImage
    activation_maps: NDArray[np.float32] | None = None


class Explainer(Protocol):
    """Makes the heat maps of a run. Called from several threads."""

    @property
    def reads_activation_maps(self) -> bool:
        """Whether the network's activation maps are needed."""

    @property
    def draws(self) -> bool:
        """Whether radiographs are needed: pictures are drawn on them."""

    def explain(self, assessed: Sequence[Explained]) -> list[Prediction]:
        """The records of assessed images with their heat maps."""


@dataclass(frozen=True)
class Classifier:
    """Classifies images that were read, for one run. Safe to use from several threads.

    Attributes:
        backend: The loaded model.
        run: What the run's records have in common.
        rejects_ood: Whether out-of-distribution images are not assessed; else they get a warning.
        explainer: Makes the heat maps, or None.
        disk: Stops the run when there is too little room for its results, or None.
    """

    backend: Backend
    run: RunFacts
    rejects_ood: bool = True
    explainer: Explainer | None = None
    disk: DiskGuard | None = None

    @cached_property
    def _ood(self) -> OodLimits | None:
        return OodLimits.of(self.backend.manifest)

    def classify(self, images: list[PreparedImage], batch_size: int) -> list[Prediction]:
        """The records of images, in their order; `batch_size` of them share an inference call."""
        with_maps = self.explainer is not None and self.explainer.reads_activation_maps
        records, maps = self._records(images, batch_size, with_maps=with_maps)
        if self.explainer is None:
            return records
        try:
            if self.disk:
                self.disk.check()
        except NotAssessedError as error:  # a result without its heat map would never get one
            return [self._not_assessed(image, image.error or error) for image in images]
        return _explained(records, images, maps, self.explainer)

    def assess(self, image: PreparedImage, *, with_maps: bool) -> Explained:
        """One image's result, for its heat map.

        Raises:
            NotAssessedError: It has no result.
        """
        (record,), maps = self._records([image], 1, with_maps=with_maps)
        if record.reason is not None:
            raise image.error or NotAssessedError(Reason.of(record.reason))
        return Explained(record, image, None if maps is None else maps[0])

    def _records(
        self, images: list[PreparedImage], batch_size: int, *, with_maps: bool
    ) -> tuple[list[Prediction], NDArray[np.float32] | None]:
        prepared = [image.pixels for image in images if image.pixels is not None]
        outcomes, maps = (
            self._inferred(prepared, batch_size, with_maps) if prepared else (iter(()), None)
        )
        records = [
            self._not_assessed(image, image.error)
            if image.error
            else self._classified(image, next(outcomes))
            for image in images
        ]
        return records, maps

    def _inferred(
        self, images: list[NDArray[np.uint8]], batch_size: int, with_maps: bool
    ) -> tuple[Iterator[_Outcome], NDArray[np.float32] | None]:
        """What the network gives for each image, and the activation maps where asked for."""
        parts, times = [], []
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            started = time.perf_counter()
            inputs = batch[0][None] if len(batch) == 1 else np.stack(batch)
            parts.append(self.backend.infer(inputs, activation_maps=with_maps))
            ended = time.perf_counter()
            times += [(milliseconds(started, ended) / len(batch), ended)] * len(batch)
        found = Inference.joined(parts)
        shares = softmax(found.logits).tolist()
        scores = repeat(None) if found.ood_scores is None else found.ood_scores.tolist()
        return zip(shares, scores, times, strict=False), found.activation_maps

    def _classified(self, image: PreparedImage, outcome: _Outcome) -> Prediction:
        row, ood_scores, (share, ended) = outcome
        try:
            if not all(map(isfinite, row)):  # an overflow in FP16 or INT8, or a broken model
                raise NotAssessedError(Reason.RESULT)
            warnings = self._ood_warnings(image, ood_scores)
        except NotAssessedError as error:
            return self._not_assessed(image, error)
        rounded = [round(value, DECIMALS) for value in row]
        total = milliseconds(image.started, ended)
        return Prediction(
            image.name,
            self.run,
            image.sha256,
            warnings=warnings,
            probabilities=dict(zip(self.run.classes, rounded, strict=True)),
            timings_ms={**image.timings_ms, "infer": round(share, 3), "total": total},
        )

    def _ood_warnings(
        self, image: PreparedImage, ood_scores: list[float] | None
    ) -> tuple[str, ...]:
        """The image's warnings, with `W_OOD` where it is out of distribution and assessed.

        Raises:
            NotAssessedError: The image is not assessed.
        """
        warnings = self._warnings(image)
        ood = self._ood
        if ood is None or ood_scores is None:
            return warnings
        reason = ood.reason(ood_scores, warnings)
        if reason is None:
            return warnings
        shown = not self.rejects_ood or WarningCode.SYNTHETIC.code in warnings
        if reason is Reason.RESULT or not shown:
            raise NotAssessedError(reason, BY_THE_PICTURE if reason is Reason.AGE else "")
        return (*warnings, WarningCode.OOD.code)

    def _warnings(self, image: PreparedImage) -> tuple[str, ...]:
        return (*image.warnings, *self.run.warnings)

    def _not_assessed(self, image: PreparedImage, error: NotAssessedError) -> Prediction:
        warnings = () if image.error else self._warnings(image)
        total = milliseconds(image.started, time.perf_counter())
        return Prediction(
            image.name,
            self.run,
            image.sha256,
            error.reason.code,
            str(error),
            warnings,
            timings_ms={**image.timings_ms, "total": total},
        )


def _explained(
    records: list[Prediction],
    images: list[PreparedImage],
    activation_maps: NDArray[np.float32] | None,
    explainer: Explainer,
) -> list[Prediction]:
    """The records with heat maps, where there is a result to explain."""
    maps = repeat(None) if activation_maps is None else iter(activation_maps)
    wanted: dict[int, Explained] = {}
    for place, (image, record) in enumerate(zip(images, records, strict=True)):
        if image.pixels is None:
            continue
        own = next(maps)
        if record.probabilities is not None:
            wanted[place] = Explained(record, image, own)
    made = explainer.explain([*wanted.values()])
    for place, record in zip(wanted, made, strict=True):
        records[place] = record
    return records
