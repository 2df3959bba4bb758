"""Real radiographs through the shipped model: counts, stored figures, and agreement with torch."""

from __future__ import annotations

import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
RESULTS = ROOT / "benchmarks/results/accuracy"
pytestmark = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)


@functools.cache
def infer(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and records; a folder is classified once for all tests."""
    command = [sys.executable, "-m", "deepcovid_edge", "infer", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def children() -> set[str]:
    """Names of the images that the manifest marks as those of children."""
    rows = csv.DictReader((XRAY / "manifest.csv").read_text().splitlines())
    return {Path(row["path"]).name for row in rows if row["paediatric"] == "1"}


@pytest.mark.parametrize(("folder", "count"), [("test", 253), ("original", 24)])
def test_every_real_image_of_an_adult_is_assessed(folder: str, count: int) -> None:
    _, records = infer(XRAY / folder)
    assert len(records) == count
    refused = {Path(record["path"]).name: record["reason"] for record in records}
    refused = {name: reason for name, reason in refused.items() if reason}
    assert set(refused) <= children()
    assert set(refused.values()) <= {"E_AGE"}


def test_children_are_not_assessed_and_hardly_any_adult_is_taken_for_one() -> None:
    """`paediatric` was fitted on: this shows that the fit is in the file, not how good it is."""
    _, records = infer(XRAY / "paediatric")
    assert [record["reason"] for record in records].count("E_AGE") >= 0.9 * len(records)
    for name in ("test", "external", "siim-test", "sites-external"):
        stored = json.loads((RESULTS / f"squeezenet1_1-{name}.json").read_text())
        assert stored["out_of_distribution"]["value"] <= 0.02, name


def test_untouched_originals_get_the_decision_of_their_reduced_copies() -> None:
    """Formats, sizes and colour modes differ; at most two of 24 may change sides."""
    rows = csv.DictReader((XRAY / "original/manifest.csv").read_text().splitlines())
    copies = {Path(row["path"]).name: row for row in rows}
    decisions = {Path(r["path"]).name: r["decision"] for r in infer(XRAY / "test")[1]}
    changed = [
        name
        for name, decision in (
            (Path(r["path"]).name, r["decision"]) for r in infer(XRAY / "original")[1]
        )
        if decision != decisions[Path(copies[name]["test_path"]).name]
    ]
    assert len(changed) <= 2, changed


@pytest.mark.parametrize("split", ["test", "external", "paediatric"])
def test_stored_figures_of_the_shipped_model_come_out_again(split: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn (extra export) computes the figures")
    from deepcovid_export.evaluation.evaluate import evaluate

    images = load_dataset(XRAY, split=split)
    measured = evaluate(find_model("squeezenet1_1"), images, description=split).as_dict()
    stored = json.loads((RESULTS / f"squeezenet1_1-{split}.json").read_text())
    assert measured["model_sha256"] == stored["model_sha256"]
    for rate in ("sensitivity", "specificity"):
        for count in ("successes", "trials"):
            assert measured["overall"][rate][count] == stored["overall"][rate][count]
    assert measured["overall"]["auc"] == pytest.approx(stored["overall"]["auc"], abs=1e-4)


def test_shipped_model_reads_lungs_and_holds_at_a_hospital_it_has_never_seen() -> None:
    stored = {
        name: json.loads((RESULTS / f"squeezenet1_1-{name}.json").read_text())
        for name in ("test", "siim-test", "external")
    }
    assert stored["test"]["overall"]["auc"] >= 0.93
    assert stored["siim-test"]["overall"]["auc"] >= 0.89
    for name in ("test", "siim-test"):
        shortcuts = stored[name]["shortcuts"]
        assert shortcuts["lungs_hidden"]["auc"] <= 0.60
        assert shortcuts["lungs_only"]["auc"] >= 0.90
    within = stored["external"]["shortcuts"]["within_source"]
    assert within["agchung/Actualmed-COVID-chestxray-dataset"]["auc"] >= 0.90
    (activation,) = (
        it for it in stored["siim-test"]["localisation"] if it["method"] == "activation"
    )
    assert activation["pointing_game"]["value"] >= 0.90


def test_shipped_graph_computes_what_torch_computes_on_64_real_images() -> None:
    """The weights are taken out of the shipped ONNX file and put into the torch network."""
    torch = pytest.importorskip("torch", reason="torch (extra export) is the other side")
    import onnx
    from onnx import numpy_helper

    from deepcovid_export.networks import build_network
    from deepcovid_export.onnx_export.to_onnx import TOLERANCE, compare

    path = find_model("squeezenet1_1")
    manifest = read_manifest(path)
    network = build_network(manifest.architecture, len(manifest.classes)).eval()
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    state = {name: torch.from_numpy(stored[name].copy()) for name in network.state_dict()}
    network.load_state_dict(state)
    images = load_dataset(XRAY, split="val")[:64]
    pixels = np.stack([prepare(read_radiograph(image.path), manifest.input) for image in images])
    parity = compare(network, path, pixels)
    assert parity.images == 64
    assert parity.max_logit_difference <= TOLERANCE
