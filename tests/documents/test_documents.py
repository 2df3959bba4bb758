"""Documents do not lie: README commands run and print what it says, tables and cards are fresh."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from deepcovid_edge.imaging.phantom import draw_phantom, save_phantom

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
STEPS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(BLOCKS), re.MULTILINE)
# Without a network there are no ImageNet weights, and one epoch shows the way as well as 24.
SHORTER = {"deepcovid-edge train": " --from-scratch --epochs 1"}
NOT_RUN = "pip install"  # the environment that runs this test is already the result of it
WORKSTATION = ("deepcovid-edge train", "deepcovid-edge export", "runs/", "first.onnx")
NUMBER = re.compile(r"\d+\.\d+(e-\d+)?")
DIGEST = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for seed in range(24):
        for label, opacities in (("normal", 0), ("covid", 5)):
            path = folder / "data" / label / f"{label}{seed:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = draw_phantom(seed, opacities=opacities)
            save_phantom(cv2.resize(image, (300, 300), interpolation=cv2.INTER_CUBIC), path)
    return folder


def test_readme_shows_the_whole_way() -> None:
    commands = " ".join(command for command, _ in STEPS)
    for verb in ("sample", "infer", "train", "export"):
        assert f"deepcovid-edge {verb}" in commands


@pytest.mark.int8
@pytest.mark.parametrize(("command", "expected"), STEPS, ids=[command for command, _ in STEPS])
def test_readme_command_does_what_it_says(place: Path, command: str, expected: str) -> None:
    """The commands run in their order, in one folder."""
    if command.startswith(NOT_RUN):
        return
    if any(part in command for part in WORKSTATION):
        pytest.importorskip("torch", reason="the workstation side needs extra export")
    for start, more in SHORTER.items():
        if command.startswith(start):
            command += more
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    if "infer" in command or "results" in command:
        from deepcovid_edge.device.processor import computes_int8_exactly

        if not computes_int8_exactly():
            pytest.skip("README shows the INT8 variant; this processor runs the FP32 one")
    if expected:
        assert comparable(done.stdout + done.stderr) == comparable(expected)


def comparable(text: str) -> list[str]:
    """Lines without timings and digests, numbers to one digit: processors and codecs differ."""
    lines = [DIGEST.sub("", line).rstrip() for line in text.splitlines() if line.strip()]
    timing = re.compile(r'"(read|preprocess|infer|total)":')
    kept = [line for line in lines if not timing.search(line)]
    return [NUMBER.sub(lambda number: f"{float(number[0]):.1f}", line) for line in kept]


def test_generated_tables_are_fresh() -> None:
    command = [sys.executable, "-m", "benchmarks.tables.write", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_cards_are_those_of_the_shipped_models() -> None:
    from deepcovid_edge.backends import INT8_CPU_SUFFIX
    from deepcovid_edge.models import shipped_models
    from deepcovid_export.report.model_card import card_from_results

    cards = [path for name, path in shipped_models().items() if INT8_CPU_SUFFIX not in name]
    assert cards
    for path in cards:
        fresh = card_from_results(path, ROOT / "benchmarks/results/accuracy")
        assert path.with_suffix(".md").read_text("utf-8") == fresh


def test_every_link_in_the_documents_leads_somewhere() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        document = ROOT / name
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{name}: {target}"


def test_readme_has_at_most_three_badges() -> None:
    assert (ROOT / "README.md").read_text("utf-8").count("![") <= 3
