"""`evaluate`: every kind of model, more than two classes, and models side by side."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

for needed in ("sklearn", "torch", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed to make models")

import torch
from commands import command
from drawn_once import drawn_phantom
from exported_networks import export_checkpoint

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import DataError, OutputError, UsageError
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_export.cli.evaluate import summary
from deepcovid_export.evaluation import evaluate as measuring
from deepcovid_export.evaluation.evaluate import evaluate, evaluate_side_by_side
from deepcovid_export.evaluation.results import IF_MEASURED
from deepcovid_export.networks import build_network
from deepcovid_export.networks.checkpoint import save_checkpoint
from deepcovid_export.report import write as writing
from deepcovid_export.report.rendering import change_text
from deepcovid_export.report.write import Targets, as_json, write_report

CLASSES = {"healthy": ["normal"], "covid": ["covid"], "other": ["pneumonia", "tuberculosis"]}
LABELS = ("covid", "normal", "pneumonia", "tuberculosis")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(16):
        path = folder / f"{number:02d}.png"
        image = drawn_phantom(number, opacities=2 * (number % 4))
        cv2.imwrite(str(path), cv2.resize(image, None, fx=0.15, fy=0.15))
        made.append(LabelledImage(path, LABELS[number % 4], patient=f"p{number // 2}", view="PA"))
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three classes, of random weights."""
    torch.manual_seed(1)
    manifest = ModelManifest(
        "three",
        "squeezenet1_1",
        tuple(CLASSES),
        "covid",
        0.3,
        input=InputSpec(96, 96),
        training={"recipe": {"classes": CLASSES}},
    )
    path = tmp_path_factory.mktemp("model") / "checkpoint.pt"
    save_checkpoint(build_network("squeezenet1_1", 3).eval(), manifest, path)
    return path


def test_one_image_is_one_image(images: list[LabelledImage], checkpoint: Path) -> None:
    own = [replace(image, source=f"s{min(at, 1)}") for at, image in enumerate(images)]
    lines = summary(evaluate(checkpoint, own, description="phantoms").as_dict()).splitlines()
    counts = {line.split()[0]: line for line in lines if "AUC" in line}
    assert " 1 image   AUC" in counts["s0"]
    assert "15 images  AUC" in counts["s1"]
    assert counts["s0"].index("AUC") == counts["s1"].index("AUC")


