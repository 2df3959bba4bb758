"""What `make aarch64` finds is named, and what it may differ by is bounded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aarch64.chroot import Chroot
from aarch64.comparison import MOST_FP32, broken_rules, compared
from aarch64.decisions import read_results
from aarch64.processors import PROCESSORS

ROOT = Path(__file__).parents[2]
LIMITS = {"low": 0.03, "high": 0.5}


def image(name: str, probability: float | None, decision: str | None, **more: Any) -> Any:
    known = {"pixels": "p", "logits": [0.0, 1.0], "ood_scores": [0.5], "warnings": []}
    status = "not_assessed" if probability is None else "assessed"
    return {
        "image": name,
        "status": status,
        "reason": "E_UNREADABLE" if probability is None else None,
        "decision": decision,
        "probability": probability,
        **known,
        **more,
    }


def results(*images: Any) -> dict[str, Any]:
    return {"limits": LIMITS, "images": [*images]}


def test_a_flip_is_named_with_its_distance_to_the_nearest_limit() -> None:
    own, other = np.array([[7, 8], [9, 9]], np.uint8), np.array([[7, 8], [9, 7]], np.uint8)
    one = results(image("a", 0.51, "positive", prepared=own), image("b", 0.2, "indeterminate"))
    later = results(
        image("a", 0.48, "indeterminate", logits=[0.0, 0.75], pixels="q", prepared=other),
        image("b", 0.2, "indeterminate"),
    )
    found = compared(one, later)
    (flip,) = found["flips"]
    assert (flip["image"], flip["from"], flip["to"]) == ("a", "positive", "indeterminate")
    assert flip["distance_to_the_limit"] == pytest.approx(0.01)
    assert found["probability_apart_most"] == pytest.approx(0.03)
    assert found["logits_apart_most"] == 0.25
    assert (found["pixels_equal"], found["logits_equal"]) == (1, 1)
    assert found["pixels_apart"] == {"levels_most": 2.0, "share_most": 0.25}


def test_an_image_that_only_one_processor_assesses_is_a_flip() -> None:
    found = compared(results(image("a", 0.9, "positive")), results(image("a", None, None)))
    assert [flip["to"] for flip in found["flips"]] == ["E_UNREADABLE"]
    assert found["probability_apart_most"] == 0


def test_fp32_may_not_flip_and_int8_only_in_one_of_a_hundred() -> None:
    alike = {"levels_most": 1.0, "share_most": 0.001}
    found = {"images": 253, "pixels_apart": alike, "probability_apart_most": 0.0, "flips": [{}] * 2}
    assert broken_rules(found, "int8-cpu") == []
    assert broken_rules(found, "fp32") == ["fp32: 2 of 253 decisions differ"]
    assert broken_rules({**found, "flips": [{}] * 3}, "int8-cpu")
    far = {**found, "flips": [], "probability_apart_most": 2 * MOST_FP32}
    far["pixels_apart"] = {**alike, "levels_most": 2.0}
    assert len(broken_rules(far, "fp32")) == 2


def test_an_installation_with_a_pycuda_of_another_cuda_is_broken() -> None:
    from aarch64.jetpacks import _why_broken

    row = {"exit_codes": [0, 0], "second_run_changes_nothing": True, "error": ""}
    python = "/usr/bin/python3 is Python 3.11, JetPack 6.2 has 3.10"
    assert not _why_broken({**row, "warnings": [python]})
    built = "pycuda was built with CUDA 12.6, here is 13.0: remove /opt/edge and install again"
    assert _why_broken({**row, "warnings": [python, built]}) == built
    assert _why_broken({**row, "warnings": [], "exit_codes": [6, 0], "error": "nvcc"}) == "nvcc"
    assert _why_broken({**row, "warnings": [], "second_run_changes_nothing": False})


def test_results_that_were_broken_off_are_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs extra cpu")
    from aarch64.classify import known

    output = tmp_path / "out.jsonl"
    output.write_text('{"variant": "fp32"}\n{"image": "a"}\n{"image": "b", "prob')
    assert known(output, '{"variant": "fp32"}') == ['{"variant": "fp32"}', '{"image": "a"}']
    assert known(output, '{"variant": "int8-cpu"}') == ['{"variant": "int8-cpu"}']
    assert read_results_of(output)["variant"] == "fp32"


def read_results_of(output: Path) -> dict[str, Any]:
    output.write_text("\n".join(output.read_text().splitlines()[:2]) + "\n")
    return read_results(output)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_described_as_an_aarch64_kernel_does(name: str) -> None:
    processor = PROCESSORS[name]
    lines = processor.cpuinfo(cores=3).splitlines()
    assert [line for line in lines if line.startswith("processor")] == [
        "processor\t: 0",
        "processor\t: 1",
        "processor\t: 2",
    ]
    assert ("asimddp" in processor.features.split()) == processor.has_dot_product
    assert all(re.fullmatch(r"[\w ]+?\t*: \S.*", line) for line in lines if line)


def test_what_a_program_does_in_its_namespace_ends_with_it(tmp_path: Path) -> None:
    """Also where it is killed for being late: nothing stays mounted."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    for folder in ("proc", "sys", "dev", "srv"):
        (tmp_path / folder).mkdir()
    done = Chroot(tmp_path, "none").run("true", limit_s=20)
    if "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 127, done.stderr  # there is no program in it
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_what_is_not_there_is_named_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aarch64.run import main

    monkeypatch.setattr(sys, "argv", ["run", "--root", str(tmp_path), "--data", str(tmp_path)])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    main()
    assert "not run: a chroot and its mounts need root" in capsys.readouterr().out
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    main()
    assert "make test" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_command_of_the_makefile_starts() -> None:
    found = re.search(r"RUN_AARCH64 = (.*) \$\(AARCH64\)", (ROOT / "Makefile").read_text())
    assert found
    command = found[1].replace("$(DEV)/python", sys.executable) + " --help"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--short" in done.stdout
