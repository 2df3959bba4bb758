"""Occlusion: hide a window of the image, classify again, see what the network relied on.

As in Deep-COVID, section 4.7 (arXiv 2004.09363), after Zeiler and Fergus (ECCV 2014): a window is
blanked and moved over the image; where hiding it lowers the score of the positive class, the
network looked.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import GPU_LANES, Backend, Partitionable, softmax
from deepcovid_edge.decision.record import DECIMALS
from deepcovid_edge.device.memory import check_address_space
from deepcovid_edge.device.process import cores
from deepcovid_edge.files import Closing
from deepcovid_edge.heatmaps.coarse_to_fine import Refinement
from deepcovid_edge.heatmaps.heatmap import OCCLUSION, HeatMap
from deepcovid_edge.heatmaps.incremental import PartitionedNetwork
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid, occluded
from deepcovid_edge.manifest import limits_of
from deepcovid_edge.models.graph.receptive_field import Box, NotSpatialError

_CPU_BATCH, _GPU_BATCH, _PARTS_BATCH = 8, 32, 32
"""Windows in a call: to a whole network on a CPU and on a GPU, and to a divided one."""


@dataclass(frozen=True)
class Occlusion:
    """What hiding each window did to one image. Arrays of windows are of `grid.shape`.

    Attributes:
        grid: Where the windows lie.
        logits: Of the whole image, of shape (classes,).
        logit_drop: How far the positive class's logit fell, float32; below 0 where it rose.
        probability_drop: How far its probability fell, float32.
        turned: The evaluated windows whose hiding changes the decision.
        evaluated: The windows that were evaluated; the values of all others are interpolated.
        milliseconds: What the image took.
    """

    grid: WindowGrid
    logits: NDArray[np.float32]
    logit_drop: NDArray[np.float32]
    probability_drop: NDArray[np.float32]
    turned: NDArray[np.bool_]
    evaluated: NDArray[np.bool_]
    milliseconds: float


class BudgetError(Exception):
    """Raised when an image's time budget does not hold the first pass.

    Attributes:
        needed_ms: About how long the first pass takes, milliseconds.
    """

    def __init__(self, needed_ms: float) -> None:
        self.needed_ms = needed_ms
        super().__init__(f"the first pass takes about {needed_ms:.0f} ms")


class Occluder(Closing):
    """Occludes images for one model; ends with `close` or `with`.

    Args:
        backend: The loaded model.
        settings: Which windows are hidden.
        limits: Probabilities at which the decision changes, the lowest first; None for the model's
            own.
        workers: Calls at once; None for one a core, or two on a GPU.

    Raises:
        UsageError: A window is larger than the model's input.
        MemoryError: A limit of this process leaves too little room for the threads.
    """

    def __init__(
        self,
        backend: Backend,
        settings: OcclusionSettings,
        *,
        limits: Sequence[float] | None = None,
        workers: int | None = None,
    ) -> None:
        manifest = backend.manifest
        self.settings = settings
        own = limits_of(manifest.threshold, manifest.indeterminate_range)
        self.limits = tuple(own.values() if limits is None else limits)
        self.grid = WindowGrid.over(manifest.input.height, manifest.input.width, settings)
        self._positive = manifest.positive_index
        self._workers = workers or (cores() if backend.on_cpu else GPU_LANES)
        check_address_space(self._workers)
        self._boxes = self.grid.boxes
        self._opener = _opener(backend, self._boxes, settings)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="occlude")

    def explain(self, image: NDArray[np.uint8]) -> Occlusion:
        """Hide every window of an image, or as many as the budget holds.

        Args:
            image: As `imaging.prepare.prepare` makes it, of shape (height, width).

        Raises:
            BudgetError: The budget does not hold the first pass.
        """
        budget = self.settings.budget_ms
        if budget is None:
            return self.explain_all(image[None])[0]
        started = time.perf_counter()
        opened = self._open(image[None])
        classified = self._refinement(opened.logits[0])
        self._refine(opened, classified, started, budget / 1000)
        return self._result(classified, (time.perf_counter() - started) * 1000)

    def explain_all(self, images: NDArray[np.uint8]) -> list[Occlusion]:
        """Hide every window of several images: windows of two images may share a call.

        Args:
            images: Of shape (N, height, width). The settings must have no budget.
        """
        started = time.perf_counter()
        opened = self._open(images)
        classified = [self._refinement(logits) for logits in opened.logits]
        self._classify(opened, range(len(images) * len(self._boxes)), classified)
        share = (time.perf_counter() - started) * 1000 / len(images)
        return [self._result(one, share) for one in classified]

    def _open(self, images: NDArray[np.uint8]) -> _Opened:
        hidden = np.stack([occluded(image, self.settings) for image in images])
        return self._opener(images, hidden)

    def _refinement(self, logits: NDArray[np.float32]) -> Refinement:
        spacing = 1 if self.settings.budget_ms is None else self.settings.first_spacing
        return Refinement(self.grid.shape, spacing, logits, self._positive)

    def _classify(
        self, opened: _Opened, jobs: Sequence[int], refinement: Sequence[Refinement]
    ) -> None:
        count = len(self._boxes)
        batches = opened.batches(jobs, self._workers)
        for batch, logits in zip(batches, self._pool.map(opened.classify, batches), strict=True):
            for image, one in enumerate(refinement):
                own = [place for place, job in enumerate(batch) if job // count == image]
                if own:
                    one.add([batch[place] % count for place in own], logits[own])

    def _refine(
        self, opened: _Opened, refinement: Refinement, started: float, budget: float
    ) -> None:
        """Classify as many windows as there is time for: the first pass, then what matters most."""
        first = refinement.first_pass()
        some = self._workers * opened.batch
        began = time.perf_counter()
        self._classify(opened, first[:some], [refinement])
        each = (time.perf_counter() - began) / len(first[:some])
        needed = time.perf_counter() - started + each * len(first[some:])
        if needed > budget:
            raise BudgetError(needed * 1000)
        self._classify(opened, first[some:], [refinement])
        while windows := refinement.next():
            left = started + budget - time.perf_counter()
            affordable = windows[: min(some, int(left / each))]
            if left < each or not affordable:
                break
            self._classify(opened, affordable, [refinement])

    def _result(self, refinement: Refinement, milliseconds: float) -> Occlusion:
        logits = refinement.estimate().astype(np.float32)
        shape, before = self.grid.shape, refinement.before
        whole = softmax(before[None])[0, self._positive]
        hidden = softmax(logits.reshape(-1, len(before)))[:, self._positive].reshape(shape)
        decided = np.digitize(np.round([whole, *hidden.ravel()], DECIMALS), self.limits)
        turned = (decided[1:] != decided[0]).reshape(shape)
        return Occlusion(
            grid=self.grid,
            logits=before,
            logit_drop=before[self._positive] - logits[..., self._positive],
            probability_drop=(whole - hidden).astype(np.float32),
            turned=turned & refinement.evaluated,
            evaluated=refinement.evaluated,
            milliseconds=milliseconds,
        )

    def close(self) -> None:
        """End the threads; the backend stays loaded."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Opened(Protocol):
    """Images ready for inference with windows hidden.

    A job is a window of an image: the image's number times the number of windows, plus the
    window's.
    """

    batch: int
    logits: NDArray[np.float32]
    """Of the whole images, of shape (images, classes)."""

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """Jobs for one call each."""

    def classify(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """Logits with each job's window hidden, of shape (jobs, classes)."""


def _opener(
    backend: Backend, boxes: list[Box], settings: OcclusionSettings
) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], _Opened]:
    """Makes images ready: the network in parts where that is asked for and can be, else whole.

    It is given the images, and what their windows show when they are hidden.
    """
    if settings.incremental and isinstance(backend, Partitionable):
        size = (backend.manifest.input.height, backend.manifest.input.width)
        with contextlib.suppress(NotSpatialError):
            network = PartitionedNetwork(backend.content(), size, boxes, backend.run_part)
            return partial(_PartsImages, network)
    return partial(_WholeImages, backend, boxes)


