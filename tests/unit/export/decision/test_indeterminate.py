"""The indeterminate range spans what other images would have given, and stays rare."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

import cv2
from drawn_once import drawn_phantom
from PIL import Image

from deepcovid_edge.datasets.dataset import dataset_sha256, load_dataset
from deepcovid_edge.decision.thresholds import threshold_for_new_images
from deepcovid_edge.errors import UsageError
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import IndeterminateRange, read_manifest
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_export.cli.export import _fit_indeterminate_range
from deepcovid_export.decision.indeterminate import (
    IndeterminateSettings,
    fit_indeterminate_range,
    fit_model_indeterminate_range,
    threshold_rule,
)
from deepcovid_export.evaluation.evaluate import evaluate
from deepcovid_export.evaluation.metrics import Scores, Truth
from deepcovid_export.onnx_export.to_onnx import rewrite_manifest
from deepcovid_export.report.model_card import card


def rule(scores: Scores, positive: Truth) -> float:
    return threshold_for_new_images(scores, positive, 0.95)[0]


def drawn(seed: int, count: int = 100) -> tuple[Scores, Truth]:
    draw = np.random.default_rng(seed)
    return np.concatenate([draw.beta(5, 2, count), draw.beta(2, 5, count)]), np.arange(
        2 * count
    ) < count


def test_it_holds_the_thresholds_that_other_images_would_have_given() -> None:
    """Of new sets of images about 19 in 20 give a threshold within the indeterminate range."""
    held = 0
    for seed in range(20):
        scores, positive = drawn(seed)
        wide = IndeterminateSettings(most=1.0, replicates=300)
        indeterminate_range = fit_indeterminate_range(
            scores, positive, rule(scores, positive), rule=rule, settings=wide
        )
        truth = np.median([rule(*drawn(1000 + k)) for k in range(40)])
        held += indeterminate_range.low <= truth < indeterminate_range.high
    assert held >= 16


def test_it_holds_the_threshold_and_at_most_one_image_in_twenty() -> None:
    for seed in range(10):
        scores, positive = drawn(seed)
        threshold = rule(scores, positive)
        indeterminate_range = fit_indeterminate_range(scores, positive, threshold, rule=rule)
        assert indeterminate_range.low <= threshold <= indeterminate_range.high
        held = int(
            ((scores >= indeterminate_range.low) & (scores < indeterminate_range.high)).sum()
        )
        assert held == indeterminate_range.origin["indeterminate"] <= 10
        assert indeterminate_range.origin["spanned"][0] - 1e-6 <= indeterminate_range.low
        assert indeterminate_range.high <= indeterminate_range.origin["spanned"][1] + 1e-6


@pytest.mark.parametrize("most", [0.0, 0.02, 0.05, 0.5, 1.0])
def test_it_is_narrowed_no_further_than_it_must(most: float) -> None:
    scores, positive = drawn(3)
    found = fit_indeterminate_range(
        scores,
        positive,
        rule(scores, positive),
        rule=rule,
        settings=IndeterminateSettings(most=most),
    )
    wide = fit_indeterminate_range(
        scores,
        positive,
        rule(scores, positive),
        rule=rule,
        settings=IndeterminateSettings(most=1.0),
    )
    held = found.origin["indeterminate"]
    assert held == min(int(most * len(scores)), wide.origin["indeterminate"])


def test_the_same_images_give_the_same_band_whatever_their_order() -> None:
    scores, positive = drawn(0)
    patients = [f"p{number}" for number in range(len(scores))]
    first = fit_indeterminate_range(scores, positive, 0.4, rule=rule, patients=patients)
    assert fit_indeterminate_range(scores, positive, 0.4, rule=rule, patients=patients) == first


def test_patients_are_drawn_not_images() -> None:
    """With ten images each, patients are fewer, so the indeterminate range is wider."""
    scores, positive = drawn(0, 100)
    scores, positive = np.repeat(scores[::10], 10), np.repeat(positive[::10], 10)
    patients = [f"p{number // 10}" for number in range(len(scores))]
    settings = IndeterminateSettings(most=1.0)
    threshold = rule(scores, positive)
    by_patient = fit_indeterminate_range(
        scores, positive, threshold, rule=rule, patients=patients, settings=settings
    )
    by_image = fit_indeterminate_range(scores, positive, threshold, rule=rule, settings=settings)
    assert by_patient.high - by_patient.low > by_image.high - by_image.low


@pytest.mark.parametrize("change", [{"most": -0.1}, {"confidence": 1.0}, {"replicates": 10}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="indeterminate_range"):
        IndeterminateSettings(**change)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(5):
        for label, opacities in (("normal", 0), ("covid", 5)):
            path = folder / "val" / label / f"{seed:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = cv2.resize(drawn_phantom(seed, opacities=opacities), (224, 224)).astype(
                np.uint8
            )
            save_phantom(image, path)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copy(find_model("squeezenet1_1"), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_it_is_written_into_the_model_file_and_nothing_else_changes(
    model: Path, data: Path
) -> None:
    before = read_manifest(model)
    manifest = fit_model_indeterminate_range(model, load_dataset(data, split="val"))
    assert manifest.indeterminate_range is not None
    assert manifest.indeterminate_range.origin["images"] == 10
    assert len(manifest.indeterminate_range.origin["data_sha256"]) == 64
    again = read_manifest(model)
    assert again.indeterminate_range == manifest.indeterminate_range
    assert replace(again, indeterminate_range=None) == replace(before, indeterminate_range=None)


def test_a_threshold_without_a_rule_has_no_indeterminate_range(model: Path) -> None:
    manifest = replace(read_manifest(model), threshold_origin={"rule": "given by hand"})
    with pytest.raises(UsageError, match="was not chosen on val"):
        threshold_rule(manifest)


def test_evaluate_says_what_is_right_among_the_images_that_are_called(
    model: Path, data: Path
) -> None:
    images = load_dataset(data, split="val")
    rewrite_manifest(model, replace(read_manifest(model), indeterminate_range=None))
    plain = evaluate(model, images, description="val")
    assert plain.indeterminate_range is None
    threshold = plain.threshold
    rewrite_manifest(
        model, replace(read_manifest(model), indeterminate_range=IndeterminateRange(0.0, threshold))
    )
    found = evaluate(model, images, description="val")
    called = plain.overall.sensitivity.successes
    negative = plain.overall.specificity.successes
    span = found.indeterminate_range
    assert span is not None
    assert span.indeterminate.successes == 10 - called - (5 - negative)
    assert span.decided.sensitivity.successes == called
    assert found.overall == plain.overall


@pytest.mark.parametrize("limit", [0.3, 0.7, 50.0])
def test_evaluate_counts_what_infer_answers(
    model: Path, data: Path, tmp_path: Path, limit: float
) -> None:
    """An image beyond the out-of-distribution limits is neither decided nor too close to call."""
    manifest = read_manifest(model)
    limits = {**manifest.ood, "limit": limit, "strict_limit": limit}
    span = IndeterminateRange(0.05, max(manifest.threshold, 0.5))
    rewrite_manifest(model, replace(manifest, ood=limits, indeterminate_range=span))
    for path in data.rglob("*.png"):  # without their mark: `infer` answers synthetic images anyway
        copy = tmp_path / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(copy)
    images = load_dataset(tmp_path, split="val")
    with Model(str(model), variant="fp32") as opened:
        answers = [answer.decision for answer in opened.predict(image.path for image in images)]
    found = evaluate(model, images, description="val").indeterminate_range
    assert found is not None
    assert found.indeterminate.successes == answers.count("indeterminate")
    assert found.indeterminate.trials == len(answers) - answers.count(None)
    counted = answers.count("positive") + answers.count("negative")
    decided = found.decided
    assert decided.sensitivity.trials + decided.specificity.trials == counted
    assert found.decided_images == counted


def test_the_card_says_what_is_too_close_to_call() -> None:
    path = find_model("squeezenet1_1")
    manifest = replace(
        read_manifest(path),
        indeterminate_range=IndeterminateRange(0.02, 0.5, {"rule": "the middle"}),
    )
    half = {"value": 0.5, "interval_95": [0.4, 0.6], "successes": 5, "trials": 10}
    group = {"images": 10, "auc": None, "sensitivity": half, "specificity": half}
    figures = {"sensitivity": half, "specificity": half}
    evaluation = {
        "data": "test",
        "indeterminate_range": {"indeterminate": half, "decided": figures},
        "overall": group,
        "by_source": {},
        "shortcuts": None,
        "images": 10,
    }
    text = card(manifest, path, [evaluation], [])
    assert "| too close to call | 0.0200 to 0.5000: the middle |" in text
    assert "| test | not measured | 50.0% [40.0%, 60.0%] | 50.0% [40.0%, 60.0%] (5/10) |" in text
    assert "too close to call" not in card(
        replace(manifest, indeterminate_range=None), path, [evaluation], []
    )


def test_a_model_without_children_and_with_an_unverified_variant_has_a_card(tmp_path: Path) -> None:
    path = find_model("squeezenet1_1")
    manifest, own = read_manifest(path), Path(shutil.copy(path, tmp_path / "own.onnx"))
    variant = find_model("squeezenet1_1-int8-cpu")
    beside = Path(shutil.copy(variant, tmp_path / "own-int8-cpu.onnx"))
    facts = {
        name: it for name, it in read_manifest(beside).quantization.items() if name != "verified"
    }
    rewrite_manifest(beside, replace(read_manifest(beside), quantization=facts))
    limits = {name: it for name, it in manifest.ood.items() if name != "children"}
    text = card(replace(manifest, ood=limits), own, [], [])
    assert "; not verified; layers left in FP32: `features.0`" in text
    assert "The children of `paediatric`" not in text


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"recognised_when_left_out": 76},
            "so that 95 % of the children that a fit had not seen are recognised: 76 of 81",
        ),
        (
            {"recognised_held_out": 70},
            "Of 81 children that had no part in fit or unit, 70 were recognised.",
        ),
    ],
)
def test_the_card_says_whether_children_were_held_out(facts: dict[str, int], sentence: str) -> None:
    path = find_model("squeezenet1_1")
    manifest = read_manifest(path)
    ood = {**manifest.ood, "children": {"images": 81, **facts}}
    half = {"value": 0.5, "interval_95": [0.4, 0.6], "successes": 5, "trials": 10}
    evaluation = {
        "data": "test",
        "indeterminate_range": {
            "indeterminate": half,
            "decided": {"sensitivity": half, "specificity": half},
        },
        "overall": {"images": 10, "auc": None, "sensitivity": half, "specificity": half},
        "by_source": {},
        "shortcuts": None,
        "images": 10,
    }
    assert sentence in card(replace(manifest, ood=ood), path, [evaluation], [])


def test_a_range_of_other_images_than_those_of_the_threshold_is_reported(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, other = load_dataset(data, split="val"), "not the images of val"
    _fit_indeterminate_range(model, images)
    assert other in capsys.readouterr().err
    manifest = read_manifest(model)
    training = {**manifest.training, "val_sha256": dataset_sha256(images)}
    rewrite_manifest(model, replace(manifest, training=training))
    _fit_indeterminate_range(model, images)
    assert other not in capsys.readouterr().err


def test_infer_says_indeterminate_unless_told_otherwise(model: Path, data: Path) -> None:
    rewrite_manifest(
        model, replace(read_manifest(model), indeterminate_range=IndeterminateRange(0.0, 1.0))
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "deepcovid_edge",
        "infer",
        data,
        "--model",
        model,
    ]

    def decisions(*options: str) -> tuple[set[str], str]:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        return {json.loads(line)["decision"] for line in done.stdout.splitlines()}, done.stderr

    found, said = decisions()
    assert found == {"indeterminate"}
    assert "0 positive, 0 negative, 10 indeterminate, 0 not assessed" in said
    assert "indeterminate" not in decisions("--no-indeterminate")[0]
    assert decisions("--threshold", "0")[0] == {"positive"}
