"""What a process with little memory does: it says so before a library finds none."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_once import phantom_files

from deepcovid_edge.cli import main
from deepcovid_edge.device.memory import needed_address_space

COMMAND = [sys.executable, "-m", "deepcovid_edge"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    phantom_files(folder, count=6)
    return folder


def infer_within(mebibytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`infer` with a limit of its address space, and as many BLAS threads as it chooses itself."""
    run = shlex.join([*COMMAND, "infer", *map(str, arguments)])
    return subprocess.run(
        ["bash", "-c", f"ulimit -v {mebibytes << 10}; exec {run}"],
        env={name: value for name, value in os.environ.items() if "NUM_THREADS" not in name},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("mebibytes", "workers"), [(100, 1), (230, 1), (330, 1), (345, 1), (499, 1), (500, 8), (860, 8)]
)
def test_too_little_memory_is_refused_before_a_library_finds_none(
    mebibytes: int, workers: int, images: Path, tmp_path: Path
) -> None:
    """With some of these limits ONNX Runtime, OpenBLAS or a thread waits for ever or crashes."""
    output = tmp_path / "records.jsonl"
    done = infer_within(mebibytes, images, "--workers", str(workers), "-o", output)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"`ulimit -v` allows {mebibytes} MiB of address space" in done.stderr
    assert "use fewer workers or raise `ulimit -v`" in done.stderr


@pytest.mark.parametrize("workers", [1, 4])
def test_the_memory_that_a_refusal_names_is_enough(workers: int, images: Path) -> None:
    done = infer_within(needed_address_space(workers), images, "--workers", str(workers))
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == len(
        list(images.iterdir())
    )


def test_the_commands_start_no_threads_for_blas_but_those_that_fit_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for line, expected in ((["infer", "a"], "1"), (["quantize", "a"], None), (["--help"], None)):
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        main._prepare(line)
        assert os.environ.get("OPENBLAS_NUM_THREADS") == expected
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    main._prepare(["infer", "a"])
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
