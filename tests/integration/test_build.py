"""`deepcovid-edge build` with TensorRT-RTX's real builder, without a GPU; and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import spread
from terminal import on_terminal

from deepcovid_edge.backends.tensorrt import build as module
from deepcovid_edge.backends.tensorrt import build_process
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build
from deepcovid_edge.backends.tensorrt.files import (
    EngineFacts,
    Fit,
    Profile,
    check_engine,
    facts_path,
)
from deepcovid_edge.cli.main import run
from deepcovid_edge.device.gpu import GpuFacts, find_gpu
from deepcovid_edge.errors import BuildError
from deepcovid_edge.manifest import METADATA_KEY, ModelManifest
from deepcovid_edge.models import find_model

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx (extra rtx) is not installed"
)
AHEAD = BuildSettings(target="rtx:sm86,sm89,sm120", profile=Profile(1, 8, 32))
COMMAND = [sys.executable, "-m", "deepcovid_edge", "build"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DEEPCOVID_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_without_manifest(path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx writes the model without a manifest")
    model = onnx.load(find_model("squeezenet1_1"))
    model.ClearField("metadata_props")
    onnx.save(model, path)
    return path


def test_shipped_model_becomes_an_engine_with_its_facts(cache: Path) -> None:
    events: list[str] = []
    model = find_model("squeezenet1_1")
    engine, facts = build(model, AHEAD, progress=lambda event: events.append(event["event"]))
    assert engine.parent == cache
    assert engine.read_bytes()[:4] == b"vtrt"
    assert facts.manifest.threshold > 0
    assert facts.fit.capabilities == ("sm86", "sm89", "sm120")
    assert facts.profile == Profile(1, 8, 32)
    assert not facts.is_verified
    assert check_engine(engine, replace(facts.fit, capabilities=("sm89",), gpu="any")) == facts
    assert {"phase", "step", "finished", "done"} <= set(events)


def test_a_terminal_shows_the_builders_phases(tmp_path: Path) -> None:
    words = ("squeezenet1_1", "--target", "rtx:sm89", "-o", str(tmp_path))
    done = on_terminal([*COMMAND, *words])
    assert done.returncode == 0, done.terminal
    assert "building squeezenet1_1" in done.terminal
    assert re.search(r"[1-9]\d*/[1-9]\d* +[0-9.]+/s +\d:\d\d:\d\d", done.terminal)


def test_an_engine_that_is_there_is_not_built_again() -> None:
    model = find_model("squeezenet1_1")
    events: list[object] = []
    engine, _ = build(model, AHEAD)
    built_at = engine.stat().st_mtime_ns
    assert build(model, AHEAD, progress=events.append)[0] == engine
    assert engine.stat().st_mtime_ns == built_at
    assert not events
    engine.write_bytes(b"tampered")
    left_by_a_killed_build = Path(f"{engine}.4711-4711.part")
    left_by_a_killed_build.write_bytes(b"half an engine")
    assert build(model, AHEAD, progress=events.append)[0] == engine
    assert events
    assert engine.read_bytes()[:4] == b"vtrt"
    assert not left_by_a_killed_build.exists()


def test_an_engine_of_another_level_or_workspace_is_built_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def built(*options: str) -> dict[str, Any]:
        assert run(["build", "squeezenet1_1", "--target", "rtx:sm86", "--json", *options]) == 0
        builder: dict[str, Any] = json.loads(capsys.readouterr().out)["engine"]["builder"]
        return builder

    first = built("--level", "0", "--workspace", "512")
    assert built() == built("--level", "0") == built("--workspace", "512") == first
    other = built("--level", "1")
    assert (other["level"], other["workspace_mib"]) != (0, 512)
    assert built("--level", "1") == other
    assert built("--workspace", "256")["workspace_mib"] == 256


def test_two_processes_asked_for_the_same_engine_build_it_once(cache: Path) -> None:
    command = [*COMMAND, "squeezenet1_1", "--target", "rtx:sm86", "--json"]

    def started(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(started, range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert json.loads(first.stdout) == json.loads(second.stdout)  # build seconds included
    assert len(list(cache.glob("*.engine"))) == 1


def test_json_of_an_engine_is_the_manifest_with_the_builders_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["build", "squeezenet1_1", "--target", "rtx:sm86", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["classes"] == ["non", "covid"]
    assert values["engine"]["fit"]["capabilities"] == ["sm86"]
    assert EngineFacts.from_json(json.dumps(values)).builder["level"] == 3


def test_a_graph_that_tensorrt_refuses_is_one_sentence_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past our own check, TensorRT's words come through."""
    onnx = pytest.importorskip("onnx", reason="onnx makes the graph that is refused")
    model = onnx.load(find_model("squeezenet1_1"))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Det"
    onnx.save(model, tmp_path / "det.onnx")
    with pytest.raises(
        BuildError, match=r"det\.onnx: TensorRT does not take the graph: Det node_relu"
    ):
        build(tmp_path / "det.onnx", AHEAD)


