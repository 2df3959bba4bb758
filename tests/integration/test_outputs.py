"""Results are written over no image, no model and no page of somebody else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commands import command
from drawn_once import phantom_files

from deepcovid_edge import files
from deepcovid_edge.decision import site_file
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images without suffixes, as DICOM files often are, in folders of two classes."""
    for label in ("normal", "covid"):
        (drawn,) = phantom_files(tmp_path / "drawn" / label, count=1)
        (tmp_path / "images" / label).mkdir(parents=True)
        shutil.copy(drawn, tmp_path / "images" / label / "IM0001")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "line",
    [
        "infer {images} -o {image}",
        "infer {images} -o {link}",
        "infer {images} --table -o {image}",
        "verify squeezenet1_1 squeezenet1_1 {images} -o {image}",
        "verify squeezenet1_1 squeezenet1_1 {images} -o {model}",
        "site-check {images} -o {image}",
        "bench squeezenet1_1 --data {images} -o {model}",
        "quantize {model} --precision fp16 --calibration {images} -o {model}",
    ],
)
def test_no_result_is_written_over_an_image_or_a_model(
    line: str, images: Path, tmp_path: Path
) -> None:
    image, model, link = images / "covid" / "IM0001", tmp_path / "m.onnx", tmp_path / "link.jsonl"
    shutil.copy(find_model("squeezenet1_1"), model)
    link.symlink_to(image)
    before = image.read_bytes(), model.read_bytes()
    done = command(*line.format(images=images, image=image, model=model, link=link).split())
    assert (done.returncode, done.stderr.count("would be lost: choose another name")) == (1, 1)
    assert (image.read_bytes(), model.read_bytes()) == before


MEASUREMENTS = pytest.mark.parametrize(
    "line",
    [
        "bench {model} --data {images} --scope network --scenario single-stream --seconds 0.1",
        "verify squeezenet1_1 {model} {images}",
        "site-check {images} --model {model}",
    ],
)


@MEASUREMENTS
def test_a_report_that_cannot_be_written_is_refused_before_the_measurement(
    line: str, images: Path
) -> None:
    """Before the model is looked for, which is not there."""
    done = command(*line.format(images=images, model="none").split(), "-o", "/proc/x/y.json")
    assert done.returncode == 1
    assert "/proc/x/y.json: cannot be written: No such file or directory" in done.stderr


@MEASUREMENTS
def test_a_report_that_is_not_written_in_the_end_is_printed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawn, label in zip(phantom_files(tmp_path, count=2), ("normal", "covid"), strict=True):
        (tmp_path / "images" / label).mkdir(parents=True)
        drawn.rename(tmp_path / "images" / label / drawn.name)

    def fail(path: Path, text: str) -> None:
        raise OutputError(f"{path}: cannot be written: the disk is full")

    for module in (files, site_file):
        monkeypatch.setattr(module, "write_text", fail)
    words = line.format(images=tmp_path / "images", model="squeezenet1_1").split()
    done = command(*words, "-o", str(tmp_path / "report.json"))
    assert (done.returncode, "the disk is full" in done.stderr) == (1, True)
    assert "squeezenet1_1" in done.stdout
    assert "Research use only." in done.stdout


@pytest.mark.parametrize(
    ("option", "name", "is_written"),
    [
        ("--csv", "r.jsonl", False),
        ("--json", "r.csv", False),
        ("--table", "r.CSV", False),
        ("--csv", "r.csv", True),
        ("--csv", "r", True),
        ("--json", "r.txt", True),
    ],
)
def test_records_of_one_format_are_not_written_into_a_file_of_the_other(
    option: str, name: str, is_written: bool, images: Path, tmp_path: Path
) -> None:
    done = command("infer", str(images), option, "-o", str(tmp_path / name))
    assert done.returncode == (0 if is_written else 2), done.stderr
    assert (tmp_path / name).exists() == is_written
    assert (f"--output: {tmp_path / name}: got " in done.stderr) is not is_written


def test_a_page_of_somebody_else_stays_and_ones_own_is_written_again(
    images: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page" / "index.html"
    line = ["infer", str(images), "--html", str(page.parent), "-o", str(tmp_path / "r.jsonl")]
    for _ in range(2):
        assert command(*line).returncode == 0
    records = (tmp_path / "r.jsonl").read_bytes()
    page.write_text("<title>The clinic's own</title>")
    done = command(*line)
    assert (done.returncode, page.read_text()) == (1, "<title>The clinic's own</title>")
    assert "choose another folder" in done.stderr
    assert (tmp_path / "r.jsonl").read_bytes() == records


def test_an_earlier_page_stays_where_the_records_are_refused(images: Path, tmp_path: Path) -> None:
    line = ["infer", str(images), "--html", str(tmp_path / "page"), "-o"]
    assert command(*line, str(tmp_path / "r.jsonl")).returncode == 0
    page = (tmp_path / "page" / "index.html").read_bytes()
    assert command(*line, str(images / "covid" / "IM0001")).returncode == 1
    assert (tmp_path / "page" / "index.html").read_bytes() == page


def test_a_refused_output_leaves_no_new_page(images: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    image = images / "covid" / "IM0001"
    done = command("infer", str(images), "--html", str(tmp_path / "new/page"), "-o", str(image))
    assert done.returncode == 1
    assert f"{image}: is no text file" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["important text\n", "important text", '{"a": 1}\n', "{}"])
def test_resume_keeps_a_file_that_holds_no_record(text: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes.jsonl"
    output.write_text(text)
    done = command("infer", str(images), "-o", str(output), "--resume")
    assert (done.returncode, output.read_text()) == (1, text)
    assert "not a record of deepcovid-edge infer" in done.stderr


def test_a_file_that_may_not_be_read_ends_no_run(images: Path, tmp_path: Path) -> None:
    """It has a record like one within a folder."""
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    hidden = images / "covid" / "IM0001"
    hidden.chmod(0)
    done = command("infer", str(hidden), str(images / "normal" / "IM0001"))
    assert (done.returncode, len(done.stdout.splitlines())) == (4, 2)


@pytest.mark.parametrize(
    "words",
    [
        ("infer", ""),
        ("sample", ""),
        ("site-check", ""),
        ("verify", "squeezenet1_1", "squeezenet1_1", ""),
        ("bench", "squeezenet1_1", "--data", ""),
        ("compare", ""),
        ("cart", "status", ""),
        ("screen", "", "-o", "records"),
    ],
)
def test_an_empty_path_is_refused(words: tuple[str, ...]) -> None:
    """`infer "$FOLDER"` with a variable that is not set would be the working folder."""
    done = command(*words)
    assert (done.returncode, "is a variable of the shell not set?" in done.stderr) == (2, True)


def test_a_table_of_no_width_has_its_rows(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    table = tmp_path / "table.txt"
    assert command("infer", str(images), "--table", "-o", str(table)).returncode == 0
    assert table.read_text().count("IM0001") == 2


def test_mistakes_of_a_program_are_no_images_that_cannot_be_decoded(images: Path) -> None:
    image = images / "covid" / "IM0001"

    def broken(_: Radiograph) -> Radiograph:
        raise ZeroDivisionError("division by zero")

    with Model(workers=1) as model:
        for source in (image.read_bytes(), None, 3):
            with pytest.raises(UsageError, match="source: got "):
                model.predict_one(source)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="change: ZeroDivisionError: division by zero"):
            list(model.predict([image], change=broken))
        for method in ("oclusion", "Occlusion", "", None):
            with pytest.raises(UsageError, match="expected one of occlusion, activation"):
                model.explain(image, method=method)  # type: ignore[arg-type]
