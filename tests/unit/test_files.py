"""Files are read without a wait, a pipe is refused; text is written whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.decision.site_file import read_site
from deepcovid_edge.errors import DataError, OutputError
from deepcovid_edge.files import (
    check_writable,
    file_sha256,
    open_regular,
    read_regular,
    write_text,
)
from deepcovid_edge.heatmaps.files import read_map
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import shipped_models
from deepcovid_edge.models.graph.tensorrt_rules import check_typed

REFUSED = "not a regular file"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file") == b"content"


def test_pipe_and_terminal_and_folder_are_refused(pipe: Path) -> None:
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(OSError, match=REFUSED):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(pipe.parent)


def test_refused_file_is_closed(pipe: Path) -> None:
    before = [*map(str, Path("/proc/self/fd").iterdir())]
    with pytest.raises(OSError, match=REFUSED):
        open_regular(pipe)
    assert [*map(str, Path("/proc/self/fd").iterdir())] == before


@pytest.mark.parametrize("read", [file_sha256, read_manifest, read_map, read_site, check_typed])
def test_who_reads_a_file_refuses_a_pipe(read: object, pipe: Path) -> None:
    with pytest.raises(Exception, match=f"pipe: {REFUSED}"):
        read(pipe)  # type: ignore[operator]


def test_data_set_that_is_a_pipe_is_refused(pipe: Path) -> None:
    with pytest.raises(DataError, match=REFUSED):
        load_dataset(pipe)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "PIPE", "PIPE"],
        ["infer", "PIPE", "--site", "PIPE"],
        ["infer", "PIPE", "--model", "PIPE"],
        ["verify", "squeezenet1_1", "squeezenet1_1-int8-cpu", "PIPE"],
        ["site-check", "PIPE"],
        ["bench", "squeezenet1_1", "--data", "PIPE"],
    ],
)
def test_no_command_waits_for_a_pipe(
    arguments: list[str], pipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(pipe) if word == "PIPE" else word for word in arguments]) in (1, 2, 6)
    assert "pipe" in capsys.readouterr().err


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Images of two splits."""
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((120, 120), 99, np.uint8))
    path = tmp_path / "manifest.csv"
    path.write_text("path,label,split\na.png,non,val\nb.png,covid,test\n")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "squeezenet1_1", "squeezenet1_1-int8-cpu", "DATA", "--split", "val", "-o"],
        ["site-check", "DATA", "--split", "val", "-o"],
        ["train", "DATA", "--check-data", "--leaks"],
        ["quantize", "squeezenet1_1", "--precision", "fp16", "--calibration", "DATA", "-o"],
        ["export", str(shipped_models()["squeezenet1_1"]), "--fit", "DATA", "-o"],
    ],
)
@pytest.mark.parametrize("by_folder", [True, False])
def test_a_data_set_is_not_written_over(
    arguments: list[str], by_folder: bool, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] not in ("verify", "site-check"):
        for needed in ("torch", "onnx", "onnxruntime"):
            pytest.importorskip(needed, reason=f"{needed} (extra export) makes models")
    before = manifest.read_bytes()
    data = manifest.parent if by_folder else manifest
    words = [str(data) if word == "DATA" else word for word in arguments]
    assert run([*words, str(manifest)]) == 1
    assert "manifest.csv: is what is read, and would be lost" in capsys.readouterr().err
    assert manifest.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "squeezenet1_1", "squeezenet1_1-int8-cpu"],
        ["build", "squeezenet1_1", "--verify"],
        ["site-check"],
    ],
)
def test_splits_are_not_measured_together(
    arguments: list[str], manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, str(manifest)]) == 2
    told = f"--split: {manifest} has test, val, which are not measured together: give one"
    assert told in capsys.readouterr().err
    manifest.write_text(manifest.read_text().replace("val", "test"))
    assert run([*arguments, str(manifest)]) == 2
    assert f"--split: {manifest} has images of the split test: give it" in capsys.readouterr().err


def test_a_report_that_no_longer_fits_leaves_the_one_before(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    write_text(report, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"report\.json"):
            write_text(report, "now" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert report.read_text() == "before"
    assert [*tmp_path.iterdir()] == [report]


def test_text_goes_through_a_link_and_into_a_pipe(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "link").symlink_to("text")
    write_text(tmp_path / "link", "through the link")
    assert (tmp_path / "text").read_text() == "through the link"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "into the pipe")
    assert os.read(reader, 100) == b"into the pipe"
    os.close(reader)


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "image").write_bytes(b"a\0b")
    for place in (
        *("/proc/none/report.json", "/proc/report.json", tmp_path, tmp_path / "file/report.json"),
        *(tmp_path / ("a" * 250), tmp_path / ("a" * 300), tmp_path / "image"),
    ):
        with pytest.raises(OutputError, match=f"^{place}: (cannot be written|is no text file)"):
            check_writable(Path(place))


def test_a_check_makes_the_folder_and_changes_no_file(tmp_path: Path, pipe: Path) -> None:
    report = tmp_path / "new/folder/report.json"
    check_writable(report)
    assert [*report.parent.iterdir()] == []
    report.write_text("before")
    check_writable(report)
    assert report.read_text() == "before"
    for place in (pipe, Path("/dev/null")):
        check_writable(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "pipe"]
