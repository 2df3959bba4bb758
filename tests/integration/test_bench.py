"""`deepcovid-edge bench` and `compare` with the shipped model, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import phantom_files

from deepcovid_edge.benchmarking import results
from deepcovid_edge.benchmarking.results import read_result
from deepcovid_edge.benchmarking.stability import Verdict
from deepcovid_edge.cli.main import run
from deepcovid_edge.files import file_sha256
from deepcovid_edge.models import find_model

pytestmark = pytest.mark.int8

SHORT = ["--seconds", "0.2", "--queries", "4", "--warm-up", "0", "--images", "2"]
MODEL = "squeezenet1_1"


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Every scenario in both scopes, in a process of its own."""
    path = tmp_path_factory.mktemp("bench") / "new/cart.json"
    command = [sys.executable, "-m", "deepcovid_edge", "bench", MODEL, *SHORT, "--rate", "40"]
    command += ["--streams", "2"]
    command += ["--backend", "onnxruntime", "-o", str(path)]
    return path, subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_scenario_and_scope_is_measured_and_stored(measured: Any) -> None:
    path, done = measured
    assert done.returncode in (0, 7), done.stderr
    result = read_result(path)
    assert [(item.scope, item.scenario) for item in result.runs] == [
        (scope, scenario)
        for scope in ("network", "end-to-end")
        for scenario in ("single-stream", "multi-stream", "offline", "server")
    ]
    for item in result.runs:
        assert len(item.samples) >= 4
        assert len(item.warm_up) >= 1
        assert (item.samples.ended > item.samples.started).all() or item.scenario == "offline"
        assert item.figures()["images_per_second"] > 0


def test_exit_code_and_file_agree_about_stability(measured: Any) -> None:
    path, done = measured
    unstable = read_result(path).unstable()
    assert (done.returncode == 7) == bool(unstable)
    assert done.stderr.count("unstable: ") == len(unstable)


def test_parts_of_the_whole_way_are_no_longer_than_it(measured: Any) -> None:
    item = next(item for item in read_result(measured[0]).runs if item.scope == "end-to-end")
    parts = [item.parts[name].ms for name in ("read", "preprocess", "compute")]
    assert item.scenario == "single-stream"
    assert (sum(parts) <= item.samples.latency_ms + 0.01).all()


def test_an_image_unlike_the_training_images_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    for name in ("one", "two"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), noise)
    assert run(["infer", str(tmp_path)]) == 4
    assert "E_OOD" in capsys.readouterr().out
    scopes = ["--scope", "end-to-end", "--scenario", "single-stream", "--scenario", "offline"]
    assert run(["bench", MODEL, *SHORT, *scopes, "--data", str(tmp_path)]) in (0, 7)


def test_header_says_what_ran(measured: Any) -> None:
    header = read_result(measured[0]).header
    assert header["model"]["sha256"] == file_sha256(find_model(MODEL))
    assert header["model"]["backend"] == "onnxruntime-cpu"
    assert header["data"]["name"] == "synthetic images"
    assert header["start"]["first_result_ms"] > header["start"]["load_ms"] > 0
    assert header["memory"]["peak_rss_mib"] > 50


def test_table_for_people_has_a_line_for_each_run(measured: Any) -> None:
    out = measured[1].stdout
    assert out.count("single-stream") >= 2
    assert "of the parts, ms: read" in out
    assert "within 500 ms" in out
    assert "Research use only" in out


def test_the_file_says_nothing_of_the_place_where_it_was_measured(measured: Any) -> None:
    text = measured[0].read_text("utf-8")
    assert str(Path.home()) not in text
    assert str(measured[0].parent) not in text


def test_a_later_process_is_appended_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cart.json"
    command = ["bench", MODEL, *SHORT, "--scope", "network", "--scenario", "single-stream"]
    command += ["--backend", "onnxruntime", "-o", str(path), "--append"]
    assert run(command) in (0, 7)
    (once,) = read_result(path).runs
    assert run(command) in (0, 7)
    (twice,) = read_result(path).runs
    assert len(twice.invocations) == 2
    assert twice.invocations[0] == len(once.samples)
    stored = path.read_text()
    capsys.readouterr()
    assert run([*command, "--seconds", "0.3"]) == 2
    told = capsys.readouterr().err
    assert "other settings.seconds: measure alike" in told
    assert "measuring" not in told
    assert path.read_text() == stored
    assert run(["bench", MODEL, "--append"]) == 2


def test_compare_takes_what_bench_wrote(measured: Any) -> None:
    assert run(["compare", str(measured[0]), str(measured[0])]) == 0


@pytest.mark.parametrize(("verdict", "code"), [(True, 0), (False, 7)])
def test_a_run_exits_by_its_verdict(
    verdict: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    classified = Verdict(verdict, () if verdict else ("drift: +9.0%",))
    monkeypatch.setattr(results, "assess_stability", lambda *_: classified)
    phantom_files(tmp_path, count=3)
    only = ["--data", str(tmp_path), "--scenario", "single-stream", "--scope", "network", "--json"]
    assert run(["bench", MODEL, *SHORT, *only]) == code
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert (content["kind"], content["schema_version"]) == (
        "deepcovid-edge bench",
        results.SCHEMA_VERSION,
    )
    assert len(content["runs"]) == 1
    assert content["data"]["images"] == 2
    assert ("unstable: network, single-stream: drift" in captured.err) is not verdict


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["bench", MODEL, "--data", "missing"], 6, "missing: no such file or folder"),
        (["bench", "missing"], 6, "expected a shipped model"),
        (["bench", MODEL, "--scenario", "server"], 2, "--rate"),
        (["bench", MODEL, "--seconds", "-1"], 2, "--seconds: got -1"),
        (["bench", MODEL, "--images", "1", "--provider", "cuda"], 6, "--provider cuda"),
    ],
)
def test_a_user_s_error_is_one_sentence_and_its_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    assert said in capsys.readouterr().err


def test_a_folder_without_an_image_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert run(["bench", MODEL, "--data", str(tmp_path), *SHORT]) == 1
    assert "no image to measure with" in capsys.readouterr().err
