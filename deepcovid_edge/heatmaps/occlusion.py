"""Occlusion: hide a window of the film, judge again, see what the network went by.

As in Deep-COVID, section 4.7 (arXiv 2004.09363), after Zeiler and Fergus (ECCV 2014): a window is
blanked and moved over the film; where hiding it lowers the score of the positive class, the network
looked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend, Divisible
from deepcovid_edge.graph.receptive_field import Box, NotSpatialError
from deepcovid_edge.heatmaps.coarse_to_fine import Refinement
from deepcovid_edge.heatmaps.incremental import DividedNetwork
from deepcovid_edge.heatmaps.windows import Lattice, OcclusionSettings, hidden_film
from deepcovid_edge.pipeline.classifier import DECIMALS, probabilities
from deepcovid_edge.pipeline.pipeline import GPU_LANES

_CPU_BATCH, _GPU_BATCH, _PARTS_BATCH = 8, 32, 32
"""Windows in a call: to a whole network on a CPU and on a GPU, and to a divided one."""


@dataclass(frozen=True)
class Occlusion:
    """What hiding each window did to one film. Arrays of windows are of `lattice.shape`.

    Attributes:
        lattice: Where the windows lie.
        logits: Of the whole film, of shape (classes,).
        logit_drop: How far the positive class's logit fell, float32; below 0 where it rose.
        probability_drop: How far its probability fell, float32.
        turned: The windows whose hiding turns the decision, among those that were judged.
        evaluated: The windows that were judged; the values of all others are interpolated.
        milliseconds: What the film took.
    """

    lattice: Lattice
    logits: NDArray[np.float32]
    logit_drop: NDArray[np.float32]
    probability_drop: NDArray[np.float32]
    turned: NDArray[np.bool_]
    evaluated: NDArray[np.bool_]
    milliseconds: float


class BudgetError(Exception):
    """Raised when a film's time budget does not hold the first pass.

    Attributes:
        needed_ms: About how long the first pass takes, milliseconds.
    """

    def __init__(self, needed_ms: float) -> None:
        self.needed_ms = needed_ms
        super().__init__(f"the first pass takes about {needed_ms:.0f} ms")


class Occluder:
    """Occludes films for one model; ends with `close` or `with`.

    Args:
        backend: The loaded model.
        settings: Which windows are hidden.
        threshold: Probability from which a film is positive; None for the model's own.
        workers: Calls at once; None for one a core, or two on a GPU.

    Raises:
        UsageError: A window is larger than the model's input.
    """

    def __init__(
        self,
        backend: Backend,
        settings: OcclusionSettings,
        *,
        threshold: float | None = None,
        workers: int | None = None,
    ) -> None:
        manifest = backend.manifest
        self.settings = settings
        self.threshold = manifest.threshold if threshold is None else threshold
        self.lattice = Lattice.over(manifest.input.height, manifest.input.width, settings)
        self._positive = manifest.positive_index
        self._workers = workers or (len(os.sched_getaffinity(0)) if backend.on_cpu else GPU_LANES)
        self._boxes = self.lattice.boxes
        self._network = _network(backend, self._boxes, settings)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="occlude")

    @property
    def is_incremental(self) -> bool:
        """Whether only what a window alters is computed."""
        return isinstance(self._network, _Parts)

    def explain(self, film: NDArray[np.uint8]) -> Occlusion:
        """Hide every window of a film, or as many as the budget holds.

        Args:
            film: As `preprocess.prepare` makes it, of shape (height, width).

        Raises:
            BudgetError: The budget does not hold the first pass.
        """
        budget = self.settings.budget_ms
        if budget is None:
            return self.explain_all(film[None])[0]
        started = time.perf_counter()
        opened = self._open(film[None])
        judged = self._refinement(opened.logits[0])
        self._refine(opened, judged, started, budget / 1000)
        return self._result(judged, (time.perf_counter() - started) * 1000)

    def explain_all(self, films: NDArray[np.uint8]) -> list[Occlusion]:
        """Hide every window of several films: windows of two films may share a call.

        Args:
            films: Of shape (N, height, width). The settings must have no budget.
        """
        started = time.perf_counter()
        opened = self._open(films)
        judged = [self._refinement(logits) for logits in opened.logits]
        self._judge(opened, range(len(films) * len(self._boxes)), judged)
        share = (time.perf_counter() - started) * 1000 / len(films)
        return [self._result(one, share) for one in judged]

    def _open(self, films: NDArray[np.uint8]) -> _Opened:
        hidden = np.stack([hidden_film(film, self.settings) for film in films])
        return self._network.open(films, hidden)

    def _refinement(self, logits: NDArray[np.float32]) -> Refinement:
        spacing = 1 if self.settings.budget_ms is None else self.settings.first_spacing
        return Refinement(self.lattice.shape, spacing, logits, self._positive)

    def _judge(self, opened: _Opened, jobs: Sequence[int], judged: Sequence[Refinement]) -> None:
        count = len(self._boxes)
        batches = opened.batches(jobs, self._workers)
        for batch, logits in zip(batches, self._pool.map(opened.judge, batches), strict=True):
            for film, one in enumerate(judged):
                own = [place for place, job in enumerate(batch) if job // count == film]
                if own:
                    one.add([batch[place] % count for place in own], logits[own])

    def _refine(self, opened: _Opened, judged: Refinement, started: float, budget: float) -> None:
        """Judge as many windows as there is time for: the first pass, then what matters most."""
        first = judged.first_pass()
        some = self._workers * opened.batch
        began = time.perf_counter()
        self._judge(opened, first[:some], [judged])
        each = (time.perf_counter() - began) / len(first[:some])
        needed = time.perf_counter() - started + each * len(first[some:])
        if needed > budget:
            raise BudgetError(needed * 1000)
        self._judge(opened, first[some:], [judged])
        while windows := judged.next():
            left = started + budget - time.perf_counter()
            affordable = windows[: min(some, int(left / each))]
            if left < each or not affordable:
                break
            self._judge(opened, affordable, [judged])

    def _result(self, judged: Refinement, milliseconds: float) -> Occlusion:
        logits = judged.estimate().astype(np.float32)
        shape, before = self.lattice.shape, judged.before
        whole = probabilities(before[None])[0, self._positive]
        hidden = probabilities(logits.reshape(-1, len(before)))[:, self._positive].reshape(shape)
        positive = np.round(hidden, DECIMALS) >= self.threshold
        turned = positive != (round(float(whole), DECIMALS) >= self.threshold)
        return Occlusion(
            lattice=self.lattice,
            logits=before,
            logit_drop=before[self._positive] - logits[..., self._positive],
            probability_drop=(whole - hidden).astype(np.float32),
            turned=turned & judged.evaluated,
            evaluated=judged.evaluated,
            milliseconds=milliseconds,
        )

    def close(self) -> None:
        """End the threads; the backend stays loaded."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Occluder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Opened(Protocol):
    """Films ready to be judged with windows hidden.

    A job is a window of a film: the film's number times the number of windows, plus the window's.
    """

    batch: int
    logits: NDArray[np.float32]
    """Of the whole films, of shape (films, classes)."""

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """Jobs for one call each."""

    def judge(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """Logits with each job's window hidden, of shape (jobs, classes)."""


class _Network(Protocol):
    def open(self, films: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _Opened:
        """Make films ready; `hidden` is what their windows show when they are hidden."""


def _network(backend: Backend, boxes: list[Box], settings: OcclusionSettings) -> _Network:
    """The network in parts where that is asked for and can be, else whole."""
    if settings.incremental and isinstance(backend, Divisible):
        size = (backend.manifest.input.height, backend.manifest.input.width)
        with contextlib.suppress(NotSpatialError):
            return _Parts(DividedNetwork(backend.content(), size, boxes, backend.run_part))
    return _Whole(backend, boxes)


class _Whole:
    """Runs the whole network for every window: on any backend."""

    def __init__(self, backend: Backend, boxes: list[Box]) -> None:
        self.backend, self.boxes = backend, boxes

    def open(self, films: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _WholeFilms:
        """See `_Network.open`."""
        return _WholeFilms(self, films, hidden)


class _WholeFilms:
    def __init__(
        self, network: _Whole, films: NDArray[np.uint8], hidden: NDArray[np.uint8]
    ) -> None:
        self._network, self._films, self._hidden = network, films, hidden
        self._own = threading.local()
        self.batch = _CPU_BATCH if network.backend.on_cpu else _GPU_BATCH
        self.logits = network.backend.infer(films).logits

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`."""
        return _chunks(jobs, self.batch)

    def judge(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """Write films and hidden windows into a buffer that each thread keeps."""
        buffer: NDArray[np.uint8] | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = np.empty((self.batch, *self._films.shape[1:]), np.uint8)
        for place, job in enumerate(jobs):
            film, window = divmod(job, len(self._network.boxes))
            rows, columns = (slice(*span) for span in self._network.boxes[window])
            buffer[place] = self._films[film]
            buffer[place, rows, columns] = self._hidden[film, rows, columns]
        return self._network.backend.infer(buffer[: len(jobs)]).logits


class _Parts:
    """Runs the parts of a divided network."""

    def __init__(self, network: DividedNetwork) -> None:
        self.network = network

    def open(self, films: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _PartsFilms:
        """See `_Network.open`."""
        return _PartsFilms(self.network, films, hidden)


class _PartsFilms:
    def __init__(
        self, network: DividedNetwork, films: NDArray[np.uint8], hidden: NDArray[np.uint8]
    ) -> None:
        self._routes, self._hidden = network.routes, hidden
        self._films = [network.begin(film) for film in films]
        self.batch = _PARTS_BATCH
        self.logits = np.stack([film.logits for film in self._films])

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`: of one film each, windows that alter much the same together."""
        found = []
        for film in range(len(self._films)):
            own = [job for job in jobs if job // len(self._routes) == film]
            own.sort(key=lambda job: self._routes[job % len(self._routes)].shapes)
            found += _chunks(own, min(self.batch, len(own) // workers + 1))
        return found

    def judge(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """See `_Opened.judge`."""
        film = jobs[0] // len(self._routes)
        routes = [self._routes[job % len(self._routes)] for job in jobs]
        patches = [
            self._hidden[film, slice(*route.box[0]), slice(*route.box[1])] for route in routes
        ]
        return self._films[film].judge(patches, routes)


def _chunks(jobs: Sequence[int], size: int) -> list[list[int]]:
    return [list(jobs[first : first + size]) for first in range(0, len(jobs), size)]