def test_levels_are_lowered_until_one_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = build_process.run_builder, []

    def weak(request: build_process.BuildRequest, progress: object) -> dict[str, object]:
        asked.append(request.level)
        if request.level > 1:
            return build_process._explained(-9, request, [], {})
        return real(request, None)

    monkeypatch.setattr(module, "run_builder", weak)
    _, facts = build(find_model("squeezenet1_1"), AHEAD)
    assert asked == [3, 2, 1]
    assert facts.builder["level"] == 1
    assert len(facts.builder["failures"]) == 2
    assert build(find_model("squeezenet1_1"), replace(AHEAD, level=3))[1] == facts
    assert asked == [3, 2, 1], "the engine is the one that was asked for"


def let_the_builder_be(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Another program in its place, which gets the real builder's command line."""
    real = build_process._builder_command
    monkeypatch.setattr(build_process, "_builder_command", lambda request: [*words, *real(request)])


MIBS = (150, 200, 250, 280, 300, 310, 315, 318, 321, 324, 330, 400, 600)


@pytest.mark.parametrize("mib", spread(MIBS, of=3))  # each starts a builder
def test_with_little_address_space_a_build_ends_and_is_explained(
    mib: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real builder fails otherwise at each limit; with some it waits for a thread for ever."""
    limited = f'ulimit -v {mib << 10}; exec "$@"'
    let_the_builder_be(monkeypatch, "/bin/sh", "-c", limited, "sh")
    monkeypatch.setattr(build_process, "_STALLED_SECONDS", 5.0)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # whatever the number of cores
    code = run(["build", "squeezenet1_1", "--target", "rtx:sm86", "--level", "0"])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        return
    assert code == 1
    if "cannot be loaded" in said:  # its library is not found, or has no room
        assert "ulimit -v unlimited" in said
        return
    assert "ran out of memory" in said or "out of memory is the likely cause" in said
    assert "smaller --workspace" in said


def test_a_builder_that_waits_for_ever_is_ended_and_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_the_builder_be(monkeypatch, "/bin/sh", "-c", "sleep 1000000")
    monkeypatch.setattr(build_process, "_STALLED_SECONDS", 0.5)
    assert run(["build", "squeezenet1_1", "--target", "rtx:sm86", "--workspace", "100"]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "the builder made no progress for 0.5 s and was ended" in said
    assert "out of memory is the likely cause (workspace 100 MiB, level 3): close other" in said
    assert "smaller --workspace" in said


@pytest.mark.parametrize(
    "said",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Myelin: Unexpected exception Resource temporarily unavailable In compileGraph",
        "tensorrt_rtx.so: failed to map segment from shared object",
        "cannot allocate memory for thread-local data: ABORT",
    ],
)
@pytest.mark.parametrize("as_event", [False, True])
def test_each_way_to_run_out_of_memory_gets_the_same_sentence(
    said: str, as_event: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"event": "failed", "why": said, "final": False}) if as_event else said
    let_the_builder_be(monkeypatch, "/bin/sh", "-c", 'echo "$0"; exit 1', line)
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda _: (300 << 20, resource.RLIM_INFINITY),
    )
    assert run(["build", "squeezenet1_1", "--target", "rtx:sm86", "--level", "0"]) == 1
    told = capsys.readouterr().err
    assert "the builder ran out of memory (workspace" in told
    assert "a process may have 300 MiB here: ulimit -v unlimited" in told


def test_a_build_that_is_killed_takes_its_builder_along() -> None:
    """The builder is stopped first, so that it cannot have ended by itself."""
    command = [*COMMAND, "squeezenet1_1", "--target", "rtx:sm86"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        (builder,) = eventually(lambda: builders_of(process.pid))
        os.kill(builder, signal.SIGSTOP)
        process.kill()
    eventually(lambda: not Path(f"/proc/{builder}").exists() or state_of(builder) in "ZX")


def builders_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    arguments = {
        child: Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in children
    }
    return [
        int(child)
        for child, words in arguments.items()
        if b"deepcovid_edge.backends.tensorrt.build_process" in words[:3]
    ]


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def eventually(what: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < ends
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["squeezenet1_1", "--target", "rtx:sm90"], 2, "--target: got 'rtx:sm90', expected local"),
        (["squeezenet1_1", "--target", "rtx:"], 2, "--target: got 'rtx:'"),
        (["squeezenet1_1", "--target", "moon"], 2, "--target: got 'moon'"),
        (["squeezenet1_1", "--batch", "8,4,1"], 2, "--batch: got 8,4,1"),
        (["squeezenet1_1", "--batch", "many"], 2, "--batch: got 'many'"),
        (["squeezenet1_1", "--workspace", "lots"], 2, "--workspace: got 'lots'"),
        (["squeezenet1_1", "--level", "9"], 2, "--level: got 9"),
        (["squeezenet1_1", "--target", "rtx:sm86", "--verify", "."], 2, "verify it there"),
        (["no-such-model"], 6, "expected a shipped model"),
    ],
)
def test_a_users_error_is_one_sentence_and_its_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", *arguments]) == code
    assert said in capsys.readouterr().err


def test_a_model_without_a_manifest_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_without_manifest(tmp_path / "bare.onnx")
    assert run(["build", str(model), "--target", "rtx:sm86"]) == 1
    assert "without a deepcovid_edge manifest" in capsys.readouterr().err


def test_without_a_gpu_a_local_build_says_what_can_be_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    assert run(["build", "squeezenet1_1"]) == 6
    assert "--target rtx:sm86,sm89" in capsys.readouterr().err


def test_without_tensorrt_the_mend_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIBRARIES", ())
    assert run(["build", "squeezenet1_1"]) == 6
    assert "pip install 'deepcovid-edge[tensorrt]'" in capsys.readouterr().err
    assert run(["build", "squeezenet1_1", "--target", "rtx:sm86"]) == 6
    assert "pip install 'deepcovid-edge[rtx]'" in capsys.readouterr().err


def engine_for(gpu: GpuFacts, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine for sm86, on a machine that says it has another GPU."""
    engine, _ = build(find_model("squeezenet1_1"), BuildSettings(target="rtx:sm86"))
    monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    return engine


def test_an_engine_of_another_gpu_exits_with_5_and_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = engine_for(GpuFacts("NVIDIA H200", "sm90"), monkeypatch)
    assert run(["infer", str(tmp_path), "--model", str(engine)]) == 5
    said = capsys.readouterr().err
    assert "was built for sm86, this GPU is sm90" in said
    assert "deepcovid-edge build squeezenet1_1.onnx --batch 1,8,32" in said


def test_an_engine_of_another_version_or_with_other_bytes_exits_with_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = engine_for(GpuFacts("NVIDIA RTX A2000", "sm86"), monkeypatch)
    facts = EngineFacts.from_json(facts_path(engine).read_text())
    older = replace(facts, fit=Fit("tensorrt_rtx", "1.2.0", ("sm86",)))
    facts_path(engine).write_text(older.to_json())
    assert run(["infer", str(tmp_path), "--model", str(engine)]) == 5
    assert "was built with tensorrt_rtx 1.2.0" in capsys.readouterr().err
    facts_path(engine).write_text(facts.to_json())
    engine.write_bytes(engine.read_bytes()[:-1] + b"\x00\x01")
    assert run(["infer", str(tmp_path), "--model", str(engine)]) == 5
    assert "sha256 differs" in capsys.readouterr().err


def test_without_a_gpu_an_engine_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU: its absence cannot show")
    engine, _ = build(find_model("squeezenet1_1"), BuildSettings(target="rtx:sm86"))
    assert run(["infer", str(tmp_path), "--model", str(engine)]) == 6
    said = capsys.readouterr().err
    assert "no NVIDIA GPU answers" in said
    assert "give the .onnx file that it was built from" in said
    assert "--target" not in said


def test_manifest_key_is_not_lost_in_an_engine() -> None:
    _, facts = build(find_model("squeezenet1_1"), AHEAD)
    assert isinstance(facts.manifest, ModelManifest)
    assert METADATA_KEY not in facts.to_json().split('"engine"')[0]
