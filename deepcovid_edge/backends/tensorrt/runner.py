"""Run an engine on a device: buffers, batches, threads and graphs, over a thin device layer.

Nothing here imports TensorRT or CUDA: `backends.tensorrt` brings the real engine and device, tests
bring fake ones that know when they are misused.

Each call of `infer` borrows a lane: an execution context, a stream and pinned buffers. Two calls at
once therefore overlap: one copies while the other computes. There are as many lanes as there were
calls at once, however many threads have called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.errors import UsageError

_CLOSE_SECONDS = 30.0
"""Longest wait for calls under way: a GPU may never answer."""

INPUT = "images"
PARTS = ("host_to_device", "compute", "device_to_host")
"""What a call is made of on the device."""
MAX_GRAPHS = 4
"""Batch sizes for which a lane keeps a captured graph."""


class Graph(Protocol):
    """A captured sequence of work."""

    def launch(self, stream: Any) -> None:
        """Put the whole sequence on a stream."""

    def destroy(self) -> None:
        """Free it."""


class Device(Protocol):
    """Memory and streams of one GPU. All calls but `active` are made while it is active."""

    def active(self) -> AbstractContextManager[None]:
        """Make the device current on this thread for as long as the context lasts."""

    def stream(self) -> Any:
        """A new stream."""

    def pinned(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Page-locked host memory of a shape, from which copies run beside other work."""

    def allocate(self, size: int) -> Any:
        """Device memory of a size in bytes; `int()` of it is its address."""

    def copy_in(self, memory: Any, host: NDArray[Any], stream: Any) -> None:
        """Copy to the device, in the order of the stream."""

    def copy_out(self, host: NDArray[Any], memory: Any, stream: Any) -> None:
        """Copy from the device, in the order of the stream."""

    def wait(self, stream: Any) -> None:
        """Wait until all work of a stream is done; other Python threads run meanwhile."""

    def event(self) -> Any:
        """A new event that keeps its time."""

    def mark(self, event: Any, stream: Any) -> None:
        """Have the event take the time when the stream comes to it."""

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two marked events that the stream has passed."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph | None:
        """Record what `work` puts on the stream as a graph, or None where that cannot be."""

    def free(self, memory: Any) -> None:
        """Free device memory, pinned memory or a stream."""


class Context(Protocol):
    """An execution context of an engine."""

    def set_batch(self, size: int) -> None:
        """Set the number of images of the next call."""

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies."""

    def enqueue(self, stream: Any) -> None:
        """Put the network on a stream."""

    def destroy(self) -> None:
        """Free it, before its engine."""


class Engine(Protocol):
    """A deserialised engine."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Names of the FP32 outputs and their shapes without the batch."""

    def context(self) -> Context:
        """A new execution context."""

    def destroy(self) -> None:
        """Free it, after its contexts."""


