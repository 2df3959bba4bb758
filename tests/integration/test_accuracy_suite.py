"""A small accuracy suite: shipped variants decide alike on every backend that is here.

On phantoms, and on real images where there are any: some of each label and source of `test`. The
whole suite is `benchmarks/accuracy.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom

from deepcovid_edge.backends import openvino
from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.models import shipped_models
from deepcovid_edge.validation.verify import CHANGED

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
IMAGES = 120
"""Fewer make one pair that swaps places a change of the AUC."""
# Measured on the shipped files: at most 1e-4 (FP32) and 0.11 (INT8 near the threshold).
APART = {"fp32": 1e-3, "int8-cpu": 0.2}


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("onnx", reason="the suite makes variants with extra export")
    from benchmarks import accuracy

    return accuracy


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two classes."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed in range(8):
        label, opacities = ("covid", 5) if seed % 2 else ("normal", 0)
        path = folder / label / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        image = drawn_phantom(seed, opacities=opacities)
        large = cv2.resize(image, (300, 300), interpolation=cv2.INTER_CUBIC)
        save_phantom(np.asarray(large, np.uint8), path)
    return folder


def spread_out(images: list[LabelledImage], count: int) -> list[LabelledImage]:
    """Some images of each label and source, as evenly as they lie."""
    ordered = sorted(images, key=lambda image: (image.label, image.source or "", image.path.name))
    return ordered[:: max(1, len(ordered) // count)]


@pytest.fixture(scope="module")
def splits(phantoms: Path) -> dict[str, list[LabelledImage]]:
    drawn = {"drawn": load_dataset(phantoms)}
    if (XRAY / "manifest.csv").is_file():
        return {**drawn, "test": spread_out(load_dataset(XRAY, split="test"), IMAGES)}
    return drawn


@pytest.mark.parametrize(
    ("variant", "backend"),
    [("int8-cpu", "onnxruntime"), ("fp32", "openvino"), ("int8-cpu", "openvino")],
)
def test_a_shipped_variant_decides_as_the_fp32_file_does(
    variant: str, backend: str, accuracy: ModuleType, splits: dict[str, list[LabelledImage]]
) -> None:
    if backend == "openvino" and not openvino.is_available():
        pytest.skip("openvino (extra openvino) is not installed")
    candidate = accuracy.Candidate("squeezenet1_1", variant, backend)
    model = shipped_models()["squeezenet1_1"]
    for split, report in accuracy.compare(model, candidate, splits, None).items():
        assert report["images"] == len(splits[split])
        assert report["verdict"] != CHANGED, report["failed"]
        assert report["candidate"]["backend"] == f"{backend}-cpu"
        assert report["probability"]["max"] < APART[variant]
        assert report["logits"]["max"] > 0  # it was not the reference that ran


def test_the_suite_fails_with_3_and_names_what_changed(
    accuracy: ModuleType, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import variants

    stored: dict[str, object] = {}
    monkeypatch.setattr(accuracy, "load_dataset", lambda path, split: load_dataset(path))
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "store", lambda name, figures, folder: stored.update(figures))
    shipped = {"squeezenet1_1": shipped_models()["squeezenet1_1"]}
    monkeypatch.setattr(accuracy, "models", lambda: shipped)
    known = {"onnxruntime": ("int8-cpu",), "tensorrt": ("fp32",)}
    monkeypatch.setattr(accuracy, "BACKENDS", known)
    monkeypatch.setattr(variants, "missing", lambda name: "no GPU" if name == "tensorrt" else None)
    monkeypatch.setattr("sys.argv", ["accuracy", "--data", str(phantoms), "--split", "test"])
    monkeypatch.setattr(accuracy, "verify", turned)
    with pytest.raises(SystemExit) as stopped:
        accuracy.main()
    assert stopped.value.code == 3
    assert stored["changed"] == ["squeezenet1_1-int8-cpu-onnxruntime test"]
    assert stored["skipped"] == {"squeezenet1_1-fp32-tensorrt": "no GPU"}
    (path,) = (tmp_path / "verify").glob("*.json")
    assert path.name == "squeezenet1_1-int8-cpu-onnxruntime-test.json"
    assert json.loads(path.read_text("utf-8"))["asked"]["split"] == "test"


def test_a_model_is_the_file_that_is_named(accuracy: ModuleType, tmp_path: Path) -> None:
    shipped = shipped_models()["squeezenet1_1"]
    assert accuracy.files_of(["squeezenet1_1"]) == {"squeezenet1_1": shipped}
    own, another = tmp_path / "own.onnx", tmp_path / "squeezenet1_1.onnx"
    for path in (own, another):
        path.write_bytes(b"")
    assert accuracy.files_of([str(own)]) == {"own": own}
    with pytest.raises(NotThereError, match="has the name of another model"):
        accuracy.files_of([str(another)])
    with pytest.raises(NotThereError, match="expected a shipped model"):
        accuracy.files_of([str(tmp_path / "missing.onnx")])


def turned(*_: object) -> SimpleNamespace:
    """A report of a variant that decides otherwise."""
    report = {
        "verdict": CHANGED,
        "images": 8,
        "flips": {"count": 3},
        "probability": {"max": 0.9},
        "failed": ["flips: 37.50% of the decisions turned, allowed 1.00%"],
    }
    return SimpleNamespace(as_dict=lambda: report)


def test_verify_takes_another_backend_of_the_same_file(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not openvino.is_available():
        pytest.skip("openvino (extra openvino) is not installed")
    asked = ["verify", "squeezenet1_1", "squeezenet1_1", str(phantoms), "--backend", "openvino"]
    assert run([*asked, "--smallest-change", "1"]) == 3
    assert "not proved: sensitivity: may be" in capsys.readouterr().out
    assert run([*asked, "--smallest-change", "1", "--margin", "1"]) == 0
    out = capsys.readouterr().out
    assert "fp32 on openvino-cpu against squeezenet1_1 fp32 on onnxruntime-cpu" in out
    assert run([*asked, "--provider", "cuda"]) == 2
