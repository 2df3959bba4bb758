"""FP16 and INT8 variants of two trained networks on real images: made, verified, built."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("onnx", reason="quantising needs extra export")

import onnx
from drawn_once import drawn_phantom

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, Inference
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build
from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_edge.validation.verify import verify
from deepcovid_export.onnx_export.half_weights import restore_float

pytestmark = pytest.mark.slow  # quantising two real networks three ways takes minutes

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
VARIANTS = {
    "fp16": ["--precision", "fp16"],
    "int8-tensorrt": ["--precision", "int8", "--for", "tensorrt"],
    "int8-cpu": ["--precision", "int8", "--for", "cpu"],
}
real_images = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)
PARENTS = [find_model("squeezenet1_1"), ROOT / "benchmarks/models/resnet18.onnx"]


@pytest.fixture(scope="module", params=PARENTS, ids=lambda path: path.stem)
def parent(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def variants(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each variant of a network, calibrated on real images, as the command makes it."""
    folder = tmp_path_factory.mktemp("variants")
    made = {}
    for name, options in VARIANTS.items():
        made[name] = folder / f"{name}.onnx"
        asked = ["quantize", str(parent), *options, "--calibration", str(XRAY)]
        assert run([*asked, "-o", str(made[name])]) == 0
    return made


class Remembering:
    """A backend that computes no batch twice: each variant is held against the same parent."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[bytes, Inference] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        assert not activation_maps
        key = batch.tobytes()
        if key not in self._known:
            self._known[key] = self._backend.infer(batch)
        return self._known[key]


@pytest.fixture(scope="module")
def reference(parent: Path) -> Iterator[Remembering]:
    with load_backend(parent) as backend:
        yield Remembering(backend)


@real_images
@pytest.mark.parametrize("name", VARIANTS)
def test_decisions_on_test_are_those_of_the_parent(
    name: str, reference: Remembering, variants: dict[str, Path]
) -> None:
    images = load_dataset(XRAY, split="test")
    with load_backend(variants[name]) as candidate:
        report = verify(reference, candidate, images).as_dict()
    assert report["images"] == 253
    assert report["flips"]["share"] <= (0 if name == "fp16" else 0.01)
    assert abs(report["auc"]["change"]) <= (0.001 if name == "fp16" else 0.003)
    for rate in ("sensitivity", "specificity"):
        low, high = report[rate]["interval_95"]
        assert low <= 0 <= high


@real_images
@pytest.mark.parametrize("name", VARIANTS)
def test_files_keep_the_contract(name: str, parent: Path, variants: dict[str, Path]) -> None:
    path = variants[name]
    model, own, manifest = onnx.load(path), read_manifest(parent), read_manifest(path)
    assert manifest.precision == name.partition("-")[0]
    assert manifest.parent_sha256 == file_sha256(parent)
    assert (manifest.classes, manifest.threshold, manifest.input) == (
        own.classes,
        own.threshold,
        own.input,
    )
    assert model.ir_version <= 10
    (opset,) = [(item.domain, item.version) for item in model.opset_import]
    assert opset[0] == ""
    assert opset[1] <= 19
    types = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    equivalence = {"ood_scores": 1} if own.ood else {}
    assert types == {"logits": 1, "activation_maps": 1, **equivalence}
    assert manifest.ood == own.ood
    assert [item.key for item in model.metadata_props] == ["deepcovid_edge"]
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(path.parent).encode() not in content
    if manifest.precision == "int8":
        weights = restore_float(onnx.load(parent)).ByteSize()  # ResNet18's are stored in FP16
        assert path.stat().st_size < 0.4 * weights
        assert "sha256" in json.dumps(dict(manifest.quantization))


@real_images
@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx (extra rtx) is not installed"
)
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8-tensorrt"])
def test_tensorrt_rtx_builds_every_typed_form_for_any_batch(
    name: str, parent: Path, variants: dict[str, Path], tmp_path: Path
) -> None:
    settings = BuildSettings(target="rtx:sm86,sm89,sm120", folder=tmp_path)
    engine, facts = build(parent if name == "fp32" else variants[name], settings)
    assert engine.read_bytes()[:4] == b"vtrt"
    assert facts.manifest.precision == name.partition("-")[0]
    assert facts.profile.min < facts.profile.max


@real_images
def test_the_cpu_form_is_refused_before_tensorrt_is_asked(variants: dict[str, Path]) -> None:
    check_typed(variants["int8-tensorrt"])
    with pytest.raises(ModelFileError, match="quantize --for tensorrt"):
        check_typed(variants["int8-cpu"])


@real_images
def test_activation_maps_survive(parent: Path, variants: dict[str, Path]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224), dtype=np.uint8)
    for path in variants.values():
        with load_backend(path) as backend:
            answer = backend.infer(images, activation_maps=True)
        assert answer.activation_maps is not None
        means = answer.activation_maps.mean(axis=(2, 3))
        np.testing.assert_allclose(means, answer.logits, rtol=0.05, atol=0.2)


@pytest.fixture
def three_images(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for number, label in enumerate(("covid", "normal", "normal")):
            folder = tmp_path / split / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn_phantom(number)).save(folder / f"{split}{number}.png")
    return tmp_path


def test_three_images_are_too_few_to_calibrate_on(
    three_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["quantize", "squeezenet1_1", "--precision", "int8", "--calibration", str(three_images)]
    assert run([*asked, "-o", str(three_images / "x.onnx")]) == 1
    said = capsys.readouterr().err
    assert "3" in said
    assert "16" in said
    assert not (three_images / "x.onnx").exists()


def test_a_class_without_images_cannot_be_calibrated_on(
    three_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(three_images / "train/covid")
    asked = ["quantize", "squeezenet1_1", "--precision", "int8", "--calibration", str(three_images)]
    assert run([*asked, "-o", str(three_images / "x.onnx")]) == 1
    assert "covid" in capsys.readouterr().err