class _WholeImages:
    """Runs the whole network for every window: on any backend."""

    def __init__(
        self,
        backend: Backend,
        boxes: list[Box],
        images: NDArray[np.uint8],
        hidden: NDArray[np.uint8],
    ) -> None:
        self._backend, self._boxes = backend, boxes
        self._images, self._hidden = images, hidden
        self._own = threading.local()
        self.batch = _CPU_BATCH if backend.on_cpu else _GPU_BATCH
        self.logits = backend.infer(images).logits

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`."""
        return _chunks(jobs, self.batch)

    def classify(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """Write images and hidden windows into a buffer that each thread keeps."""
        buffer: NDArray[np.uint8] | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = np.empty((self.batch, *self._images.shape[1:]), np.uint8)
        for place, job in enumerate(jobs):
            image, window = divmod(job, len(self._boxes))
            rows, columns = (slice(*span) for span in self._boxes[window])
            buffer[place] = self._images[image]
            buffer[place, rows, columns] = self._hidden[image, rows, columns]
        return self._backend.infer(buffer[: len(jobs)]).logits


class _PartsImages:
    """Runs the parts of a divided network."""

    def __init__(
        self, network: PartitionedNetwork, images: NDArray[np.uint8], hidden: NDArray[np.uint8]
    ) -> None:
        self._routes, self._hidden = network.routes, hidden
        self._images = [network.begin(image) for image in images]
        self.batch = _PARTS_BATCH
        self.logits = np.stack([image.logits for image in self._images])

    def batches(self, jobs: Sequence[int], workers: int) -> list[list[int]]:
        """See `_Opened.batches`: of one image each, windows that alter much the same together."""
        found = []
        for image in range(len(self._images)):
            own = [job for job in jobs if job // len(self._routes) == image]
            own.sort(key=lambda job: self._routes[job % len(self._routes)].shapes)
            found += _chunks(own, min(self.batch, len(own) // workers + 1))
        return found

    def classify(self, jobs: Sequence[int]) -> NDArray[np.float32]:
        """See `_Opened.classify`."""
        image = jobs[0] // len(self._routes)
        routes = [self._routes[job % len(self._routes)] for job in jobs]
        patches = [
            self._hidden[image, slice(*route.box[0]), slice(*route.box[1])] for route in routes
        ]
        return self._images[image].classify(patches, routes)


def _chunks(jobs: Sequence[int], size: int) -> list[list[int]]:
    return [list(jobs[first : first + size]) for first in range(0, len(jobs), size)]


def of_occlusion(found: Occlusion, facts: dict[str, Any]) -> HeatMap:
    """The heat map of an occlusion; `facts` are added to its own."""
    grid = found.grid
    counts = {"windows": found.evaluated.size, "evaluated": int(found.evaluated.sum())}
    return HeatMap(
        method=OCCLUSION,
        values=grid.spread(found.logit_drop),
        cells=found.logit_drop,
        probability_drop=grid.spread(found.probability_drop),
        turned=grid.union(found.turned),
        facts={**facts, **counts, "milliseconds": round(found.milliseconds, 1)},
    )
