"""Suites: what is measured, what is skipped, what is unstable, and how two runs are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the peers that suites name need extra export")

from deepcovid_edge.benchmarking.invocations import join
from deepcovid_edge.benchmarking.results import Result, read_result
from deepcovid_edge.benchmarking.samples import Samples

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/bench-v2.json"


@pytest.fixture
def suite() -> ModuleType:
    from benchmarks.suites import run as suite

    return suite


def result(*, scale: float = 1.0, count: int = 400, seed: int = 0) -> Result:
    """One run of queries around 2 ms; stable, unless they are samples are too few."""
    times = np.random.default_rng(seed).lognormal(np.log(2e6 * scale), 0.02, count)
    ended = np.cumsum(times).astype(np.int64)
    started = np.concatenate([[0], ended[:-1]])
    ones = np.ones(count, np.int64)
    golden = read_result(GOLDEN)
    samples = Samples(started, started, ended, np.arange(count) % 3, ones)
    run = replace(golden.runs[0], samples=samples, parts={}, watched={}, invocations=())
    return replace(golden, runs=(run,))


def small(suite: ModuleType, **values: Any) -> Any:
    measure = suite.Measure("squeezenet1_1", **values)
    return suite.Suite("small", (measure,), (), 2)


def test_every_suite_reads_and_names_models_and_peers_that_are_there(suite: ModuleType) -> None:
    from benchmarks import variants
    from benchmarks.speed import peers as peer_speed

    for path in sorted((ROOT / "benchmarks/suites").glob("*.toml")):
        found = suite.read_suite(path.stem)
        assert list(suite.steps(found)), path
        for one in (*found.measure, *found.peers):
            assert variants.named(one.model).is_file()
        assert {name for one in found.peers for name in one.programs} <= set(peer_speed.PEERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[measure]]\nmodel = 'a'\nform = ['fp32']", r"measure\[0\]\.form: no such setting"),
        ("[[measure]]\nmodel = 'a'\nvariants = ['int4']", "variants: got 'int4'"),
        ("[[measure]]\nmodel = 'a'\nscenarios = ['party']", "scenarios: got 'party'"),
        ("[[measure]]\nmodel = 'a'\nbatches = ['one']", r"measure\[0\]\.batches: got"),
        ("[[peers]]\nrounds = 3", r"peers\[0\]\.model: is missing"),
        ("retry = 2", "retry: no such setting"),
    ],
)
def test_an_unknown_setting_of_a_suite_is_named(
    text: str, message: str, suite: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        suite.read_suite(str(path))
    with pytest.raises(ValueError, match="expected default, gpu, jetson"):
        suite.read_suite("other")


def test_a_batch_is_measured_in_the_scenarios_that_it_can_have(suite: ModuleType) -> None:
    measure = suite.Measure("squeezenet1_1", rate=20.0)
    assert measure.scenarios_of(1) == ("single-stream", "offline", "server")
    assert measure.scenarios_of(8) == ("multi-stream", "offline")
    assert suite.Measure("squeezenet1_1").scenarios_of(1) == ("single-stream", "offline")


def test_the_command_gets_all_settings_of_the_suite(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.variants.missing", lambda backend: None)
    asked = small(suite, batches=(8,), backends=("onnxruntime:cuda",), seconds=2.5, warm_up=0.25)
    (step,) = suite.steps(asked)
    command = " ".join(suite.bench_command(step, Path("images")))
    for words in (
        *("--backend onnxruntime", "--provider cuda", "--streams 8", "--batch-size 8"),
        *("--scenario multi-stream", "--scenario offline", "--scope network"),
        *("--seconds 2.5", "--warm-up 0.25", "--data images/test"),
    ):
        assert words in command


Fake = Callable[[list[str], Path], tuple[int, str]]


def answering(*outcomes: Result | int) -> Fake:
    """Stands in for the command: the next result, joined with what is there, or an exit code."""
    left = iter(outcomes)

    def bench(command: list[str], output: Path) -> tuple[int, str]:
        outcome = next(left)
        if isinstance(outcome, int):
            return outcome, f"failed with {outcome}"
        if output.exists():
            outcome = join(read_result(output), outcome)
        output.write_text(outcome.to_json(), encoding="utf-8")
        return (7 if outcome.unstable() else 0), ""

    return bench


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "suite-small.json").read_text())["steps"]
    return found


@pytest.mark.parametrize(
    ("outcomes", "status", "invocations", "code"),
    [
        ((result(), result(seed=1)), "stable", 2, 0),
        ((result(), result(seed=1, scale=1.5)), "unstable", 2, 7),
        ((result(count=14), result(count=15)), "unstable", 2, 7),
        ((6,), "skipped", 1, 0),
        ((1,), "failed", 1, 1),
        ((result(), 1), "failed", 2, 1),
    ],
    ids=["stable", "unstable", "too few", "not here", "failed", "failed later"],
)
def test_every_file_is_measured_by_several_processes_and_stored_with_its_reasons(
    outcomes: tuple[Result | int, ...],
    status: str,
    invocations: int,
    code: int,
    suite: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "bench", answering(*outcomes))
    assert suite.measure_suite(small(suite, batches=(1,)), None, tmp_path) == code
    (row,) = rows(tmp_path)
    assert (row["status"], row["invocations"]) == (status, invocations)
    stored = list((tmp_path / "squeezenet1_1").glob("*.json"))
    if status in ("stable", "unstable"):
        assert row["reasons"] == read_result(stored[0]).unstable()
        assert len(read_result(stored[0]).runs[0].invocations) == 2
    else:
        assert row["file"] is None
        assert "failed with" in row["reasons"][0]


def test_a_newer_version_of_a_stack_takes_the_place_of_the_older_alone(
    suite: ModuleType, tmp_path: Path
) -> None:
    newest = tmp_path / "onnxruntime-1.32-int8-cpu-b1.json"
    older = tmp_path / "onnxruntime-1.31-int8-cpu-b1.json"
    for name in (
        *("onnxruntime-1.31-int8-cpu-b8.json", "onnxruntime-1.31-fp32-b1.json"),
        *("onnxruntime-cuda-1.31-int8-cpu-b1.json", "openvino-2026.4-int8-cpu-b1.json"),
        *(newest.name, older.name),
    ):
        (tmp_path / name).touch()
    assert suite.other_versions(newest) == [older]


def test_the_invocations_of_a_file_lie_apart(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = answering(*(result(seed=seed) for seed in range(4)))

    def bench(command: list[str], output: Path) -> tuple[int, str]:
        asked.append(command[command.index("--batch-size") + 1])
        return answer(command, output)

    monkeypatch.setattr(suite, "bench", bench)
    assert suite.measure_suite(small(suite, batches=(1, 8)), None, tmp_path) == 0
    assert asked == ["1", "8", "1", "8"]


def test_what_is_not_here_is_skipped_with_the_reason(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import variants

    monkeypatch.setattr(variants, "installed_libraries", dict)
    asked = small(suite, batches=(1,), backends=("tensorrt",), variants=("fp32", "fp16"))
    assert suite.measure_suite(asked, None, tmp_path) == 0
    reasons = [row["reasons"] for row in rows(tmp_path)]
    assert reasons == [["neither TensorRT nor TensorRT-RTX is installed"]] * 2
    own = small(suite, batches=(1,), variants=("int8-tensorrt",))
    monkeypatch.setattr(variants, "MADE", tmp_path)
    assert suite.measure_suite(own, None, tmp_path) == 0
    assert "no images to calibrate it on" in rows(tmp_path)[0]["reasons"][0]


@pytest.mark.parametrize(
    ("backend", "versions", "name"),
    [
        ("onnxruntime-cpu", {"onnxruntime": "1.31.1"}, "onnxruntime-1.31"),
        ("onnxruntime-cuda", {"onnxruntime-gpu": "1.24.0"}, "onnxruntime-cuda-1.24"),
        ("openvino-cpu", {"openvino": "2026.4.1"}, "openvino-2026.4"),
        ("tensorrt-10.13.0.35", {}, "tensorrt-10.13"),
        ("tensorrt_rtx-1.7.1.116", {}, "tensorrt-rtx-1.7"),
    ],
)
def test_a_file_is_named_after_its_stack(
    backend: str, versions: dict[str, str], name: str, suite: ModuleType
) -> None:
    from benchmarks import variants

    assert variants.stack(backend, versions) == name


def stored(folder: Path, **files: Result) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content.to_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("again", "code", "summary"),
    [
        (result(seed=1), 0, "0 differ significantly"),
        (result(seed=1, scale=1.2), 3, "1 of them in stable runs|2 of them in stable runs"),
        (result(seed=1, scale=1.2, count=25), 7, "0 of them in stable runs"),
    ],
    ids=["the same", "slower", "unstable"],
)
def test_a_second_run_differs_or_names_its_instability(
    again: Result, code: int, summary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.suites.compare import against

    folders = (stored(tmp_path / "a", one=result()), stored(tmp_path / "b", one=again))
    assert against(*folders, 0.05) == code
    out = capsys.readouterr().out
    assert re.search(summary, out)
    assert ("samples are too few" in out) == (code == 7)


def test_other_clocks_are_an_instability_and_another_device_does_not_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.suites.compare import against

    def on_clock(megahertz: float, found: Result) -> Result:
        clock = dict.fromkeys(("first", "last", "min", "max", "median"), megahertz)
        return replace(found, runs=(replace(found.runs[0], watched={"cpu_mhz": clock}),))

    first = stored(tmp_path / "a", one=on_clock(3000, result()))
    slow = stored(tmp_path / "b", one=on_clock(2400, result(seed=1, scale=1.25)))
    assert against(first, slow, 0.05) == 7
    assert "cpu_mhz 3000 and 2400" in capsys.readouterr().out
    device = {**result().header["device"], "cores": 64}
    other = replace(result(), header={**result().header, "device": device})
    assert against(first, stored(tmp_path / "c", one=on_clock(3000, other)), 0.05) == 3
    assert "not measured alike: device: cores" in capsys.readouterr().out


def test_a_file_that_one_run_lacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.suites.compare import against

    first = stored(tmp_path / "a", one=result(), two=result())
    assert against(first, stored(tmp_path / "b", one=result()), 0.05) == 3
    assert "only in one: two.json" in capsys.readouterr().out


def test_every_part_is_a_module_and_the_exit_code_is_the_worst() -> None:
    from benchmarks import run_all

    for module, *_ in run_all.PARTS.values():
        assert find_spec(f"benchmarks.{module}")
    assert run_all.code_of([0, 0]) == 0
    assert run_all.code_of([7, 0]) == 7
    assert run_all.code_of([7, 3, 0]) == 3
    assert run_all.code_of([7, 3, 2, 0]) == 1
    assert next(iter(run_all.PARTS)) == "accuracy"  # it makes the variants that the others run


def test_every_table_stands_in_a_document_and_every_document_knows_its_tables() -> None:
    from benchmarks.tables import write as tables

    texts = [(ROOT / name).read_text("utf-8") for name in tables.DOCUMENTS]
    named = set(re.findall(r"<!-- table: (\S+) -->", "".join(texts)))
    assert named == set(tables.TABLES)
    for text in texts:
        assert len(tables.BLOCK.findall(text)) == text.count("<!-- table: ")


def test_tables_show_what_was_stored_skipped_and_unstable(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.tables import table
    from benchmarks.tables.write import TABLES

    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    first_pass, second_pass = (result(), result(count=14), 6), (result(seed=1), result(count=15))
    monkeypatch.setattr(suite, "bench", answering(*first_pass, *second_pass))
    asked = small(suite, batches=(1,), variants=("fp32", "int8-cpu"), backends=("onnxruntime",))
    asked = replace(asked, measure=(*asked.measure, replace(asked.measure[0], variants=("fp32",))))
    assert suite.measure_suite(asked, None, tmp_path / "device") == 7
    document = tmp_path / "benchmarks/README.md"
    head, _, first, second = TABLES["suite"](document).markdown().splitlines()
    assert " squeezenet1_1 | onnxruntime-" in first
    assert "| fp32 | 1 | 2.0" in first
    assert first.split(" | ")[-2:-1] == ["yes"]
    assert second.split(" | ")[-2:-1] == ["no"]
    assert head.count("|") == first.count("|")
    unmeasured = TABLES["suite-unmeasured"](document).markdown()
    assert "29 samples are too few" in unmeasured
    assert "failed with 6 | squeezenet1_1 fp32 b1" in unmeasured
