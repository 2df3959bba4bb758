"""What the Makefile would run: `make -n`, which runs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deepcovid_edge.manifest import read_manifest

ROOT = Path(__file__).parents[2]
PLACES = {"squeezenet1_1": "deepcovid_edge/models", "resnet18": "benchmarks/models"}
LABELS_OF_SIIM = {"covid", "no_pneumonia", "indeterminate", "atypical"}


def planned(target: str) -> list[str]:
    """The commands of a target, each on one line."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed: apt-get install make")
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of `make test`, which runs this
    done = subprocess.run(
        ["make", "-n", target, "DATA=/data", "SIIM=/siim", "SITES=/sites"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in outer},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("model", PLACES)
def test_a_model_is_evaluated_on_siim_if_it_knows_the_labels(model: str) -> None:
    manifest = read_manifest(ROOT / PLACES[model] / f"{model}.onnx")
    known = manifest.known_labels | manifest.soft_labels
    evaluations = [line for line in planned(f"model-{model}") if " evaluate " in line]
    assert any(" /siim " in line for line in evaluations) == (known >= LABELS_OF_SIIM)
    assert any(" /sites " in line for line in evaluations)


@pytest.mark.parametrize("model", PLACES)
def test_heat_maps_of_variants_are_compared_if_that_is_stored(model: str) -> None:
    stored = f"benchmarks/results/heatmap/precision-{model}-int8-cpu.json"
    compared = [line for line in planned(f"variants-{model}") if " --heatmap " in line]
    assert len(compared) == (ROOT / stored).is_file()
    assert all(f" -o {stored} " in line for line in compared)
