"""One film at a time: read, prepared, let in or refused, judged, explained.

`predict` runs these steps for many films at once; nothing here knows of threads or order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend, Inference
from deepcovid_edge.disk import DiskGuard
from deepcovid_edge.errors import ImageRefusedError
from deepcovid_edge.familiarity import FamiliarityGate
from deepcovid_edge.film_file import read_bytes
from deepcovid_edge.images import Radiograph, decode_radiograph
from deepcovid_edge.preprocess import prepare
from deepcovid_edge.reasons import Caution, Reason
from deepcovid_edge.records import Prediction, RunFacts, milliseconds

if TYPE_CHECKING:
    from deepcovid_edge.explain import Explainer

DECIMALS = 6
"""Probabilities are rounded before they are compared, so that a record proves its decision."""


@dataclass(frozen=True)
class Film:
    """A film on its way.

    Attributes:
        record: What is known of it so far.
        pixels: As `preprocess.prepare` makes them; None where the film was refused.
        started: When it was opened, seconds of the performance counter.
        shape: Rows and columns of the file's picture; empty where the film was refused.
        radiograph: The film as it was read, kept for those who draw on it alone: it may be large,
            and a place in memory that is free again at once is still in the processor's cache.
        uid: SOP instance UID of a DICOM film, else empty.
    """

    record: Prediction
    pixels: NDArray[np.uint8] | None
    started: float
    shape: tuple[int, ...] = ()
    radiograph: Radiograph | None = None
    uid: str = ""


@dataclass(frozen=True)
class FilmJudge:
    """Reads and judges films for one run. Safe to use from several threads.

    Attributes:
        backend: The loaded model.
        run: What the run's records have in common.
        refuses_unlike: Whether films unlike those that the model learned from are refused; else
            they get a warning.
        change: What is done to every film between reading and preparing it, or None.
        explainer: Makes the heat maps, or None.
        disk: Refuses films when there is too little room for their results, or None.
    """

    backend: Backend
    run: RunFacts
    refuses_unlike: bool = True
    change: Callable[[Radiograph], Radiograph] | None = None
    explainer: Explainer | None = None
    disk: DiskGuard | None = None

    @cached_property
    def _gate(self) -> FamiliarityGate | None:
        return FamiliarityGate.of(self.backend.manifest)

    def read(self, path: Path) -> Film:
        """Read and prepare a film, or refuse it; raises nothing, whatever the file holds."""
        started = time.perf_counter()
        sha256: str | None = None
        try:
            if self.disk:
                self.disk.check()
            file = read_bytes(path)
            sha256 = file.sha256
            radiograph = decode_radiograph(file)
            decoded = time.perf_counter()
            shown = self.change(radiograph) if self.change else radiograph
            pixels = prepare(shown, self.backend.manifest.input)
        except ImageRefusedError as error:
            return _refused(Prediction(str(path), self.run, sha256), error, started)
        except Exception as error:  # whatever one file does, the run goes on and the record says so
            refusal = ImageRefusedError(Reason.DECODE, f"{type(error).__name__}: {error}")
            return _refused(Prediction(str(path), self.run, sha256), refusal, started)
        prepared = time.perf_counter()
        record = Prediction(
            str(path),
            self.run,
            sha256,
            warnings=(*(caution.code for caution in radiograph.cautions), *self.run.cautions),
            timings_ms={
                "read": milliseconds(started, decoded),
                "preprocess": milliseconds(decoded, prepared),
            },
        )
        uid = radiograph.dicom.sop_instance_uid if radiograph.dicom else ""
        kept = radiograph if self.explainer and self.explainer.draws else None
        return Film(record, pixels, started, radiograph.pixels.shape, kept, uid)

    def judge(self, films: list[Film], batch_size: int) -> list[Prediction]:
        """The records of films, in their order; so many of those with pixels share an inference."""
        prepared = [film.pixels for film in films if film.pixels is not None]
        if not prepared:
            return [film.record for film in films]
        found, times = self._inferred(prepared, batch_size)
        shares = probabilities(found.logits).tolist()
        unlike = repeat(None) if found.unlikeness is None else found.unlikeness.tolist()
        rows = zip(shares, unlike, times, strict=False)
        records = [
            film.record if film.pixels is None else self._judged(film, *next(rows))
            for film in films
        ]
        if self.explainer is None:
            return records
        try:
            if self.disk:
                self.disk.check()
        except ImageRefusedError as error:  # a result without its heat map would never get one
            return [
                record if film.pixels is None else _refused(film.record, error, film.started).record
                for film, record in zip(films, records, strict=True)
            ]
        return _explained(records, films, found.activation_maps, self.explainer)

    def _inferred(
        self, films: list[NDArray[np.uint8]], batch_size: int
    ) -> tuple[Inference, list[tuple[float, float]]]:
        """What the network says of films, and of each: its share of the time, ms, and the end."""
        with_maps = self.explainer is not None and self.explainer.reads_activation_maps
        parts, times = [], []
        for first in range(0, len(films), batch_size):
            batch = films[first : first + batch_size]
            started = time.perf_counter()
            parts.append(self.backend.infer(np.stack(batch), activation_maps=with_maps))
            ended = time.perf_counter()
            times += [(milliseconds(started, ended) / len(batch), ended)] * len(batch)
        return Inference.joined(parts), times

    def _judged(
        self,
        film: Film,
        row: list[float],
        unlikeness: list[float] | None,
        times: tuple[float, float],
    ) -> Prediction:
        share, ended = times
        try:
            if not all(map(isfinite, row)):  # an overflow in FP16 or INT8, or a broken model
                raise ImageRefusedError(Reason.RESULT)
            record = self._admitted(film.record, unlikeness)
        except ImageRefusedError as error:
            return _refused(film.record, error, film.started).record
        timings = {**(record.timings_ms or {}), "infer": round(share, 3)}
        timings["total"] = milliseconds(film.started, ended)
        rounded = [round(value, DECIMALS) for value in row]
        values = dict(zip(record.run.classes, rounded, strict=True))
        return replace(record, probabilities=values, timings_ms=timings)

    def _admitted(self, record: Prediction, unlikeness: list[float] | None) -> Prediction:
        """The film's record, with a warning where it is unlike the model's and let through.

        Raises:
            ImageRefusedError: The film is not judged.
        """
        gate = self._gate
        if gate is None or unlikeness is None:
            return record
        reason = gate.reason(unlikeness, record.warnings)
        if reason is None:
            return record
        shown = not self.refuses_unlike or Caution.SYNTHETIC.code in record.warnings
        if reason is Reason.RESULT or not shown:
            raise ImageRefusedError(reason)
        return replace(record, warnings=(*record.warnings, Caution.OOD.code))


def _refused(record: Prediction, error: ImageRefusedError, started: float) -> Film:
    spent = milliseconds(started, time.perf_counter())
    timings = {"read": spent, "total": spent}
    refused = replace(record, reason=error.reason.code, message=str(error), timings_ms=timings)
    return Film(refused, None, started)


def _explained(
    records: list[Prediction],
    films: list[Film],
    activation_maps: NDArray[np.float32] | None,
    explainer: Explainer,
) -> list[Prediction]:
    """The records with heat maps, where there is a result to explain."""
    from deepcovid_edge.explain import Explained

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