def test_a_checkpoint_and_its_onnx_file_have_the_same_figures(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    model = checkpoint.with_name("three.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (2, 96, 96), dtype=np.uint8)
    export_checkpoint(checkpoint, model, noise)
    report = evaluate_side_by_side([checkpoint, model], images, description="phantoms")
    first, second = report.evaluations
    assert [it.backend.partition("-")[0] for it in (first, second)] == ["torch", "onnxruntime"]
    assert first.by_label == second.by_label
    (comparison,) = report.comparisons
    assert comparison.auc is not None
    assert comparison.auc.change == pytest.approx(0, abs=1e-6)
    assert comparison.auc.interval_95 is None
    assert change_text(comparison.auc.as_dict()) == "+0.000 [-]"
    for rate in (comparison.sensitivity, comparison.specificity):
        assert rate is not None
        assert (rate.lost, rate.gained) == (0, 0)


def test_three_classes_have_all_their_confusions(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    """Two labels of the data set belong to one class; the positive class is one of three."""
    figures = evaluate(checkpoint, images, description="phantoms")
    counts = np.array(figures.confusion.counts)
    assert figures.confusion.classes == ["healthy", "covid", "other"]
    assert counts.sum(axis=1).tolist() == [4, 4, 8]
    assert figures.overall.positives == 4
    assert figures.overall.specificity.trials == 12
    assert {name: it.positive for name, it in figures.by_label.items()} == {
        label: label == "covid" for label in LABELS
    }
    assert figures.bootstrap is not None
    assert figures.bootstrap.patients == 8
    assert set(figures.by_view) == {"PA"}


def test_the_json_of_an_evaluation_has_the_keys_of_the_stored_results(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    """Names and order, at every level; what is None in one of the two has no keys.

    What only some data have, such as several sources, is not compared.
    """

    def keys(found: Any, stored: Any) -> None:
        if isinstance(found, dict) and isinstance(stored, dict):
            if set(found) & set(stored):
                assert list(found) == list(stored)
                for name in found:
                    keys(found[name], stored[name])
        elif isinstance(found, list) and isinstance(stored, list) and found and stored:
            keys(found[0], stored[0])

    results = Path(__file__).parents[4] / "benchmarks/results/accuracy"
    stored = json.loads((results / "squeezenet1_1-test.json").read_text("utf-8"))
    found = evaluate(checkpoint, images, description="phantoms", shortcuts=True).as_dict()
    unlike = {"threshold_origin", "not_assessed", "histograms", "by_label", "by_source", "by_view"}
    assert [*found] == [name for name in stored if name not in IF_MEASURED]
    for name in set(found) - unlike:
        keys(found[name], stored[name])
    assert json.loads(as_json(found)) == found


def test_copies_of_an_image_are_counted_once(
    images: list[LabelledImage], checkpoint: Path, tmp_path: Path
) -> None:
    once = evaluate(checkpoint, images, description="phantoms", shortcuts=True)
    copy = replace(images[0], path=Path(shutil.copy(images[0].path, tmp_path / "other.png")))
    more = [images[1], *images, copy, copy]
    found = evaluate(checkpoint, more, description="phantoms", shortcuts=True)
    assert (found.images, found.repeated) == (16, 3)
    for name in ("overall", "by_label", "bootstrap", "shortcuts"):
        assert getattr(found, name) == getattr(once, name)
    assert "repeated" not in once.as_dict()
    both = evaluate_side_by_side([checkpoint, checkpoint], more, description="phantoms")
    assert both.comparisons[0].images == 16


@pytest.fixture(scope="module")
def figures(images: list[LabelledImage], checkpoint: Path) -> dict[str, Any]:
    """Of a page: sixteen images of eight patients, three of them copies."""
    for module in ("matplotlib", "jinja2"):
        pytest.importorskip(module, reason=f"{module} (extra export) makes the page")
    more = [*images, *images[:3]]
    return evaluate(checkpoint, more, description="phantoms", shortcuts=True).as_dict()


def page_of(figures: dict[str, Any], **changed: Any) -> str:
    from deepcovid_export.report.page import as_html

    return as_html({**figures, **changed})


def test_the_page_says_how_many_files_were_copies(figures: dict[str, Any]) -> None:
    said = "3 files have the content of an earlier file: counted once"
    assert page_of(figures).count(said) == 1
    once = {name: value for name, value in figures.items() if name != "repeated"}
    assert page_of(once).count(said) == 0


def test_the_page_says_what_a_cart_would_do_with_a_range_and_without(
    figures: dict[str, Any],
) -> None:
    would_do = "The row of the model's own threshold is what a cart would do; the others are chosen"
    assert would_do in page_of(figures)
    rate = figures["overall"]["specificity"]
    span = {"low": 0.2, "high": 0.4, "indeterminate": rate, "decided": figures["overall"]}
    for changed in ({"indeterminate_range": span}, {"out_of_distribution": rate}):
        page = page_of(figures, **changed)
        assert "what a cart would do" not in page
        assert "see “not assessed” and “too close to call” below. Rows of other" in page


def test_the_page_s_sentences_agree_with_its_rules(figures: dict[str, Any]) -> None:
    page = page_of(figures, model="one_cycle_resnet50_scratch")
    assert "<h1>one_cycle_resnet50_scratch on phantoms</h1>" in page
    assert "It reads the source if the whole interval with the lungs hidden (at 80% of" in page
    assert "right of the dotted line with the lungs hidden, it reads the source" not in page
    assert figures["bootstrap"]["auc"] is figures["bootstrap"]["sensitivity"] is None
    assert "There is none (\u2013) where a class has fewer than 10 patients, or" in page
    assert page.count("<td>\u2013</td>") == 3


def test_models_of_one_name_are_told_apart_by_precision_then_by_digest() -> None:
    from deepcovid_export.report.page import name_models

    def names(*fields: tuple[str, str]) -> list[str]:
        models = [
            {"model": "one_cycle_resnet50_scratch", "precision": precision, "model_sha256": digest}
            for precision, digest in fields
        ]
        return [name.removeprefix("one_cycle_resnet50_scratch") for name, _ in name_models(models)]

    assert names(("fp32", "a" * 64)) == [""]
    assert names(("fp32", "a" * 64), ("int8", "b" * 64)) == [" fp32", " int8"]
    assert names(("fp32", "a" * 64), ("fp32", "b" * 64)) == [f" fp32 {it * 16}" for it in "ab"]


@pytest.fixture(scope="module")
def with_soft_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two classes and a soft label, of random weights."""
    recipe = {
        "classes": {"non": ["normal"], "covid": ["covid"]},
        "soft_labels": {"indeterminate": 0.5},
    }
    manifest = ModelManifest(
        *("two", "squeezenet1_1", ("non", "covid"), "covid", 0.3),
        input=InputSpec(96, 96),
        training={"recipe": recipe},
    )
    path = tmp_path_factory.mktemp("soft") / "checkpoint.pt"
    save_checkpoint(build_network("squeezenet1_1", 2).eval(), manifest, path)
    return path


@pytest.mark.parametrize("soft", ["indeterminate", "normal"])
def test_one_image_under_two_labels_is_refused(
    soft: str, images: list[LabelledImage], with_soft_labels: Path
) -> None:
    """Also where one of the labels is no truth."""
    twice = [images[0], replace(images[0], label=soft)]
    with pytest.raises(DataError, match=f"the same image is labelled covid and {soft}"):
        evaluate(with_soft_labels, twice, description="phantoms")


@pytest.mark.parametrize("assessed", [0, 1])
def test_images_of_a_soft_label_that_are_not_assessed_are_counted(
    assessed: int, images: list[LabelledImage], with_soft_labels: Path, tmp_path: Path
) -> None:
    """They cost no other figure, not even where none is left."""
    (tmp_path / "broken.png").write_text("no image")
    soft = [replace(image, label="indeterminate") for image in images[2 : 2 + assessed]]
    soft.append(LabelledImage(tmp_path / "broken.png", "indeterminate"))
    found = evaluate(with_soft_labels, [*images[:2], *soft], description="phantoms")
    assert (found.images, found.overall.images) == (2, 2)
    assert found.not_assessed == {"E_NOT_IMAGE": 1}
    counts = {label: its.images for label, its in (found.soft_labels or {}).items()}
    assert counts == ({"indeterminate": 1} if assessed else {})
    assert "not assessed: 1 image: E_NOT_IMAGE" in summary(found.as_dict())


def test_a_label_of_no_class_is_named(images: list[LabelledImage], checkpoint: Path) -> None:
    unknown = [*images, replace(images[0], label="fracture")]
    with pytest.raises(DataError, match="label 'fracture' belongs to no class"):
        evaluate(checkpoint, unknown, description="phantoms")


def test_images_of_which_none_can_be_read_are_no_zero(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(DataError, match="test: none of 1 images was assessed"):
        evaluate(checkpoint, [LabelledImage(tmp_path / "broken.png", "covid")], description="test")


def test_one_model_is_not_compared(images: list[LabelledImage], checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="expected two or more"):
        evaluate_side_by_side([checkpoint], images, description="phantoms")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (None, (None, None)),
        ("x.json", ("x.json", None)),
        ("x.html", (None, "x.html")),
        ("runs/v1.2", ("runs/v1.2/report.json", "runs/v1.2/report.html")),
    ],
)
def test_the_output_decides_what_is_written(
    output: str | None, names: tuple[str | None, str | None]
) -> None:
    targets = Targets.of(Path(output) if output else None)
    assert targets == Targets(*(Path(name) if name else None for name in names))


def test_an_output_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a folder, FILE\.json or FILE\.html"):
        Targets.of(Path("x.csv"))


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"taken/x\.json: cannot be written"):
        write_report({}, Targets(tmp_path / "taken" / "x.json", None))


def test_lists_of_numbers_stand_on_one_line_and_nothing_changes() -> None:
    report = {"curve": [0.5, 1e-07, -2, 3], "text": "[ 1,  2 ]", "rows": [{"x": [1]}], "none": []}
    text = as_json(report)
    assert json.loads(text) == report
    assert '"curve": [0.5, 1e-07, -2, 3]' in text


@pytest.fixture(scope="module")
def folder(images: list[LabelledImage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the images and one of a soft label that is none, as DATA of the command line."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "broken.png").write_text("no image")
    rows = [f"{it.path},{it.label}" for it in images[:2]]
    rows.append("broken.png,indeterminate")
    (folder / "manifest.csv").write_text("\n".join(["path,label", *rows]))
    return folder


def test_an_image_of_a_soft_label_that_is_not_assessed_gives_exit_code_4(
    folder: Path, with_soft_labels: Path
) -> None:
    done = command("evaluate", with_soft_labels, folder)
    assert done.returncode == 4, done.stderr
    assert "not assessed: 1 image: E_NOT_IMAGE" in done.stdout


def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(
    folder: Path, with_soft_labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "evaluate", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "taken").write_text("")
    for output in ("taken/x.json", "taken/x.html", "taken"):
        done = command("evaluate", with_soft_labels, folder, "-o", tmp_path / output)
        assert done.returncode == 1
        assert re.fullmatch(r"Error: .*/taken.*: cannot be written: .*\n", done.stderr)


def test_figures_are_printed_where_they_cannot_be_written(
    folder: Path, with_soft_labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OutputError("x.json: cannot be written: No space left on device")

    monkeypatch.setattr(writing, "write_report", fail)
    done = command("evaluate", with_soft_labels, folder, "-o", tmp_path / "x.json")
    assert done.returncode == 1
    assert "all images" in done.stdout
    assert done.stderr == "Error: x.json: cannot be written: No space left on device\n"
