"""The images that `export --fit` takes are those that the run took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.data.images import training_data, write_splits
from deepcovid_export.decision.run_images import images_of_model
from deepcovid_export.recipe import DataSettings, FitSettings, ImageGroup, Recipe

GROUPS = (
    ImageGroup("held out", ("normal",), "far", 0.0),
    ImageGroup("hazy", ("covid",), "near", 0.5),
    ImageGroup("clear", ("normal",), "near", 0.25),
    ImageGroup("soft", ("atypical",), "near", 0.25),
)
RECIPE = Recipe(
    *("r", "squeezenet1_1", "covid", {"non": ["normal"], "covid": ["covid"]}),
    soft_labels={"atypical": 0.3},
    data=DataSettings(views=("PA", ""), visible=True, groups=GROUPS),
    fit=FitSettings(images=8),
)
MANIFEST = ModelManifest(
    *("r", "squeezenet1_1", ("non", "covid"), "covid", 0.5), training={"recipe": RECIPE.as_dict()}
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the recipe takes, and one of each kind that it does not."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        (split, label, source, view, clear)
        for split in ("train", "val")
        for label, source, view, clear in (
            ("covid", "near", "PA", 0),
            ("covid", "near", "", 0),
            ("normal", "near", "pa", 1),
            ("normal", "far", "PA", 0),  # held out
            ("atypical", "near", "PA", 0),  # of no class
            ("covid", "near", "PA", 1),  # nothing is visible
            ("covid", "far", "PA", 0),  # of no group
            ("normal", "near", "AP", 0),  # of another view
        )
    ]
    lines = ["path,label,split,source,view,no_visible_abnormality"]
    for number, (split, label, source, view, clear) in enumerate(rows):
        draw = np.random.default_rng(number)
        field = cv2.resize(draw.normal(size=(12, 12)).astype(np.float32), (128, 120))
        pixels = np.clip(128 + 40 * field, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        lines.append(f"{number}.png,{label},{split},{source},{view},{clear}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def names(images: Sequence[LabelledImage]) -> list[str]:
    return [image.path.name for image in images]


def test_the_data_gives_the_images_of_the_run(data: Path) -> None:
    run = training_data(data, RECIPE)
    known = [image for image in run.train if image.label != "atypical"]
    assert names(images_of_model(data, MANIFEST, "train")) == names(known)
    assert names(images_of_model(data, MANIFEST, "val")) == names(run.val)
    assert len(known) == 3
    assert len(run.val) == 5  # the held-out image of `train` helps to choose


def test_the_splits_of_the_run_give_the_same_images(data: Path, tmp_path: Path) -> None:
    write_splits(training_data(data, RECIPE), tmp_path / "splits.csv")
    for split in ("train", "val"):
        own = images_of_model(tmp_path / "splits.csv", MANIFEST, split)
        assert names(own) == names(images_of_model(data, MANIFEST, split))


def test_a_label_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    for label in ("non", "covid", "atypical"):
        path = tmp_path / "train" / label / "1.png"
        path.parent.mkdir(parents=True)
        path.touch()
    named = images_of_model(tmp_path, MANIFEST, "train")
    assert [image.label for image in named] == ["non"]  # no group holds `covid` of no source
