"""Films that were read become records: judged, let in or refused, explained.

`predict` runs these steps for many films at once; nothing here knows of threads or order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from math import isfinite
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend, Inference
from deepcovid_edge.decision.out_of_distribution import FamiliarityGate
from deepcovid_edge.decision.record import Prediction, RunFacts, milliseconds
from deepcovid_edge.errors import ImageRefusedError
from deepcovid_edge.pipeline.disk_guard import DiskGuard
from deepcovid_edge.pipeline.reader import Film
from deepcovid_edge.reasons import Caution, Reason

if TYPE_CHECKING:
    from deepcovid_edge.heatmaps.explainer import Explainer

DECIMALS = 6
"""Probabilities are rounded before they are compared, so that a record proves its decision."""
_Outcome: TypeAlias = tuple[list[float], list[float] | None, tuple[float, float]]
"""Of a film: its probabilities, its unlikeness, its share of its batch's milliseconds and the
moment when that ended."""


@dataclass(frozen=True)
class FilmJudge:
    """Judges films that were read, for one run. Safe to use from several threads.

    Attributes:
        backend: The loaded model.
        run: What the run's records have in common.
        refuses_unlike: Whether films unlike those that the model learned from are refused; else
            they get a warning.
        explainer: Makes the heat maps, or None.
        disk: Refuses films when there is too little room for their results, or None.
    """

    backend: Backend
    run: RunFacts
    refuses_unlike: bool = True
    explainer: Explainer | None = None
    disk: DiskGuard | None = None

    @cached_property
    def _gate(self) -> FamiliarityGate | None:
        return FamiliarityGate.of(self.backend.manifest)

    def judge(self, films: list[Film], batch_size: int) -> list[Prediction]:
        """The records of films, in their order; so many of those with pixels share an inference."""
        prepared = [film.pixels for film in films if film.pixels is not None]
        outcomes, maps = self._inferred(prepared, batch_size) if prepared else (iter(()), None)
        records = [
            self._not_assessed(film, film.refusal)
            if film.refusal
            else self._judged(film, next(outcomes))
            for film in films
        ]
        if self.explainer is None:
            return records
        try:
            if self.disk:
                self.disk.check()
        except ImageRefusedError as error:  # a result without its heat map would never get one
            return [self._not_assessed(film, film.refusal or error) for film in films]
        return _explained(records, films, maps, self.explainer)

    def _inferred(
        self, films: list[NDArray[np.uint8]], batch_size: int
    ) -> tuple[Iterator[_Outcome], NDArray[np.float32] | None]:
        """What the network says of each film, and the activation maps that the explainer reads."""
        with_maps = self.explainer is not None and self.explainer.reads_activation_maps
        parts, times = [], []
        for first in range(0, len(films), batch_size):
            batch = films[first : first + batch_size]
            started = time.perf_counter()
            images = batch[0][None] if len(batch) == 1 else np.stack(batch)
            parts.append(self.backend.infer(images, activation_maps=with_maps))
            ended = time.perf_counter()
            times += [(milliseconds(started, ended) / len(batch), ended)] * len(batch)
        found = Inference.joined(parts)
        shares = probabilities(found.logits).tolist()
        unlike = repeat(None) if found.unlikeness is None else found.unlikeness.tolist()
        return zip(shares, unlike, times, strict=False), found.activation_maps

    def _judged(self, film: Film, outcome: _Outcome) -> Prediction:
        row, unlikeness, (share, ended) = outcome
        try:
            if not all(map(isfinite, row)):  # an overflow in FP16 or INT8, or a broken model
                raise ImageRefusedError(Reason.RESULT)
            warnings = self._let_in(film, unlikeness)
        except ImageRefusedError as error:
            return self._not_assessed(film, error)
        rounded = [round(value, DECIMALS) for value in row]
        total = milliseconds(film.started, ended)
        return Prediction(
            str(film.path),
            self.run,
            film.sha256,
            warnings=warnings,
            probabilities=dict(zip(self.run.classes, rounded, strict=True)),
            timings_ms={**film.timings_ms, "infer": round(share, 3), "total": total},
        )

    def _let_in(self, film: Film, unlikeness: list[float] | None) -> tuple[str, ...]:
        """The film's warnings, with one more where it is unlike the model's and let through.

        Raises:
            ImageRefusedError: The film is not judged.
        """
        warnings = self._warnings(film)
        gate = self._gate
        if gate is None or unlikeness is None:
            return warnings
        reason = gate.reason(unlikeness, warnings)
        if reason is None:
            return warnings
        shown = not self.refuses_unlike or Caution.SYNTHETIC.code in warnings
        if reason is Reason.RESULT or not shown:
            raise ImageRefusedError(reason)
        return (*warnings, Caution.OOD.code)

    def _warnings(self, film: Film) -> tuple[str, ...]:
        return (*film.warnings, *self.run.cautions)

    def _not_assessed(self, film: Film, error: ImageRefusedError) -> Prediction:
        warnings = () if film.refusal else self._warnings(film)
        total = milliseconds(film.started, time.perf_counter())
        return Prediction(
            str(film.path),
            self.run,
            film.sha256,
            error.reason.code,
            str(error),
            warnings,
            timings_ms={**film.timings_ms, "total": total},
        )


def _explained(
    records: list[Prediction],
    films: list[Film],
    activation_maps: NDArray[np.float32] | None,
    explainer: Explainer,
) -> list[Prediction]:
    """The records with heat maps, where there is a result to explain."""
    from deepcovid_edge.heatmaps.explainer import Explained

    maps = repeat(None) if activation_maps is None else iter(activation_maps)
    wanted: dict[int, Explained] = {}
    for place, (film, record) in enumerate(zip(films, records, strict=True)):
        if film.pixels is None:
            continue
        own = next(maps)
        if record.probabilities is not None:
            wanted[place] = Explained(
                record, film.shape, film.radiograph, film.pixels, film.started, own
            )
    made = explainer.explain([*wanted.values()])
    for place, record in zip(wanted, made, strict=True):
        records[place] = record
    return records


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over classes; logits and result are of shape (N, classes)."""
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and is refused later
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
    share: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return share
