"""A short run of `fuzz.py`, with a fixed seed; the long one is `make fuzz`."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
pytest.importorskip("onnxruntime", reason="needs extra cpu")
import fuzz
from dicom_files import HTJ2K_RPCL, WRITABLE

from deepcovid_edge.backends import load_backend
from deepcovid_edge.decision.record import ASSESSED
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.sandbox import Limits, sandbox
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.models import DEFAULT_MODEL, find_model

ROOT = Path(__file__).parents[3]


@pytest.mark.filterwarnings("ignore")  # as in a run
@pytest.mark.parametrize(
    "inputs",
    [400, pytest.param(1000, marks=pytest.mark.slow)],  # 20,000 others in `make fuzz`
)
def test_damaged_files_get_a_number_or_a_reason_and_never_both(inputs: int, tmp_path: Path) -> None:
    with load_backend(find_model(DEFAULT_MODEL)) as network:
        found = fuzz.fuzz(inputs, 20240607, network, tmp_path / "findings")
    assert found.broken == []
    assert found.slowest[0] < fuzz.MOST_SECONDS
    assert {kind.partition(" ")[0] for kind in found.counts} >= {"header", "site", "records"}
    outcomes = [outcome for counts in found.counts.values() for outcome in counts.elements()]
    assert len(outcomes) == inputs
    assert inputs // 10 < outcomes.count(ASSESSED) < inputs * 9 // 10


def test_command_of_the_long_run_starts() -> None:
    command = re.search(r"\t(.*tests/fuzz\.py) ", (ROOT / "Makefile").read_text())
    assert command
    whole = command[1].replace("$(DEV)/python", sys.executable) + " --help"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        whole, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--findings" in done.stdout


def test_an_input_is_the_same_bytes_every_time() -> None:
    for kind, make in list((fuzz.makers() | fuzz.header_makers()).items())[::7]:
        assert make(np.random.default_rng((3, 14))) == make(np.random.default_rng((3, 14))), kind


def test_codestream_on_which_a_decoder_hangs_costs_one_reason(
    decode: Callable[..., Radiograph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input 5840 of seed 1: OpenJPH, as of imagecodecs 2026.3.6, took longer than 20 s."""
    if HTJ2K_RPCL not in WRITABLE:
        pytest.skip("imagecodecs has no encoder of HTJ2K here")
    data = fuzz.makers()["dicom-HTJ2K Lossless RPCL-8"](np.random.default_rng((1, 5840)))
    monkeypatch.setattr(sandbox(), "limits", Limits(seconds=1.5))
    started = time.perf_counter()
    with contextlib.suppress(NotAssessedError):  # another version may end, one way or the other
        decode(data)
    assert time.perf_counter() - started < 5
