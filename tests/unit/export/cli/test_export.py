"""`export`: images of `--check` that cannot be assessed, and what is left where `--fit` fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from commands import command
from drawn_once import drawn_phantom

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.errors import OutputError
from deepcovid_edge.manifest import InputSpec, ModelManifest, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.cli.export import _renamed_at_end
from deepcovid_export.decision import fit_ood
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


@pytest.mark.parametrize("wrong", ["--fit", "--children"])
def test_a_wrong_name_of_fit_is_told_before_the_export_and_leaves_the_file_there_was(
    wrong: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out/small.onnx"
    output.parent.mkdir()
    output.write_bytes(b"good")
    given = {"--fit": data, "--children": data, wrong: tmp_path / "typo"}
    words = [word for pair in given.items() for word in pair]
    done = command("export", checkpoint, "--check", data, *words, "-o", output)
    assert done.returncode == ExitCode.NOT_THERE
    assert done.stderr == f"Error: {tmp_path}/typo: no such file or folder; expected a data set\n"
    assert [path.name for path in output.parent.iterdir()] == ["small.onnx"]
    assert output.read_bytes() == b"good"


@pytest.mark.parametrize(
    ("interrupted", "code"), [(False, ExitCode.ERROR), (True, ExitCode.INTERRUPTED)]
)
def test_a_fit_that_fails_or_is_interrupted_leaves_the_file_there_was(
    interrupted: bool,
    code: int,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if interrupted:
        monkeypatch.setattr(fit_ood, "fit_model", interrupt)
    output = tmp_path / "out/small.onnx"
    output.parent.mkdir()
    output.write_bytes(b"good")
    done = command("export", checkpoint, "--fit", data, "-o", output)
    assert done.returncode == code, done.stderr
    assert "torch and ONNX Runtime on 8 synthetic images" in done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["small.onnx"]
    assert output.read_bytes() == b"good"


def test_an_exported_file_that_is_fitted_again_in_place_stays_where_the_range_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits and range are written one after the other."""

    def fit_half(_: Path, __: Path, output: Path, **___: Any) -> None:
        output.write_bytes(b"limits without a range")
        raise KeyboardInterrupt

    output = Path(shutil.copy(find_model("squeezenet1_1"), tmp_path / "small.onnx"))
    before = output.read_bytes()
    monkeypatch.setattr(fit_ood, "fit_model", fit_half)
    done = command("export", output, "--fit", data, "-o", output)
    assert done.returncode == ExitCode.INTERRUPTED
    assert output.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    with (
        pytest.raises(OutputError, match=rf"^{output}: cannot be written"),
        _renamed_at_end(output) as unfinished,
    ):
        raise OutputError(f"{unfinished}: cannot be written: No space left on device")
    with pytest.raises(OutputError, match="is a folder"), _renamed_at_end(tmp_path):
        pass
