"""jetson/selftest against the shipped model, and against a stand-in for a board with TensorRT."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import softmax
from deepcovid_edge.files import file_sha256
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model

JETSON = Path(__file__).parents[3] / "jetson"
SELFTEST, GOLDEN = JETSON / "selftest", JETSON / "golden"
SCRIPTS = Path(sys.executable).parent


Selftest = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, Any]]]


@pytest.fixture
def selftest(tmp_path: Path) -> Selftest:
    """Runs the selftest; returns what it printed and the JSON it wrote."""

    def run(*options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        output = tmp_path / "selftest.json"
        done = subprocess.run(
            [sys.executable, str(SELFTEST), "-o", str(output), *options],
            env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done, json.loads(output.read_text()) if output.exists() else {}

    return run


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "golden.json"
    golden = json.loads(path.read_text())
    change(golden)
    path.write_text(json.dumps(golden))


def test_golden_values_are_those_of_the_shipped_model() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    fix = f"make the golden values anew: {golden['made_by']}"
    path = find_model(golden["model"]["name"])
    assert golden["model"]["sha256"] == file_sha256(path), fix
    with load_backend(path, backend="onnxruntime") as backend:
        for image in golden["images"]:
            batch = prepare(read_radiograph(GOLDEN / image["file"]), backend.manifest.input)[None]
            logits = backend.infer(batch).logits
            assert logits[0].tolist() == pytest.approx(image["logits"], abs=2e-3), fix
            shares = dict(zip(backend.manifest.classes, softmax(logits)[0].tolist(), strict=True))
            assert shares == pytest.approx(image["probabilities"], abs=2e-3), fix
            decision = Model.of(backend).predict_one(GOLDEN / image["file"]).decision
            assert decision == image["decision"], fix


def test_golden_images_are_small_marked_and_tell_logits_apart() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    files = {path.name for path in GOLDEN.glob("*.png")}
    assert files == {image["file"] for image in golden["images"]}
    decisions = {image["decision"] for image in golden["images"]}
    assert decisions == {"positive", "indeterminate", "negative"}
    for image in golden["images"]:
        content = (GOLDEN / image["file"]).read_bytes()
        assert len(content) <= 40_000
        assert SYNTHETIC_MARK in content
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
        # A saturated probability has few decimals left that a wrong logit could change.
        assert abs(image["logit_margin"]) < 5


def test_selftest_passes_here_and_writes_one_file_to_send(selftest: Selftest) -> None:
    done, report = selftest("--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["verdict"] == "passed"
    assert report["info"]["models"][0]["sha256"] == report["golden"]["model"]["sha256"]
    (cpu,) = [item for item in report["backends"] if item["name"] == "onnxruntime-cpu"]
    assert [check["passed"] for check in cpu["checks"]] == [True] * 3
    for check in cpu["checks"]:
        assert abs(check["got"] - check["expected"]) <= check["tolerance"]
    timing = cpu["timing"]
    assert sum(timing["runs_s"]) >= 1
    assert timing["images_per_second"] == pytest.approx(
        timing["images_a_run"] * len(timing["runs_s"]) / sum(timing["runs_s"]), abs=0.1
    )
    assert "starts included" in done.stdout
    (above,) = [line for line in done.stdout.splitlines() if "  above.png: " in line]
    assert above.endswith("; indeterminate")  # as `infer` decides


def test_selftest_finds_a_golden_value_that_differs(selftest: Selftest, copied: Path) -> None:
    def tamper(golden: dict[str, Any]) -> None:
        golden["images"][1]["logit_margin"] += 0.1

    edit(copied, tamper)
    done, report = selftest("--seconds", "1", "--golden", str(copied))
    assert done.returncode == 1
    assert report["verdict"] == "differs"
    assert "BAD onnxruntime-cpu  above.png" in done.stdout
    (cpu,) = [item for item in report["backends"] if item["name"] == "onnxruntime-cpu"]
    assert cpu["timing"] is None  # what answers wrongly is not timed


def test_selftest_refuses_another_model_and_other_images(selftest: Selftest, copied: Path) -> None:
    edit(copied, lambda golden: golden["model"].update(sha256="0" * 64))
    done, report = selftest("--golden", str(copied))
    assert done.returncode == 6
    assert report["verdict"] == "nothing_to_run"
    assert "python tests/golden/make_selftest.py" in done.stderr
    (copied / "above.png").write_bytes((copied / "below.png").read_bytes())
    done, report = selftest("--golden", str(copied))
    assert done.returncode == 6
    assert "above.png: it is not the golden image" in report["message"]


def test_selftest_says_what_is_missing(selftest: Selftest, tmp_path: Path) -> None:
    done, report = selftest("--command", str(tmp_path / "gone"))
    assert done.returncode == 6
    assert "install it with jetson/install.sh" in report["message"]
    done, _ = selftest("--seconds", "-1")
    assert done.returncode == 2
    assert "--seconds: got -1.0" in done.stderr


STAND_IN = """#!{python}
# Stands for deepcovid-edge on a board with TensorRT: the real answers of the real model, by rote.
import json, os, sys
from pathlib import Path
golden = json.loads(Path({golden!r}).read_text())
images = {{image["file"]: image for image in golden["images"]}}
arguments = sys.argv[1:]
if arguments[0] == "info":
    model = golden["model"]
    backends = [
        {{"name": "onnxruntime", "available": True, "providers": ["cuda"]}},
        {{"name": "tensorrt", "available": {available}, "providers": []}},
    ]
    print(json.dumps({{"version": "0", "backends": backends, "models": [model], "problems": []}}))
