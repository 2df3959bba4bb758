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
from deepcovid_edge.incremental import DividedFilm, DividedNetwork
from deepcovid_edge.lattice import Lattice, OcclusionSettings, hidden_film
from deepcovid_edge.predict import DECIMALS, GPU_LANES, probabilities
from deepcovid_edge.receptive import Box, NotSpatialError
from deepcovid_edge.refine import Refinement

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
        self._network = _network(backend, self.lattice.boxes, settings)
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
        started = time.perf_counter()
        opened = self._network.open(film, hidden_film(film, self.settings))
        budget = self.settings.budget_ms
        spacing = 1 if budget is None else self.settings.first_spacing
        judged = Refinement(self.lattice.shape, spacing, opened.logits, self._positive)
        if budget is None:
            self._judge(opened, judged.first_pass(), judged)
        else:
            self._refine(opened, judged, started, budget / 1000)
        return self._result(judged, started)

    def _judge(self, opened: _Opened, windows: Sequence[int], judged: Refinement) -> None:
        batches = opened.batches(windows, self._workers)
        for batch, logits in zip(batches, self._pool.map(opened.judge, batches), strict=True):
            judged.add(batch, logits)

    def _refine(self, opened: _Opened, judged: Refinement, started: float, budget: float) -> None:
        """Judge as many windows as there is time for: the first pass, then what matters most."""
        first = judged.first_pass()
        some = self._workers * opened.batch
        began = time.perf_counter()
        self._judge(opened, first[:some], judged)
        each = (time.perf_counter() - began) / len(first[:some])
        needed = time.perf_counter() - started + each * len(first[some:])
        if needed > budget:
            raise BudgetError(needed * 1000)
        self._judge(opened, first[some:], judged)
        while windows := judged.next():
            left = started + budget - time.perf_counter()
            affordable = windows[: min(some, int(left / each))]
            if left < each or not affordable:
                break
            self._judge(opened, affordable, judged)

    def _result(self, judged: Refinement, started: float) -> Occlusion:
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
            milliseconds=(time.perf_counter() - started) * 1000,
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
    """A film ready to be judged with windows hidden."""

    batch: int

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of the whole film, of shape (classes,)."""

    def batches(self, windows: Sequence[int], workers: int) -> list[list[int]]:
        """Windows, by their numbers, for one call each."""

    def judge(self, windows: Sequence[int]) -> NDArray[np.float32]:
        """Logits with each of the windows hidden, of shape (windows, classes)."""


class _Network(Protocol):
    def open(self, film: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _Opened:
        """Make a film ready; `hidden` is what its windows show when they are hidden."""


def _network(backend: Backend, boxes: list[Box], settings: OcclusionSettings) -> _Network:
    """The network in parts where that is asked for and can be, else whole."""
    if settings.incremental and isinstance(backend, Divisible):
        size = (backend.manifest.input.height, backend.manifest.input.width)
        with contextlib.suppress(NotSpatialError):
            return _Parts(DividedNetwork(backend.content(), size, boxes, backend.run_part), boxes)
    return _Whole(backend, boxes)


class _Whole:
    """Runs the whole network for every window: on any backend."""

    def __init__(self, backend: Backend, boxes: list[Box]) -> None:
        self.backend, self.boxes = backend, boxes

    def open(self, film: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _WholeFilm:
        """See `_Network.open`."""
        return _WholeFilm(self, film, hidden)


class _WholeFilm:
    def __init__(self, network: _Whole, film: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> None:
        self._network, self._film, self._hidden = network, film, hidden
        self._own = threading.local()
        self.batch = _CPU_BATCH if network.backend.on_cpu else _GPU_BATCH
        self.logits = network.backend.infer(film[None]).logits[0]

    def batches(self, windows: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`."""
        return _chunks(windows, self.batch)

    def judge(self, windows: Sequence[int]) -> NDArray[np.float32]:
        """Write windows into copies of the film that each thread keeps, and undo it after."""
        films = self._copies()[: len(windows)]
        boxes = [self._network.boxes[window] for window in windows]
        for film, (rows, columns) in zip(films, boxes, strict=True):
            film[slice(*rows), slice(*columns)] = self._hidden[slice(*rows), slice(*columns)]
        logits = self._network.backend.infer(films).logits
        for film, (rows, columns) in zip(films, boxes, strict=True):
            film[slice(*rows), slice(*columns)] = self._film[slice(*rows), slice(*columns)]
        return logits

    def _copies(self) -> NDArray[np.uint8]:
        copies: NDArray[np.uint8] | None = getattr(self._own, "copies", None)
        if copies is None:
            copies = self._own.copies = np.repeat(self._film[None], self.batch, axis=0)
        return copies


class _Parts:
    """Runs the parts of a divided network."""

    def __init__(self, network: DividedNetwork, boxes: list[Box]) -> None:
        self.network, self.boxes = network, boxes

    def open(self, film: NDArray[np.uint8], hidden: NDArray[np.uint8]) -> _PartsFilm:
        """See `_Network.open`."""
        return _PartsFilm(self.network, self.network.begin(film), hidden)


class _PartsFilm:
    def __init__(
        self, network: DividedNetwork, film: DividedFilm, hidden: NDArray[np.uint8]
    ) -> None:
        self._network, self._film, self._hidden = network, film, hidden
        self.batch = _PARTS_BATCH
        self.logits = film.logits

    def batches(self, windows: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`: windows that alter much the same come together."""
        alike = sorted(windows, key=lambda window: self._network.routes[window].shapes)
        return _chunks(alike, min(self.batch, len(alike) // workers + 1))

    def judge(self, windows: Sequence[int]) -> NDArray[np.float32]:
        """See `_Opened.judge`."""
        routes = [self._network.routes[window] for window in windows]
        patches = [self._hidden[slice(*route.box[0]), slice(*route.box[1])] for route in routes]
        return self._film.judge(patches, routes)


def _chunks(windows: Sequence[int], size: int) -> list[list[int]]:
    return [list(windows[first : first + size]) for first in range(0, len(windows), size)]
