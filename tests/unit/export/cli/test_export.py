"""`export --check`: images that cannot be assessed are counted, and only a lack of others stops."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from commands import command
from drawn_once import drawn_phantom

from deepcovid_edge.manifest import InputSpec, ModelManifest, read_manifest
from deepcovid_export.networks import build_network
from deepcovid_export.networks.checkpoint import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    spec = InputSpec(128, 128)
    manifest = ModelManifest("small", "small_cnn", ("non", "covid"), "covid", 0.5, input=spec)
    save_checkpoint(build_network("small_cnn", 2).eval(), manifest, tmp_path / "small.pt")
    return tmp_path / "small.pt"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images, of which one is none."""
    folder = tmp_path / "data"
    for label, name in (("covid", "1.png"), ("covid", "2.png"), ("non", "3.png")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(drawn_phantom(3), (160, 150))
        cv2.imwrite(str(folder / label / name), picture)
    (folder / "covid/1.png").write_text("no image")
    return folder


def test_one_image_that_cannot_be_assessed_is_skipped_and_named(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "small.onnx"
    done = command("export", checkpoint, "--check", data, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "--check: 1 of 3 images not assessed, such as " in done.stderr
    assert "covid/1.png" in done.stderr
    assert read_manifest(output).training["export"]["images"] == 2


def test_no_image_that_can_be_assessed_is_an_error(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    for path in data.rglob("*.png"):
        path.write_text("no image")
    output = tmp_path / "small.onnx"
    done = command("export", checkpoint, "--check", data, "-o", output)
    assert done.returncode == 1
    assert "none of 3 images can be assessed, expected one or more: " in done.stderr
    assert not output.exists()
