"""jetson/board_report.py: what a board's owner sends holds the facts, and nobody's name."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

JETSON = Path(__file__).parents[3] / "jetson"
ORIN = (
    "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
)


@pytest.fixture(scope="module")
def board_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("board_report", JETSON / "board_report.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_name_is_nowhere_in_the_report(
    board_report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/anna.k")
    monkeypatch.setattr(getpass, "getuser", lambda: "anna.k")
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "cart7.clinic.example")
    report = {
        "models": [{"path": "/home/anna.k/deepcovid-edge/lib/model.onnx", "bytes": 7}],
        "said": "anna.k@cart7.clinic.example: /home/anna.k: no such file",
        "manna.kind": "manna.kind",
    }
    clean = board_report.without_names(report)
    assert clean == {
        "models": [{"path": "~/deepcovid-edge/lib/model.onnx", "bytes": 7}],
        "said": "USER@HOST: ~: no such file",
        "manna.kind": "manna.kind",
    }


def test_each_kind_of_core_is_listed_once_and_the_serial_number_never(
    board_report: ModuleType, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(ORIN * 12 + "Serial\t: 1421123456789\n")
    assert board_report.processor_facts(cpuinfo) == [
        "Features: fp asimd asimddp",
        "CPU implementer: 0x41",
        "CPU part: 0xd42",
    ]


def test_an_engine_is_measured_by_its_path_and_another_backend_by_its_options(
    board_report: ModuleType,
) -> None:
    seen: list[tuple[str, ...]] = []

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        seen.append(arguments)
        return subprocess.CompletedProcess(arguments, 7, json.dumps({"runs": []}), "")

    engine = ["--model", "x.engine", "--backend", "tensorrt"]
    assert board_report.bench(run, "squeezenet1_1", engine)["exit_code"] == 7
    board_report.bench(run, "squeezenet1_1", ["--model", "squeezenet1_1", "--provider", "cpu"])
    assert seen == [
        ("bench", "x.engine", "--backend", "tensorrt", "--json"),
        ("bench", "squeezenet1_1", "--provider", "cpu", "--json"),
    ]


@pytest.mark.slow
def test_selftest_measures_and_reports_in_one_file(tmp_path: Path) -> None:
    output = tmp_path / "selftest.json"
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [sys.executable, str(JETSON / "selftest"), "--seconds", "0", "--report", "-o", str(output)],
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(output.read_text())
    (cpu,) = [one for one in report["backends"] if one["name"] == "onnxruntime-cpu"]
    assert cpu["bench"]["exit_code"] in (0, 7)
    assert {run["scope"] for run in cpu["bench"]["result"]["runs"]} == {"network", "end-to-end"}
    assert "onnxruntime==" in report["board"]["distributions"]
