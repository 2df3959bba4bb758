"""The work of a query: the network alone, or the whole way from file to record."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import GPU_LANES, Backend
from deepcovid_edge.benchmarking.scenarios import Clock, Done, Parts, in_threads
from deepcovid_edge.benchmarking.settings import NETWORK
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.device.process import cores
from deepcovid_edge.errors import BenchError
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.pipeline.reader import ImageReader, Reading


@runtime_checkable
class TellsParts(Protocol):
    """A backend that can time the parts of a call on its device."""

    def infer_in_parts(self, batch: NDArray[np.uint8]) -> Parts:
        """Run a batch; `host_to_device`, `compute`, `device_to_host`, milliseconds."""


def lanes_of(backend: Backend, scope: str, workers: int | None) -> int:
    """How many queries are in progress at once, as in `predict`: one per core, on a GPU two."""
    if scope == NETWORK and not backend.on_cpu:
        return workers or GPU_LANES
    return workers or cores()


class NetworkWork:
    """Prepared images in host memory to logits in host memory."""

    def __init__(
        self, backend: Backend, pixels: NDArray[np.uint8], clock: Clock, *, lanes: int
    ) -> None:
        """Take prepared images of shape (N, H, W), and the calls at once in `offline`."""
        self._backend, self._clock, self._lanes = backend, clock, lanes
        self._round = pixels
        self.images = len(pixels)

    def payload(self, first: int, size: int) -> NDArray[np.uint8]:
        """Images in turn as one batch, without a copy."""
        needed = self.images + size
        if len(self._round) < needed:
            self._round = np.resize(self._round, (needed, *self._round.shape[1:]))
        return self._round[first : first + size]

    def run(self, payload: NDArray[np.uint8]) -> Sequence[Parts]:
        """See `Work.run`; the query has no parts."""
        self._backend.infer(payload)
        return ()

    def offline(self, batches: Iterator[tuple[int, int]], done: Done) -> None:
        """See `Work.offline`: each lane takes the next batch."""

        def answer(batch: tuple[int, int], _: threading.Event) -> None:
            first, size = batch
            payload = self.payload(first, size)
            started = self._clock.now()
            self._backend.infer(payload)
            done(started, first, size, ())

        in_threads(answer, batches, self._lanes)


class EndToEndWork:
    """Files to records, through `predict`, as `infer` does it; nothing is written.

    Images unlike the training images are classified with a warning, which takes as long: they
    were chosen before their scores were known.
    """

    def __init__(
        self, backend: Backend, paths: Sequence[Path], *, workers: int | None, batch_size: int
    ) -> None:
        """Take image files, and the batch size of `offline`."""
        self._backend, self._workers, self._batch_size = backend, workers, batch_size
        self._paths = list(paths)
        self.images = len(self._paths)

    def payload(self, first: int, size: int) -> list[Path]:
        """Files in turn."""
        return [self._paths[(first + number) % self.images] for number in range(size)]

    def run(self, payload: Sequence[Path]) -> Sequence[Parts]:
        """See `Work.run`. One image is classified by one thread; a GPU takes all at once."""
        workers = 1 if len(payload) == 1 else self._workers
        at_once = None if self._backend.on_cpu else len(payload)
        settings = PredictSettings(batch_size=at_once, workers=workers, ood="warn")
        records = Model.of(self._backend, settings).predict(payload)
        return [self._parts(record) for record in records]

    def offline(self, batches: Iterator[tuple[int, int]], done: Done) -> None:
        """See `Work.offline`: one run; images that are ready together are one result."""
        under_way: deque[int] = deque()

        def paths() -> Iterator[Path]:
            for first, size in batches:
                for number in range(first, first + size):
                    under_way.append(number % self.images)
                    yield self._paths[number % self.images]

        settings = PredictSettings(batch_size=self._batch_size, workers=self._workers, ood="warn")
        reading = Reading(paths(), ImageReader(self._backend.manifest.input))
        for records in Model.of(self._backend, settings).predict_groups(reading):
            first, *_ = [under_way.popleft() for _ in records]
            done(None, first, len(records), [*map(self._parts, records)])

    def _parts(self, record: Prediction) -> Parts:
        if record.probabilities is None:
            raise BenchError(
                f"{record.path}: no longer assessed ({record.reason}): do not change images "
                "during a measurement"
            )
        timings = record.timings_ms or {}
        network = "compute" if self._backend.on_cpu else "infer"
        read, prepare, infer = (timings[name] for name in ("read", "preprocess", "infer"))
        return {"read": read, "preprocess": prepare, network: infer}
