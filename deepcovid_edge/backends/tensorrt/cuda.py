"""The real device layer: pycuda for memory and streams, cuda-bindings for graphs.

It uses the GPU's primary context and creates no other one, so that torch, ONNX Runtime and
TensorRT-RTX in the same process share it. It does not use `pycuda.autoinit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import BackendUnavailableError, require


class CudaDevice:
    """The first GPU, through pycuda."""

    def __init__(self) -> None:
        """Retain the GPU's primary context.

        Raises:
            MissingDependencyError: pycuda is not installed.
            BackendUnavailableError: The driver or the GPU does not answer.
        """
        require("pycuda", extra="tensorrt")
        try:
            self._cuda: Any = import_module("pycuda.driver")
            self._cuda.init()
            self._context = self._cuda.Device(0).retain_primary_context()
        except Exception as error:  # ImportError without a driver, pycuda's own without a GPU
            raise BackendUnavailableError(f"CUDA does not answer: {error}") from error
        self._graphs = _graph_api()

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `runner.Device`."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def stream(self) -> Any:
        """See `runner.Device`."""
        return self._cuda.Stream()

    def pinned(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """See `runner.Device`."""
        memory: NDArray[Any] = self._cuda.pagelocked_zeros(shape, dtype)
        return memory

    def allocate(self, size: int) -> Any:
        """See `runner.Device`."""
        return self._cuda.mem_alloc(size)

    def copy_in(self, memory: Any, host: NDArray[Any], stream: Any) -> None:
        """See `runner.Device`."""
        self._cuda.memcpy_htod_async(memory, host, stream)

    def copy_out(self, host: NDArray[Any], memory: Any, stream: Any) -> None:
        """See `runner.Device`."""
        self._cuda.memcpy_dtoh_async(host, memory, stream)

    def wait(self, stream: Any) -> None:
        """See `runner.Device`."""
        stream.synchronize()

    def event(self) -> Any:
        """See `runner.Device`."""
        return self._cuda.Event()

    def mark(self, event: Any, stream: Any) -> None:
        """See `runner.Device`."""
        event.record(stream)

    def milliseconds(self, start: Any, end: Any) -> float:
        """See `runner.Device`."""
        return float(start.time_till(end))

    def capture(self, stream: Any, work: Callable[[], None]) -> CudaGraph | None:
        """See `runner.Device`."""
        if self._graphs is None:
            return None
        return _capture(self._graphs, stream, work)

    def free(self, memory: Any) -> None:
        """See `runner.Device`."""
        if hasattr(memory, "free"):
            memory.free()
        elif isinstance(memory, np.ndarray):
            owner: Any = memory.base  # pycuda's page-locked allocation
            owner.free()


class CudaGraph:
    """An instantiated CUDA graph."""

    def __init__(self, api: Any, executable: Any) -> None:
        self._api, self._executable = api, executable

    def launch(self, stream: Any) -> None:
        """See `runner.Graph`."""
        _check(self._api, self._api.cuGraphLaunch(self._executable, stream.handle))

    def destroy(self) -> None:
        """See `runner.Graph`."""
        _check(self._api, self._api.cuGraphExecDestroy(self._executable))


def _graph_api() -> Any:
    """cuda-bindings' driver interface (pycuda has no graphs), or None."""
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _capture(api: Any, stream: Any, work: Callable[[], None]) -> CudaGraph | None:
    mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    try:
        _check(api, api.cuStreamBeginCapture(stream.handle, mode))
        try:
            work()
        finally:
            (graph,) = _check(api, api.cuStreamEndCapture(stream.handle))
        (executable,) = _check(api, api.cuGraphInstantiate(graph, 0))
        _check(api, api.cuGraphDestroy(graph))
    except _GraphError:
        return None  # the plain way goes on
    return CudaGraph(api, executable)


class _GraphError(RuntimeError):
    """Raised when a graph call fails; the lane then runs without graphs."""


def _check(api: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    code, *values = result
    if code != api.CUresult.CUDA_SUCCESS:
        raise _GraphError(str(code))
    return tuple(values)