class Lane:
    """What one call needs: context, stream, and buffers for the largest batch."""

    def __init__(
        self,
        device: Device,
        engine: Engine,
        profile: Profile,
        image: tuple[int, int],
        *,
        graphs: bool,
    ) -> None:
        self._device, self._profile = device, profile
        self._graphs_wanted = graphs
        self._graphs: dict[int, Graph] = {}
        self._seen: dict[int, int] = {}
        self._stream = device.stream()
        self._context = engine.context()
        self._images = device.pinned((profile.max, *image), np.uint8)
        self._input = device.allocate(self._images.nbytes)
        self._context.bind(INPUT, int(self._input))
        self._outputs: dict[str, tuple[NDArray[Any], Any]] = {}
        for name, shape in engine.outputs.items():
            host = device.pinned((profile.max, *shape), np.float32)
            memory = device.allocate(host.nbytes)
            self._context.bind(name, int(memory))
            self._outputs[name] = (host, memory)

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run up to the profile's largest batch; a batch below its smallest is filled up.

        Args:
            images: Of shape (N, H, W), uint8.

        Returns:
            Output name -> values of shape (N, ...), float32, owned by the caller.
        """
        count = len(images)
        size = max(count, self._profile.min)
        self._images[:count] = images
        self._images[count:size] = 0
        self._context.set_batch(size)
        self._run(size)
        self._device.wait(self._stream)
        return {name: host[:count].copy() for name, (host, _) in self._outputs.items()}

    def infer_in_parts(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run like `infer` but without a graph, and time the parts by events.

        A graph runs as a whole, so events inside it cannot be read: what is timed here is the same
        work, put on the stream piece by piece.

        Returns:
            `host_to_device`, `compute` and `device_to_host`, milliseconds.
        """
        size = max(len(images), self._profile.min)
        self._images[: len(images)] = images
        self._images[len(images) : size] = 0
        self._context.set_batch(size)
        marks = [self._device.event() for _ in range(len(PARTS) + 1)]
        try:
            self._enqueue(size, marks)
            self._device.wait(self._stream)
            pairs = zip(PARTS, marks, marks[1:], strict=False)
            return {name: self._device.milliseconds(start, end) for name, start, end in pairs}
        finally:
            for event in marks:
                self._device.free(event)

    def _run(self, size: int) -> None:
        if graph := self._graph(size):
            graph.launch(self._stream)
        else:
            self._enqueue(size)

    def _enqueue(self, size: int, marks: Sequence[Any] = ()) -> None:
        """Put a call on the stream, with a mark before, between and after its parts."""
        left = iter(marks)
        self._mark(left)
        self._device.copy_in(self._input, self._images[:size], self._stream)
        self._mark(left)
        self._context.enqueue(self._stream)
        self._mark(left)
        for host, memory in self._outputs.values():
            self._device.copy_out(host[:size], memory, self._stream)
        self._mark(left)

    def _mark(self, marks: Iterator[Any]) -> None:
        for event in marks:
            self._device.mark(event, self._stream)
            return

    def _graph(self, size: int) -> Graph | None:
        """The graph of a batch size: captured when it comes a second time.

        The first, plain call lets TensorRT do what it does once a shape, which no capture may
        hold (TensorRT developer guide, "CUDA graphs").
        """
        if size in self._graphs:
            return self._graphs[size]
        self._seen[size] = self._seen.get(size, 0) + 1
        if not self._graphs_wanted or self._seen[size] < 2 or len(self._graphs) >= MAX_GRAPHS:
            return None
        graph = self._device.capture(self._stream, lambda: self._enqueue(size))
        if graph is None:
            self._graphs_wanted = False
            return None
        self._graphs[size] = graph
        return graph

    def close(self) -> None:
        """Free everything, users before what they use."""
        for graph in self._graphs.values():
            graph.destroy()
        self._graphs.clear()
        self._context.destroy()
        for host, memory in self._outputs.values():
            self._device.free(memory)
            self._device.free(host)
        self._device.free(self._input)
        self._device.free(self._images)
        self._device.free(self._stream)


class EngineRunner:
    """An engine with a lane for each call that is under way."""

    def __init__(
        self,
        device: Device,
        engine: Engine,
        profile: Profile,
        image: tuple[int, int],
        *,
        graphs: bool = True,
    ) -> None:
        """Take over an engine.

        Args:
            device: The GPU.
            engine: The deserialised engine; `close` destroys it.
            profile: The batch sizes it takes.
            image: Height and width of an image.
            graphs: Capture CUDA graphs where the device can.
        """
        self._device, self._engine = device, engine
        self._profile, self._image, self._graphs = profile, image, graphs
        self._idle: LifoQueue[Lane] = LifoQueue()  # the last one used has its graphs
        self._count = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Names of the outputs and their shapes without the batch."""
        return self._engine.outputs

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run any number of images, in batches that the engine takes.

        Args:
            images: Of shape (N, H, W), uint8, N from 1 on.

        Returns:
            Output name -> values of shape (N, ...), float32.

        Raises:
            UsageError: The runner is closed.
        """
        with self._device.active(), self._lane() as lane:
            parts = [lane.infer(batch) for batch in self._batches(images)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def infer_in_parts(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run any number of images and sum up the parts of their calls; see `Lane`."""
        with self._device.active(), self._lane() as lane:
            calls = [lane.infer_in_parts(batch) for batch in self._batches(images)]
        return {name: sum(call[name] for call in calls) for name in PARTS}

    def warm_up(self, sizes: tuple[int, ...]) -> None:
        """Run each batch size that will come, often enough that its graph is captured."""
        for size in sizes:
            images = np.zeros((min(size, self._profile.max), *self._image), np.uint8)
            for _ in range(3):
                self.infer(images)

    def close(self) -> None:
        """Wait for calls under way, free lanes, then the engine; harmless when called again.

        What a call uses that does not end is left to the end of the process.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        ends = time.monotonic() + _CLOSE_SECONDS
        with self._device.active(), suppress(Empty):
            for _ in range(self._count):
                self._idle.get(timeout=max(0.0, ends - time.monotonic())).close()
            self._engine.destroy()

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), self._profile.max):
            yield images[start : start + self._profile.max]

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that no other call has, while this one is under way."""
        with self._lock:
            if self._closed:
                raise UsageError("the model is closed: load it again")
            try:
                lane = self._idle.get_nowait()
            except Empty:
                lane = Lane(
                    self._device, self._engine, self._profile, self._image, graphs=self._graphs
                )
                self._count += 1
        try:
            yield lane
        finally:
            self._idle.put(lane)
