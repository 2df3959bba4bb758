"""The command that writes a model card: which results it needs, and what it says of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 (extra export) makes the card")

from click.testing import CliRunner, Result

from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.report.model_card import main

MODEL = find_model("squeezenet1_1")
RESULTS = Path(__file__).parents[4] / "benchmarks/results/accuracy"


def write_card(results: Path, model: Path = MODEL) -> Result:
    words = [str(model), "--results", str(results), "-o", str(results / "card.md")]
    return CliRunner().invoke(main, words)


def test_a_card_of_test_alone_speaks_of_no_other_images(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "squeezenet1_1-test.json", tmp_path)
    shutil.copy(RESULTS / "paper_squeezenet1_1-external.json", tmp_path)
    done = write_card(tmp_path)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "| **test** | 253 |" in text
    for absent in ("- `external` comes", "- `paediatric` holds", "What to expect", "paper's way"):
        assert absent not in text


def test_results_of_the_paper_stand_beside_those_on_the_same_images(tmp_path: Path) -> None:
    for name in ("squeezenet1_1-test", "squeezenet1_1-paediatric", "paper_squeezenet1_1-test"):
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    shutil.copy(RESULTS / "paper_squeezenet1_1-external.json", tmp_path)
    assert write_card(tmp_path).exit_code == 0
    rows = (tmp_path / "card.md").read_text("utf-8").partition("paper's way")[2].splitlines()
    found = [row.split("|")[1:3] for row in rows if row.startswith("| ") and "squeezenet" in row]
    assert found == [[" squeezenet1_1 ", " test "], [" paper_squeezenet1_1 ", " test "]]


def test_without_results_the_command_says_how_to_make_them(tmp_path: Path) -> None:
    done = write_card(tmp_path)
    needed = tmp_path / "squeezenet1_1-test.json"
    assert done.exit_code == 1
    assert done.output == (
        f"Error: {needed}: no such file; make it with `deepcovid-edge evaluate {MODEL} DATA "
        f"--split test --shortcuts -o {needed}`\n"
    )


def test_results_of_another_file_are_named(tmp_path: Path) -> None:
    figures = json.loads((RESULTS / "squeezenet1_1-test.json").read_text("utf-8"))
    other = {**figures, "model_sha256": "0" * 64}
    (tmp_path / "squeezenet1_1-test.json").write_text(json.dumps(other))
    done = write_card(tmp_path)
    assert done.exit_code == 1
    assert "the figures of squeezenet1_1 on test are of another file (SHA-256 0000" in done.output


@pytest.mark.parametrize(
    ("origin", "training", "said"),
    [
        (
            {"rule": "given with --threshold; not chosen on data by deepcovid-edge"},
            {"start": "state dict old.pth, trained elsewhere", "export": {"images": 8}},
            ("Start: state dict old.pth, trained elsewhere.", "0.1536: given with --threshold;"),
        ),
        ({}, {}, ("| threshold | 0.1536: not known how it was chosen |",)),
    ],
    ids=["published", "unknown"],
)
def test_a_network_trained_elsewhere_gets_a_card_that_says_what_is_not_known(
    tmp_path: Path, origin: dict[str, Any], training: dict[str, Any], said: tuple[str, ...]
) -> None:
    pytest.importorskip("onnx", reason="onnx (extra export) writes the manifest")
    from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

    model = tmp_path / "old.onnx"
    shutil.copy(MODEL, model)
    old = replace(read_manifest(MODEL), name="old", threshold_origin=origin, training=training)
    rewrite_manifest(model, replace(old, indeterminate_range=None, ood={}, license=""))
    for part in ("test", "external"):
        figures = json.loads((RESULTS / f"squeezenet1_1-{part}.json").read_text("utf-8"))
        figures |= {"model_sha256": file_sha256(model)}
        (tmp_path / f"old-{part}.json").write_text(json.dumps(figures))
    done = write_card(tmp_path, model)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "card.md").read_text("utf-8")
    for words in (*said, "trained elsewhere to tell `covid` from `non`.", "Not known: on which"):
        assert words in text
    for absent in ("made by", "public collections", "chosen on `val`", "NIH labels"):
        assert absent not in text


def test_the_card_states_the_rule_by_which_a_model_reads_the_source(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "squeezenet1_1-test.json", tmp_path)
    assert write_card(tmp_path).exit_code == 0
    text = " ".join((tmp_path / "card.md").read_text("utf-8").split())
    for words in (
        "reads the source if the whole 95 % interval of the AUC with the lungs hidden lies above",
        "The interval is the wider of those over images, shown here, and over patients.",
        "If only the AUC lies above, or both do but a class has fewer than 10 patients, there",
    ):
        assert words in text
