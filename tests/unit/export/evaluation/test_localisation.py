"""Heat maps against readers' boxes: figures of maps that are known, and of a real network."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

for needed in ("sklearn", "torch"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed")

import torch
from drawn_once import drawn_phantom

from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import DataError
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.manifest import IndeterminateRange, InputSpec, ModelManifest
from deepcovid_export.evaluation.evaluate import evaluate
from deepcovid_export.evaluation.localisation import (
    LocalisationSettings,
    localisation_of,
    measure_localisation,
)
from deepcovid_export.networks import build_network
from deepcovid_export.networks.checkpoint import save_checkpoint

INSIDE = np.zeros((10, 10), bool)
INSIDE[2:6, 2:7] = True  # 20 of 100 pixels
FEW = LocalisationSettings(2, OcclusionSettings(window=32, stride=32))


def test_a_map_that_is_the_box_is_perfect() -> None:
    found = localisation_of("activation", [INSIDE.astype(np.float32)], [INSIDE])
    assert found.chance == pytest.approx(0.2)
    assert found.pointing_game.value == found.inside == found.overlap == 1


def test_a_map_of_the_rest_has_nothing_in_the_box() -> None:
    found = localisation_of("activation", [(~INSIDE).astype(np.float32)], [INSIDE])
    assert found.pointing_game.value == found.inside == found.overlap == 0


def test_a_map_that_knows_nothing_is_as_good_as_chance() -> None:
    draw = np.random.default_rng(0)
    maps = [draw.uniform(size=(10, 10)).astype(np.float32) for _ in range(400)]
    found = localisation_of("occlusion", maps, [INSIDE] * 400)
    assert found.inside == pytest.approx(found.chance, abs=0.02)
    assert found.pointing_game.value == pytest.approx(found.chance, abs=0.06)


def test_negative_values_and_maps_without_a_positive_one_count_for_nothing() -> None:
    half = np.where(INSIDE, -1.0, 0.0).astype(np.float32)
    half[0, 0] = half[3, 3] = 2.0
    found = localisation_of("activation", [half, -np.ones((10, 10), np.float32)], [INSIDE] * 2)
    assert found.inside == pytest.approx(0.25)  # one of two pixels, and nothing
    assert found.overlap == pytest.approx(1 / 21 / 2)


def test_the_overlap_is_that_of_the_best_share_of_the_peak_over_all_images() -> None:
    wide = np.where(INSIDE, 1.0, 0.45).astype(np.float32)
    found = localisation_of("activation", [wide, wide], [INSIDE, INSIDE])
    assert (found.overlap, found.overlap_peak_share) == (1.0, 0.5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number, label in enumerate(("covid", "normal", "covid", "normal", "atypical", "covid")):
        path = folder / f"{number}.png"
        picture = cv2.resize(drawn_phantom(number, opacities=number % 3), None, fx=0.15, fy=0.15)
        cv2.imwrite(str(path), picture)
        boxes = ((0.2, 0.3, 0.3, 0.4),) if label == "covid" and number < 5 else ()
        made.append(LabelledImage(path, label, source=f"site {number % 2}", boxes=boxes))
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights that was trained with a soft label."""
    torch.manual_seed(1)
    recipe = {
        "classes": {"non": ["normal"], "covid": ["covid"]},
        "soft_labels": {"atypical": 0.3},
    }
    manifest = ModelManifest(
        *("small", "squeezenet1_1", ("non", "covid"), "covid", 0.5),
        indeterminate_range=IndeterminateRange(0.0, 1.0),
        input=InputSpec(96, 96),
        training={"recipe": recipe},
    )
    path = tmp_path_factory.mktemp("model") / "checkpoint.pt"
    save_checkpoint(build_network("squeezenet1_1", 2).eval(), manifest, path)
    return path


def test_positive_images_with_boxes_are_measured_by_both_methods(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    with load_backend(checkpoint) as backend:
        activation, occlusion = measure_localisation(backend, images, FEW)
        assert [activation.method, occlusion.method] == ["activation", "occlusion"]
        assert activation.images == occlusion.images == 2
        assert 0.05 < activation.chance < 0.3
        three = LocalisationSettings(3, FEW.occlusion)
        _, occlusion = measure_localisation(backend, [*images, *images], three)
        assert occlusion.images == 3  # of four
        none = LocalisationSettings(0)
        assert [it.method for it in measure_localisation(backend, images, none)] == ["activation"]
        assert measure_localisation(backend, images[1:2], FEW) == []


def test_an_evaluation_holds_maps_against_boxes_and_keeps_soft_labels_out_of_the_truth(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    found = evaluate(checkpoint, images, description="phantoms", localisation=FEW)
    assert found.overall.images == 5  # the atypical image is neither right nor wrong
    plain = json.loads(json.dumps(found.as_dict()))
    assert [it["method"] for it in plain["localisation"]] == ["activation", "occlusion"]
    assert plain["soft_labels"]["atypical"]["images"] == 1
    assert plain["soft_labels"]["atypical"]["indeterminate"]["value"] == 1
    assert {name: it["trials"] for name, it in plain["indeterminate_by_source"].items()} == {
        "site 0": 2,
        "site 1": 3,
    }


def test_data_without_boxes_has_no_key_for_them(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    bare = [LabelledImage(image.path, image.label) for image in images if image.label != "atypical"]
    plain = evaluate(checkpoint, bare, description="phantoms").as_dict()
    assert not {"localisation", "soft_labels", "indeterminate_by_source"} & set(plain)


def test_an_unknown_label_is_still_an_error(images: list[LabelledImage], checkpoint: Path) -> None:
    other = [*images, LabelledImage(images[0].path, "fracture")]
    with pytest.raises(DataError, match="'fracture' belongs to no class"):
        evaluate(checkpoint, other, description="phantoms")


def test_a_page_shows_maps_against_boxes_and_labels_that_are_no_truth(
    images: list[LabelledImage], checkpoint: Path
) -> None:
    for needed in ("matplotlib", "jinja2"):
        pytest.importorskip(needed, reason=f"{needed} (extra export) draws the page")
    from deepcovid_export.report.page import as_html

    page = as_html(evaluate(checkpoint, images, description="phantoms", localisation=FEW).as_dict())
    assert page.count("<tr><th>activation</th>") == page.count("<tr><th>occlusion</th>") == 1
    assert "atypical: 1 images, called positive" in page
