"""What we call of TensorRT exists, with our arguments, in every version that we support.

The bindings are the real wheels of NVIDIA, about 1 MB each; a stub in C stands for the libraries
behind them, so that they can be imported without a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "tensorrt_api"
VERSIONS = {
    "10.3.0": "tensorrt_cu12_bindings==10.3.0",  # JetPack 6.1, 6.2
    "10.13.3": "tensorrt_cu12_bindings==10.13.3.9",  # JetPack 7.1
    "10.16.1": "tensorrt_cu12_bindings==10.16.1.11",  # JetPack 7.2
    "11.4.0": "tensorrt_cu13_bindings==11.4.0.106",
}
NEEDED = {
    "Builder.create_network",
    "Builder.build_serialized_network",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.builder_optimization_level =",
    "IBuilderConfig.progress_monitor =",
    "IOptimizationProfile.set_shape",
    "OnnxParser.get_error",
    "ParserError.desc",
    "Runtime.deserialize_cuda_engine",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: it compiles the stub behind TensorRT's bindings")
    folder = tmp_path_factory.mktemp("stubs")
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        for major in ("10", "11"):
            name = f"lib{library}.so.{major}"
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
            subprocess.run([*command, str(HERE / "stub.c")], check=True)
    return folder


def bindings(requirement: str, kept: Path) -> Path:
    """The bindings of one version, fetched once and kept between runs."""
    place = kept / requirement.replace("==", "-") / f"{sys.version_info[0]}{sys.version_info[1]}"
    if not (place / "tensorrt_bindings").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=120)
        if done.returncode:
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            pytest.skip(f"{requirement} cannot be fetched for this Python: {said}")
        (wheel,) = place.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    return place


def probe(argument: str, libraries: Path | None) -> set[str]:
    environment = dict(os.environ)
    if libraries:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, str(HERE / "probe.py"), argument],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("version", VERSIONS)
def test_builder_and_runner_fit_the_real_bindings(
    version: str, stubs: Path, pytestconfig: pytest.Config
) -> None:
    cache = pytestconfig.cache
    assert cache is not None
    used = probe(str(bindings(VERSIONS[version], cache.mkdir("tensorrt-bindings"))), stubs)
    assert used >= NEEDED | {"IBuilderConfig.create_timing_cache", "ITimingCache.serialize"}
    assert not [name for name in used if "FP16" in name or "INT8" in name or "EXPLICIT" in name]


def test_builder_and_runner_fit_tensorrt_rtx() -> None:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx (extra rtx) is not installed")
    used = probe("rtx", None)
    assert used >= NEEDED | {
        "IBuilderConfig.set_compute_capability",
        "IRuntimeConfig.cuda_graph_strategy =",
    }


def test_the_probe_notices_what_a_version_lacks(tmp_path: Path) -> None:
    """A module without `execute_async_v3` fails, so a pass of the others means something."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx (extra rtx) is not installed")
    program = (
        "import sys, probe, tensorrt_rtx as real\n"
        "class IExecutionContext:\n"
        "    def set_input_shape(self): 'set_input_shape(name: str, shape: tuple) -> bool'\n"
        "real.IExecutionContext = IExecutionContext\n"
        "probe.run(real, 'tensorrt_rtx')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "AttributeError" in done.stderr
