"""Phantoms and the clinic folder of `sample`: drawn alike each time, marked, and read as meant."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import Done, command
from PIL import Image

from deepcovid_edge.errors import OutputError
from deepcovid_edge.imaging.dicom.writing import write_dicom
from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK
from deepcovid_edge.imaging.synthetic import phantom
from deepcovid_edge.imaging.synthetic.clinic_folder import OTHERS, write_phantoms
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.model import Model

REASONS = {
    "blank.png": "E_BLANK",
    "ct_slice.dcm": "E_MODALITY",
    "cut_off.jpg": "E_TRUNCATED",
    "lateral.dcm": "E_VIEW",
    "photograph.png": "E_COLOUR",
    "turned.png": "E_ORIENT",
}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of `sample`, and what the command printed."""
    pytest.importorskip("pydicom", reason="pydicom (extra dicom) writes DICOM files")
    folder = tmp_path_factory.mktemp("sample") / "new/images"
    return folder, command("sample", folder, "--count", 2)


def test_a_seed_gives_the_same_pixels_in_every_process() -> None:
    program = (
        "import hashlib\n"
        "from deepcovid_edge.imaging.synthetic.phantom import draw_phantom\n"
        "print(hashlib.sha256(draw_phantom(3, opacities=7).tobytes()).hexdigest())\n"
    )
    lines = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert lines[0] == lines[1]


def test_seeds_give_chests_of_different_sizes_and_shapes() -> None:
    drawn = [draw_phantom(seed) for seed in (0, 1, 2, 3)]
    assert len({image.shape for image in drawn}) == 3
    assert drawn[0].shape == drawn[3].shape
    assert not np.array_equal(drawn[0], drawn[3])
    assert {image.dtype for image in drawn} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("seed", [0, 1])
def test_opacities_brighten_the_lungs_and_nothing_else(seed: int) -> None:
    """Noise is averaged away. Scatter carries a few grey levels across the border of the lungs."""
    clear, ill = (draw_phantom(seed, opacities=count).astype(np.float32) for count in (0, 6))
    change = cv2.GaussianBlur(ill - clear, (0, 0), 5)
    draw = np.random.default_rng(seed)
    lungs = phantom._lungs(phantom._Frame.of((clear.shape[0], clear.shape[1]), draw), draw)
    inside, outside = change[lungs > 0.3], np.abs(change[lungs < 0.02])
    assert inside.max() > 80
    assert inside.min() > -5
    assert outside.max() < 0.2 * inside.max()
    assert outside.mean() < 1


def test_phantoms_are_marked_in_picture_and_metadata(clinic: tuple[Path, Done]) -> None:
    for path in sorted(clinic[0].glob("phantom_*.png")):
        with Image.open(path) as image:
            assert SYNTHETIC_MARK.decode() in image.info["Description"]
            pixels = np.asarray(image)
        height, width = pixels.shape
        label = pixels[round(height * 0.94) : round(height * 0.98), : width // 4]
        assert 0.02 < (label == 255).mean() < 0.4


def test_dicom_files_are_marked_and_hold_12_bits(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom (extra dicom) writes DICOM files")
    pixels = np.arange(4096, dtype=np.uint16).reshape(32, 128)
    write_dicom(tmp_path / "a.dcm", pixels, "1.2.840.10008.5.1.4.1.1.1.1", Modality="DX")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert (data.PatientID, data.Modality, data.BitsStored) == ("SYNTHETIC", "DX", 12)
    assert np.array_equal(data.pixel_array, pixels)


def test_sample_names_the_files_that_it_writes(clinic: tuple[Path, Done]) -> None:
    folder, done = clinic
    assert done.returncode == 0, done.stderr
    names = ["phantom_000.png", "phantom_001.png", *OTHERS]
    assert done.stdout.splitlines() == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def records_of(path: Path) -> dict[str, dict[str, Any]]:
    records = map(json.loads, path.read_text("utf-8").splitlines())
    return {Path(record["path"]).name: record for record in records}


@pytest.mark.int8
def test_a_demo_has_results_and_six_reasons(clinic: tuple[Path, Done], tmp_path: Path) -> None:
    done = command("infer", clinic[0], "-o", tmp_path / "r.jsonl")
    assert done.returncode == 4, done.stderr
    records = records_of(tmp_path / "r.jsonl")
    assert {name: records[name]["reason"] for name in OTHERS} == REASONS
    assert [records[f"phantom_{number:03d}.png"]["warnings"] for number in (0, 1)] == [
        ["W_SYNTHETIC"]
    ] * 2
    assert all(records[name]["probability"] is None for name in OTHERS)


@pytest.mark.int8
def test_opacities_make_a_phantom_more_probable(clinic: tuple[Path, Done]) -> None:
    with Model() as model:
        clear, ill = (
            model.predict_one(clinic[0] / f"phantom_{number:03d}.png") for number in (0, 1)
        )
    assert clear.probability is not None
    assert ill.probability is not None
    assert ill.probability > clear.probability


def test_without_pydicom_sample_says_what_to_install_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    done = command("sample", tmp_path / "a", "--count", 1)
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    assert "pip install 'deepcovid-edge[dicom]'" in done.stderr
    assert not (tmp_path / "a").exists()
    done = command("sample", tmp_path / "a", "--count", 1, "--no-others")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["phantom_000.png"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("sample", tmp_path / "file/images", "--no-others")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "file/images: cannot be written: Not a directory" in done.stderr


@pytest.mark.parametrize("options", [(), ("--dicom",), ("--no-others",)])
def test_sample_overwrites_no_other_file_and_writes_its_own_again(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("pydicom", reason="pydicom (extra dicom) writes DICOM files")

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = command("sample", tmp_path, "--count", 2, *options)
    written = contents()
    path = tmp_path / sorted(written)[-1]
    path.write_bytes(b"of somebody else")
    (tmp_path / sorted(written)[0]).unlink()
    before = contents()
    done = command("sample", tmp_path, "--count", 3, *options)
    assert (done.returncode, done.stdout, contents()) == (1, "", before)
    assert f"{path}: is another file than `sample` writes" in done.stderr
    path.unlink()
    again = command("sample", tmp_path, "--count", 2, *options)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert contents() == written


def test_radiographs_are_written_as_a_console_sends_them(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom (extra dicom) reads what was written")
    assert command("sample", tmp_path, "--dicom", "--no-others", "--count", 2).returncode == 0
    sent = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert len({image.StudyInstanceUID for image in sent}) == 2
    assert len({image.SeriesInstanceUID for image in sent}) == 2
    found = [*Model("squeezenet1_1", variant="fp32").predict(tmp_path)]
    assert [one.decision for one in found] == ["negative", "positive"]
    # A frontal view of a chest, says its header, and that it is drawn.
    assert {one.warnings for one in found} == {("W_SYNTHETIC",)}


def test_a_disk_that_fills_up_leaves_no_half_file_of_a_sample(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=f"{tmp_path}: cannot be written"):
            write_phantoms(tmp_path, count=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [*tmp_path.iterdir()]
    assert [path.stat().st_size > 1000 for path in write_phantoms(tmp_path, count=1)] == [True]
