"""What only an NVIDIA GPU shows: run with `pytest -m gpu` where there is one.

Skipped elsewhere, with what is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_once import drawn_phantom

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build, installed_libraries
from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.device.gpu import find_gpu
from deepcovid_edge.models import find_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU answers"),
]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    import cv2

    drawn = [cv2.resize(drawn_phantom(seed, opacities=seed % 3), (224, 224)) for seed in range(9)]
    return np.stack(drawn)


def test_copies_streams_and_graphs_work_through_the_device_layer() -> None:
    pytest.importorskip("pycuda", reason="pycuda (extra tensorrt) is not installed")
    from deepcovid_edge.backends.tensorrt.cuda import CudaDevice

    device = CudaDevice()
    with device.active():
        stream = device.stream()
        host = device.pinned((4, 8), np.float32)
        back = device.pinned((4, 8), np.float32)
        host[:] = np.arange(32).reshape(4, 8)
        memory = device.allocate(host.nbytes)

        def work() -> None:
            device.copy_in(memory, host, stream)
            device.copy_out(back, memory, stream)

        work()
        device.wait(stream)
        np.testing.assert_array_equal(back, host)
        graph = device.capture(stream, work)
        if graph is not None:
            host[:] = -host
            graph.launch(stream)
            device.wait(stream)
            np.testing.assert_array_equal(back, host)
            graph.destroy()
        for thing in (memory, host, back, stream):
            device.free(thing)


@pytest.mark.parametrize("count", [1, 8, 9])
def test_engine_agrees_with_its_parent(count: int, images: np.ndarray, tmp_path: Path) -> None:
    if not installed_libraries():
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    pytest.importorskip("pycuda", reason="pycuda (extra tensorrt) is not installed")
    model = find_model("squeezenet1_1")
    engine, _ = build(model, BuildSettings(profile=Profile(1, 8, 8), folder=tmp_path))
    with (
        load_backend(model, backend="onnxruntime") as reference,
        load_backend(engine) as candidate,
    ):
        expected = reference.infer(images[:count], activation_maps=True)
        for _ in range(4):  # the plain way, the capture, and the graph
            got = candidate.infer(images[:count], activation_maps=True)
            np.testing.assert_allclose(got.logits, expected.logits, atol=2e-2)
        assert got.activation_maps is not None
        assert expected.activation_maps is not None
        np.testing.assert_allclose(got.activation_maps, expected.activation_maps, atol=0.2)


def test_onnxruntime_runs_on_cuda_when_it_says_so(images: np.ndarray) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime-gpu (extra gpu)")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime is the CPU one: pip install 'deepcovid-edge[gpu]'")
    model = find_model("squeezenet1_1")
    with (
        load_backend(model, backend="onnxruntime") as reference,
        load_backend(model, settings=BackendSettings(provider="cuda")) as candidate,
    ):
        assert candidate.name == "onnxruntime-cuda"
        expected, got = reference.infer(images).logits, candidate.infer(images).logits
        np.testing.assert_allclose(got, expected, atol=1e-2)


def test_parts_by_events_fit_into_the_host_s_time(images: np.ndarray, tmp_path: Path) -> None:
    """The first to run before a figure of `bench` on a GPU is believed."""
    if not installed_libraries():
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    pytest.importorskip("pycuda", reason="pycuda (extra tensorrt) is not installed")
    import time

    from deepcovid_edge.backends.tensorrt.backend import TensorRtBackend

    engine, _ = build(
        find_model("squeezenet1_1"), BuildSettings(profile=Profile(1, 8, 8), folder=tmp_path)
    )
    with load_backend(engine) as backend:
        assert isinstance(backend, TensorRtBackend)
        for _ in range(20):
            backend.infer_in_parts(images[:8])
        for _ in range(20):
            started = time.perf_counter()
            parts = backend.infer_in_parts(images[:8])
            took = (time.perf_counter() - started) * 1000
            assert all(value > 0 for value in parts.values())
            assert sum(parts.values()) < took


def test_the_driver_s_library_tells_clock_heat_memory_and_power() -> None:
    from deepcovid_edge.benchmarking.gauges import gpu_gauge

    gauge = gpu_gauge()
    assert gauge is not None
    try:
        reading = gauge.reading()
        for name in ("gpu_mhz", "gpu_celsius", "gpu_memory_mib", "watts"):
            value = reading[name]
            assert isinstance(value, float)
            assert value > 0
    finally:
        gauge.close()
