"""A variant verified on images of its own, and what `infer --backend auto` makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

from tiny_network import VARIANTS, Made, graph, quantize_command, saved, weights

from deepcovid_edge import backends
from deepcovid_edge.backends import fastest_verified, load_backend
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import OutputError
from deepcovid_edge.manifest import read_manifest
from deepcovid_export.quantization.quantize import QuantizeSettings, quantize

pytestmark = pytest.mark.int8


@pytest.fixture(scope="module")
def verified(parent: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT8 variant for CPUs, verified on 400 images of its own."""
    folder = tmp_path_factory.mktemp("verified")
    beside = folder / "tiny-int8-cpu.onnx"
    images = load_dataset(other_images(folder / "other", data))
    done = quantize(
        parent, data, QuantizeSettings(VARIANTS["int8-cpu"]), proof=images, output=beside
    )
    assert done.proof is not None
    assert done.proof["verdict"] == "unchanged", done.proof
    return beside


@pytest.fixture
def proved(parent: Path, verified: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the network, and of its verified variant beside it."""
    model, beside = tmp_path / "tiny.onnx", tmp_path / verified.name
    shutil.copy(parent, model)
    shutil.copy(verified, beside)
    return model, beside


def other_images(folder: Path, data: Path) -> Path:
    """Images unlike those of `data` by their noise alone: 200 of a class."""
    draw = np.random.default_rng(99)
    for path in sorted((data / "val").rglob("*.png")):
        pixel = np.asarray(Image.open(path), np.int16)
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(25):
            noisy = np.clip(pixel + draw.integers(-3, 4, pixel.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(place / f"{path.stem}-{copy}.png")
    return folder


def test_proof_stands_in_the_file_and_auto_takes_it(
    proved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, beside = proved
    verified = read_manifest(beside).quantization["verified"]
    assert verified["images"] == 400
    assert verified["verdict"] == "unchanged"
    monkeypatch.setattr(backends, "computes_int8_exactly", lambda _bits: True)
    assert fastest_verified(model) == beside
    with load_backend(beside) as loaded:
        assert loaded.warnings == ()
    monkeypatch.setattr(backends, "computes_int8_exactly", lambda _bits: False)
    assert fastest_verified(model) == model


def test_auto_passes_over_a_variant_of_another_model_or_without_proof(
    proved: tuple[Path, Path], made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "computes_int8_exactly", lambda _bits: True)
    model, beside = proved
    other = saved(model.with_name("other.onnx"), graph(weights()))
    shutil.copy(beside, other.with_name("other-int8-cpu.onnx"))
    assert fastest_verified(other) == other
    shutil.copy(made["int8-cpu"].path, beside)  # passed the equivalence check, was never verified
    assert fastest_verified(model) == model
    with load_backend(beside) as loaded:
        assert [warning.code for warning in loaded.warnings] == ["W_UNVERIFIED"]
    beside.write_bytes(b"torn")
    assert fastest_verified(model) == model


def test_images_that_made_the_file_prove_nothing(parent: Path, data: Path, tmp_path: Path) -> None:
    options = ["--precision", "int8", "--for", "cpu", "--calibration", data]
    done = quantize_command(parent, *options, "--verify", data, "--split", "val", cwd=tmp_path)
    assert done.returncode == 1
    assert "has a part in making the file: compare on other images with --verify" in done.stderr


def test_too_few_images_to_prove_it_are_said_to_be_so(
    parent: Path, data: Path, tmp_path: Path
) -> None:
    other = other_images(tmp_path / "other", data)
    for path in sorted(other.rglob("*-[1-9]*.png")):
        path.unlink()
    options = ["--precision", "int8", "--for", "cpu", "--calibration", data, "--verify", other]
    done = quantize_command(parent, *options, "-o", "out.onnx", cwd=tmp_path)
    assert done.returncode == 3
    assert "verified on other images: insufficient, 0 of 16 decisions turned" in done.stderr
    assert not read_manifest(tmp_path / "out.onnx").is_verified


@pytest.mark.parametrize("name", ["taken/tiny.onnx", "folder"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    name: str, parent: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    lines: list[str] = []
    with pytest.raises(OutputError, match=r"cannot be written|is a folder"):
        quantize(parent, data, output=tmp_path / name, progress=lines.append)
    assert lines == []