elif arguments[0] == "build":
    assert arguments[1] == golden["model"]["name"] and arguments[2] == "--verify"
    folder = Path(arguments[arguments.index("-o") + 1])
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"plan")
    verdict = {{"verdict": {verdict!r}, "images": 3}}
    facts = {{"engine": {{"verification": verdict, "builder": {{"seconds": 1.0}}}}}}
    (folder / "model.json").write_text(json.dumps(facts))
    print("built")
    sys.exit(3)
elif "cuda" in arguments:
    print("Error: --provider cuda: ONNX Runtime fell back", file=sys.stderr)
    sys.exit(6)
else:
    assert arguments[arguments.index("--model") + 1].endswith("model.engine")
    named = [Path(text) for text in arguments[1 : arguments.index("--model")]]
    paths = [path for name in named for path in (name.iterdir() if name.is_dir() else [name])]
    for path in paths:
        image = images[path.name.split("-")[-1]]
        probability = image["probabilities"]["covid"] * {factor}
        print(json.dumps({{
            "path": str(path), "backend": "tensorrt-fp32", "probability": probability,
            "decision": image["decision"], "warnings": [], "timings_ms": {{"infer": 0.5}},
        }}))
"""


@pytest.mark.parametrize(
    ("available", "verdict", "factor", "code", "status"),
    [
        (True, "insufficient", 1.001, 0, "passed"),
        (True, "unchanged", 1.5, 1, "differs"),
        (True, "changed", 1.0, 1, "differs"),
        (False, "unchanged", 1.0, 6, "unavailable"),
    ],
)
def test_selftest_builds_verifies_and_compares_an_engine(
    selftest: Selftest,
    tmp_path: Path,
    available: bool,
    verdict: str,
    factor: float,
    code: int,
    status: str,
) -> None:
    text = STAND_IN.format(
        python=sys.executable,
        golden=str(GOLDEN / "golden.json"),
        available=available,
        verdict=verdict,
        factor=factor,
    )
    command = tmp_path / "deepcovid-edge"
    command.write_text(text)
    command.chmod(0o755)
    done, report = selftest("--command", str(command), "--seconds", "0.01")
    assert done.returncode == code, done.stdout + done.stderr
    states = {item["name"]: item["status"] for item in report["backends"]}
    assert states == {"onnxruntime-cuda": "unavailable", "tensorrt": status}
    (engine,) = [item for item in report["backends"] if item["name"] == "tensorrt"]
    if status == "passed":
        assert engine["build"]["verdict"] == verdict
        assert engine["build"]["facts"]["builder"] == {"seconds": 1.0}
        assert engine["timing"]["images_a_run"] == 300
        assert engine["timing"]["infer_ms_an_image_median"] == 0.5
    if not available:
        assert "info" in engine["message"]
