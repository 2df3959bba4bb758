"""`infer --resume`: which runs it goes on with, and where a message may promise it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import command
from drawn_once import drawn_phantom, phantom_files

from deepcovid_edge.imaging.synthetic.clinic_folder import OTHERS
from deepcovid_edge.run import Run

GOES_ON = "--resume goes on"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A phantom, and a cassette that was read lying on its side."""
    phantom_files(tmp_path / "images", count=1)
    OTHERS["turned.png"](tmp_path / "images/turned.png")
    return tmp_path / "images"


def paths_in(output: Path) -> list[str]:
    return [json.loads(line)["path"] for line in output.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ((), ("--ood", "warn"), "with ood reject, this run is with ood warn"),
        (("--ood", "warn"), (), "with ood warn, this run is with ood reject"),
        ((), ("--heatmap", "activation"), "without heat maps, this run is with heat maps"),
        (
            (),
            ("--backend", "openvino"),
            "with backend onnxruntime-cpu, this run is with backend openvino-cpu",
        ),
    ],
)
def test_a_run_of_other_options_is_not_gone_on_with(
    first: tuple[str, ...], then: tuple[str, ...], said: str, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    if "openvino" in then:
        pytest.importorskip("openvino")
        first = ("--backend", "onnxruntime")
    line = ("infer", images, "-o", output)
    before = command(*line, *first)
    assert "2 images done" in before.stderr
    whole = output.read_bytes()
    done = command(*line, *then, "--resume", cwd=tmp_path)
    assert (done.returncode, output.read_bytes()) == (2, whole)
    assert f"--resume: the records of {output} were made {said}" in done.stderr
    assert command(*line, *first, "--resume").returncode == before.returncode


def test_an_image_is_known_by_another_path(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    for named in ("images", images, "images/../images"):
        done = command("infer", named, "-o", output, "--resume", cwd=tmp_path)
        assert done.returncode == 4, done.stderr
    assert "0 images done" in done.stderr
    assert "2 images were done before" in done.stderr
    assert paths_in(output) == ["images/phantom_000.png", "images/turned.png"]


def test_one_image_is_not_images(images: Path, tmp_path: Path) -> None:
    line = ("infer", "-o", tmp_path / "r.jsonl", "--resume")
    assert "1 image done" in command(*line, images / "turned.png").stderr
    again = command(*line, images / "turned.png", images / "phantom_000.png").stderr
    assert "1 image was done before" in again
    assert "1 image without a result: unchanged, not classified again." in again
    phantom = (images / "phantom_000.png").read_bytes()
    (images / "copy.png").write_bytes(phantom)
    (images / "turned.png").write_bytes(phantom)
    changed = command(*line, images).stderr
    assert "1 file has changed since the first record: there is a second one now." in changed
    copies = command("infer", images / "copy.png", images / "phantom_000.png").stderr
    assert "1 image is identical to an earlier one: the first result is kept." in copies


def test_uids_of_images_done_before_are_not_compared_and_a_message_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs extra dicom")
    from dicom_files import dataset, written

    for seed, name in enumerate(("a.dcm", "b.dcm")):
        pixels = np.ascontiguousarray(drawn_phantom(seed)[::4, ::4])
        image = written(dataset(pixels, SOPInstanceUID="1.2.3"))
        (tmp_path / name).write_bytes(image)
    line = ("infer", tmp_path / "a.dcm", tmp_path / "b.dcm", "-o", tmp_path / "r.jsonl")
    said = "Images done before were not compared: W_DUP_UID covers this command alone."
    whole = command(*line)
    records = (tmp_path / "r.jsonl").read_text("utf-8").splitlines(keepends=True)
    assert ["W_DUP_UID" in record for record in records] == [False, True]
    (tmp_path / "r.jsonl").write_text(records[0], "utf-8")
    rest = command(*line, "--resume")
    assert "1 image done" in rest.stderr
    assert "W_DUP_UID" not in (tmp_path / "r.jsonl").read_text("utf-8")
    assert (said in whole.stderr, said in rest.stderr) == (False, True)
    assert said not in command(*line, "--resume").stderr


@pytest.mark.parametrize(
    ("options", "promised"),
    [
        (("-o", "r.jsonl"), True),
        (("-o", "r.csv"), True),
        (("-o", "r.jsonl", "--html", "page"), False),
        (("-o", "r.txt", "--table"), False),
        (("-o", "/dev/null"), False),
        ((), False),
    ],
)
def test_resume_is_promised_only_where_the_output_can_be_gone_on_with(
    options: tuple[str, ...],
    promised: bool,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = command("infer", images, *options, "--min-free", 1 << 40, cwd=tmp_path)
    if "The disk is full" in full.stderr:  # stdout and /dev/null are on no disk
        assert (GOES_ON in full.stderr) == promised

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write", stop)
    stopped = command("infer", images, *options, cwd=tmp_path)
    assert (stopped.returncode, GOES_ON in stopped.stderr) == (130, promised)


def test_a_command_without_resume_does_not_promise_it(images: Path, tmp_path: Path) -> None:
    line = ("heatmap", images, "-o", tmp_path / "maps", "--method", "activation")
    done = command(*line, "--min-free", 1 << 40)
    assert "Free some room and run the command again." in done.stderr
    assert GOES_ON not in done.stderr


def test_heat_maps_are_nowhere_where_none_was_made(images: Path, tmp_path: Path) -> None:
    line = ("infer", "--heatmap", "activation", "--heatmap-dir", tmp_path / "maps")
    none = command(*line, images / "turned.png")
    assert none.returncode == 4
    assert "Heat maps are in" not in none.stderr
    assert "No heat map was made." in none.stderr
    some = command(*line, images)
    assert f"Heat maps are in {tmp_path / 'maps'}." in some.stderr
