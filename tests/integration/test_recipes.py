"""Every shipped recipe runs one epoch end to end, on few and small images, from random weights.

ResNet50 and DenseNet-121 take longest to export; `test_networks.py` exports every network, so their
runs end with the checkpoint.
"""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from drawn_once import drawn_phantom

from deepcovid_edge.cli.main import run
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import read_manifest
from deepcovid_export.networks.checkpoint import load_checkpoint
from deepcovid_export.recipe import SHIPPED, load_recipe
from deepcovid_export.training.lr_finder import CURVE_NAME, RangeTest

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
QUICK = {"plain_squeezenet1_1", "squeezenet1_1"}
"""A plain one, and the one that ships, with groups, soft labels and boxes."""
SLOW_TO_EXPORT = {"resnet50", "densenet121"}
IMAGES_A_CLASS = 6
TINY = [
    "fit.epochs=1",
    "fit.batch_size=4",
    "fit.precision=fp32",
    "input.height=64",
    "input.width=64",
    "find.steps=12",
    "find.lowest=1e-4",
]


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    images = [drawn_phantom(seed, opacities=2 * (seed % 3)) for seed in range(IMAGES_A_CLASS)]
    return [cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in images]


def write_images(recipe_name: str, pixels: list[np.ndarray], folder: Path) -> Path:
    """A manifest with images of each of the recipe's classes, each class of its own brightness."""
    recipe = load_recipe(recipe_name)
    rows = []
    for tone, labels in zip((0.4, 1.0, 0.6, 0.8), recipe.classes.values(), strict=False):
        for number, image in enumerate(pixels):
            name = f"{labels[0]} {number}.png"
            save_phantom((image * tone).astype(np.uint8), folder / name)
            split = "val" if number % 3 == 2 else "train"
            rows.append({"path": name, "label": labels[0], "split": split, "view": "PA"})
    rows.append({**rows[0], "split": "train", "view": "AP Supine"})
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows if recipe.data.views else rows[:-1])
    return folder / "manifest.csv"


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_shipped_recipe_runs_from_images_to_a_model(
    name: str, pixels: list[np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_images(name, pixels, tmp_path)
    folder, model = tmp_path / "run", tmp_path / "model.onnx"
    changes = [option for change in TINY for option in ("--set", change)]
    arguments = ["--recipe", name, *changes, "--from-scratch", "--workers", "0", "-o", str(folder)]
    assert run(["train", str(images), *arguments]) == 0, capfd.readouterr().err
    network, manifest = load_checkpoint(folder / "checkpoint.pt")
    recipe = load_recipe(name)
    assert manifest.name == name
    assert manifest.classes == tuple(recipe.classes)
    assert manifest.training["epochs_run"] == 1
    assert manifest.training["train_images"] == 4 * len(recipe.classes)
    assert manifest.threshold_origin["images"] == 2 * len(recipe.classes)
    said = capfd.readouterr().err
    used = manifest.training["recipe"]["fit"]
    assert (used["epochs"], used["optimiser"]) == (1, recipe.fit.optimiser)
    if recipe.fit.learning_rate == "find":
        assert used["learning_rate"] == RangeTest.read(folder).suggestion
        curve = (folder / CURVE_NAME).stat()
        assert run(["train", str(images), *arguments, "--resume"]) == 0, capfd.readouterr().err
        assert (folder / CURVE_NAME).stat() == curve  # a resumed run goes on with what it found
    assert (folder / CURVE_NAME).exists() == (recipe.fit.learning_rate == "find")
    if recipe.data.views:
        assert "excluded: 1 image: view AP Supine" in said
    for source in recipe.fit.repeat_sources:
        assert f"repeats images of {source!r}, but the training images have none: ignored" in said
    if recipe.architecture in SLOW_TO_EXPORT:
        logits, _ = network(torch.zeros(1, 64, 64, dtype=torch.uint8))
        assert logits.shape == (1, len(recipe.classes))
        return
    assert run(["export", str(folder / "checkpoint.pt"), "-o", str(model)]) == 0
    assert read_manifest(model).classes == manifest.classes
