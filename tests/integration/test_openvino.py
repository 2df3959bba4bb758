"""OpenVINO beside ONNX Runtime on the trained networks: the same answers, the same rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom, phantom_files

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends import onnxruntime as onnxruntime_module
from deepcovid_edge.backends import openvino as module
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.device import process
from deepcovid_edge.errors import (
    BackendUnavailableError,
    MissingDependencyError,
    ModelFileError,
    UsageError,
)
from deepcovid_edge.models import find_model
from deepcovid_edge.reasons import WarningCode
from deepcovid_edge.validation.verify import verify

if not module.is_available():
    pytest.skip("openvino (extra openvino) is not installed", allow_module_level=True)

openvino: Any = module.quiet_runtime()
ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
SQUEEZENET = find_model("squeezenet1_1")
INT8 = find_model("squeezenet1_1-int8-cpu")
PARENTS = [SQUEEZENET, ROOT / "benchmarks/models/resnet18.onnx"]
real_images = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    drawn = [cv2.resize(drawn_phantom(seed, opacities=seed % 3), (224, 224)) for seed in range(9)]
    return np.stack(drawn)


def test_auto_takes_it_where_nothing_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with load_backend(SQUEEZENET) as first:
        assert first.name == "onnxruntime-cpu"
    monkeypatch.setattr(onnxruntime_module, "is_available", lambda: False)
    with load_backend(SQUEEZENET) as second:
        assert second.name == "openvino-cpu"
    monkeypatch.setattr(module, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime"):
        load_backend(SQUEEZENET)


@pytest.mark.parametrize("model", PARENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_fp32_agrees_with_onnx_runtime_to_rounding(
    model: Path, count: int, images: np.ndarray
) -> None:
    with (
        load_backend(model, backend="onnxruntime") as reference,
        load_backend(model, backend="openvino") as candidate,
    ):
        expected = reference.infer(images[:count], activation_maps=True)
        got = candidate.infer(images[:count], activation_maps=True)
    assert got.logits.dtype == np.float32
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-4)
    assert got.activation_maps is not None
    assert expected.activation_maps is not None
    scale = np.abs(expected.activation_maps).max()
    np.testing.assert_allclose(got.activation_maps, expected.activation_maps, atol=1e-5 * scale)
    means = got.activation_maps.mean(axis=(2, 3))
    np.testing.assert_allclose(means, got.logits, atol=1e-3)


def test_maps_are_left_out_where_not_asked_for(images: np.ndarray) -> None:
    with load_backend(SQUEEZENET, backend="openvino") as backend:
        assert backend.infer(images[:1]).activation_maps is None


def test_a_processor_that_would_compute_in_bf16_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lowered = SimpleNamespace(get_property=lambda _: openvino.Type.bf16)
    core = SimpleNamespace(available_devices=["CPU"], compile_model=lambda *_: lowered)
    runtime = SimpleNamespace(Core=lambda: core, Type=openvino.Type)
    monkeypatch.setattr(module, "quiet_runtime", lambda: runtime)
    with pytest.raises(BackendUnavailableError, match=r"computes in .*bfloat16"):
        load_backend(SQUEEZENET, backend="openvino")


def test_fp32_is_what_it_computes_in() -> None:
    backend = module.load(SQUEEZENET, BackendSettings())
    assert backend._compiled is not None
    assert backend._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_left_to_itself_it_would_lose_digits_where_the_processor_has_bf16(
    images: np.ndarray,
) -> None:
    """So the agreement above is the work of the setting."""
    compiled = openvino.Core().compile_model(str(SQUEEZENET), "CPU")
    if compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        pytest.skip("this processor has no BF16")
    lowered = compiled.create_infer_request().infer({"images": images})["logits"]
    with load_backend(SQUEEZENET, backend="onnxruntime") as reference:
        apart = np.abs(lowered - reference.infer(images).logits).max()
    assert apart > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_of_one_call(threads: int) -> None:
    cores = process.cores()
    if cores < threads:
        pytest.skip(f"{threads} threads need as many cores")
    backend = module.load(SQUEEZENET, BackendSettings(threads=threads))
    assert backend._compiled is not None
    calls = backend._compiled.get_property("NUM_STREAMS")
    used = backend._compiled.get_property("INFERENCE_NUM_THREADS")
    assert (calls, used) == (cores // threads, cores // threads * threads)


def test_calls_at_once_give_what_calls_in_turn_give(images: np.ndarray) -> None:
    batches = [images[start % 8 : start % 8 + 1 + start % 2] for start in range(40)]
    with load_backend(SQUEEZENET, backend="openvino") as backend:
        in_turn = [backend.infer(batch).logits for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            at_once = list(pool.map(lambda batch: backend.infer(batch).logits, batches))
    for one, other in zip(in_turn, at_once, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


FIRST_CALLS = """
import sys, threading
from deepcovid_edge.backends.openvino import quiet_runtime
runtime = quiet_runtime()
together = threading.Barrier(2)
def convert():
    together.wait()
    runtime.Type.u8.to_dtype()
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=convert) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("attempt", range(3))
def test_first_calls_at_once_do_not_wait_for_each_other(attempt: int) -> None:
    """Not prepared by `quiet_runtime`, four of five of these processes never end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FIRST_CALLS], env=environment, timeout=60, check=True)


def test_results_belong_to_the_caller(images: np.ndarray) -> None:
    with load_backend(SQUEEZENET, backend="openvino") as backend:
        first = backend.infer(images[:1], activation_maps=True)
        assert first.activation_maps is not None
        kept = first.logits.copy(), first.activation_maps.copy()
        backend.infer(images[1:2], activation_maps=True)
    np.testing.assert_array_equal(first.logits, kept[0])
    np.testing.assert_array_equal(first.activation_maps, kept[1])


def test_int8_says_that_it_was_verified_elsewhere() -> None:
    with load_backend(INT8, backend="openvino") as backend:
        assert backend.warnings == (WarningCode.UNVERIFIED,)
    with load_backend(SQUEEZENET, backend="openvino") as backend:
        assert backend.warnings == ()


@real_images
def test_int8_decides_on_real_images_as_onnx_runtime_does() -> None:
    images = load_dataset(XRAY, split="val")[:80]
    with (
        load_backend(INT8, backend="onnxruntime") as reference,
        load_backend(INT8, backend="openvino") as candidate,
    ):
        report = verify(reference, candidate, images).as_dict()
    assert report["flips"]["count"] == 0
    assert report["logits"]["relative_rmse"] < 0.02


@real_images
def test_fp32_decides_on_real_images_as_onnx_runtime_does() -> None:
    images = load_dataset(XRAY, split="val")[::3]
    with (
        load_backend(SQUEEZENET, backend="onnxruntime") as reference,
        load_backend(SQUEEZENET, backend="openvino") as candidate,
    ):
        report = verify(reference, candidate, images).as_dict()
    assert report["flips"]["count"] == 0
    assert report["probability"]["max"] < 1e-4


def test_infer_runs_on_it_and_says_so(tmp_path: Path) -> None:
    phantom_files(tmp_path / "images", count=3)

    def records(backend: str) -> list[dict[str, Any]]:
        output = tmp_path / f"{backend}.jsonl"
        asked = ["--model", "squeezenet1_1", "--backend", backend, "-o", str(output)]
        assert run(["infer", str(tmp_path / "images"), *asked]) == 0
        return [json.loads(line) for line in output.read_text("utf-8").splitlines()]

    for ours, theirs in zip(records("openvino"), records("onnxruntime"), strict=True):
        assert ours["backend"] == "openvino-cpu"
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
        assert ours["decision"] == theirs["decision"]


def test_auto_stays_with_onnx_runtime() -> None:
    with load_backend(SQUEEZENET) as backend:
        assert backend.name == "onnxruntime-cpu"


def test_misuse_is_explained(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="openvino has no providers"):
        load_backend(SQUEEZENET, backend="openvino", settings=BackendSettings(provider="cuda"))
    backend = load_backend(SQUEEZENET, backend="openvino")
    with backend, pytest.raises(UsageError, match="model accepts"):
        backend.infer(images[:, :100])
    with pytest.raises(UsageError, match="the model is closed"):
        backend.infer(images[:1])
    torn = tmp_path / "torn.onnx"
    content = SQUEEZENET.read_bytes()
    manifest = content.index(b"deepcovid_edge")
    torn.write_bytes(content[manifest - 200 :])
    with pytest.raises(ModelFileError):
        load_backend(torn, backend="openvino")


def test_a_graph_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="changing a graph needs extra export")
    model = onnx.load(SQUEEZENET)
    (entry,) = [item for item in model.metadata_props if item.key == "deepcovid_edge"]
    manifest = json.loads(entry.value)
    manifest["input"]["width"] = 256
    entry.value = json.dumps(manifest)
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    with pytest.raises(ModelFileError, match="its manifest says"):
        load_backend(changed, backend="openvino")


def test_without_the_package_the_command_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"deepcovid-edge\[openvino\]"):
        load_backend(SQUEEZENET, backend="openvino")
