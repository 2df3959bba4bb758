"""Readers' boxes: from the manifest through every change of an image into the map's cells."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs extra export")

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.datasets.layouts import Box
from deepcovid_edge.errors import DataError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_export.data.augment import augment_with_mask, square_spec
from deepcovid_export.data.images import training_data, write_splits
from deepcovid_export.data.training_set import NO_CLASS, ImageDataset
from deepcovid_export.evaluation.boxes import cells_of, mask_of
from deepcovid_export.recipe import AugmentSettings, FitSettings, Recipe

STILL = AugmentSettings(
    flip=0, rotate=0, crop=0, stretch=0, distort=0, contrast=0, gamma=0, blur=0, noise=0, jpeg=0,
    square=True,
)  # fmt: skip
BOX: Box = (0.25, 0.5, 0.25, 0.25)


def recipe(augment: AugmentSettings = STILL, **fit: float) -> Recipe:
    return Recipe(
        *("r", "squeezenet1_1", "covid", {"non": ["no_pneumonia"], "covid": ["covid"]}),
        soft_labels={"atypical": 0.25},
        input=InputSpec(112, 112),
        fit=FitSettings(map_weight=0.5, **fit),  # type: ignore[arg-type]
        augment=augment,
    )


def write_image(path: Path, seed: int, boxes: tuple[Box, ...] = ()) -> None:
    """A dark field of its own, white where the boxes are."""
    draw = np.random.default_rng(seed)
    field = cv2.resize(draw.normal(size=(12, 12)).astype(np.float32), (160, 128))
    pixels = np.clip(100 + 40 * field, 0, 220).astype(np.uint8)
    pixels[mask_of(boxes, pixels.shape) > 0] = 255
    cv2.imwrite(str(path), pixels)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = ["path,label,split,source,boxes"]
    for number, (label, boxes) in enumerate(
        [
            ("covid", f'"[{list(BOX)}, [0.6, 0.1, 0.2, 0.3]]"'),
            ("no_pneumonia", ""),
            ("covid", "[]"),
            ("atypical", f'"[{list(BOX)}]"'),
        ]
        * 2
    ):
        drawn = ((BOX, (0.6, 0.1, 0.2, 0.3)) if number % 4 == 0 else (BOX,)) if "0" in boxes else ()
        write_image(tmp_path / f"{number}.png", number, drawn)
        rows.append(f"{number}.png,{label},{'train' if number < 4 else 'val'},hospital,{boxes}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_boxes_are_read_and_written_again_with_the_splits(data: Path, tmp_path: Path) -> None:
    found = training_data(data, recipe(), allow_leaks=True)  # white boxes look alike
    assert [image.boxes for image in found.train][:2] == [(BOX, (0.6, 0.1, 0.2, 0.3)), ()]
    assert [image.label for image in found.aside] == ["atypical"]  # nothing is chosen on it
    write_splits(found, tmp_path / "splits.csv")
    again = {image.path.name: image.boxes for image in load_dataset(tmp_path / "splits.csv")}
    assert again == {image.path.name: image.boxes for image in load_dataset(data)}


@pytest.mark.parametrize(
    "boxes", ["[[0, 0, 1]]", "[[0.5, 0, 0.6, 1]]", "[[0, 0, 0, 1]]", "[[0, 0, NaN, 1]]", "{", "3"]
)
def test_what_is_no_box_names_file_and_line(data: Path, boxes: str) -> None:
    manifest = data / "manifest.csv"
    manifest.write_text(f'path,label,boxes\n0.png,covid,"{boxes}"\n')
    with pytest.raises(
        DataError, match=r"manifest.csv, line 2: boxes: got .* expected a JSON list"
    ):
        load_dataset(data)


@pytest.mark.parametrize("rule", ResizeRule)
def test_a_box_lies_on_the_model_input_where_its_pixels_lie(rule: ResizeRule) -> None:
    from deepcovid_edge.imaging.prepare import prepare

    pixels = np.full((300, 400), 30, np.uint8)
    pixels[mask_of([BOX], pixels.shape) > 0] = 255
    spec = InputSpec(96, 96, rule)
    seen = prepare(Radiograph(pixels, 255, "", "PNG"), spec) > 142
    drawn = mask_of([BOX], pixels.shape, spec) > 0
    assert drawn.any()
    assert (seen ^ drawn).sum() <= 0.05 * drawn.sum() + 4


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1},
        {"rotate": 15},
        {"crop": 0.3},
        {"zoom": 0.3},
        {"shift": 0.1},
        {"stretch": 0.2},
        {"distort": 0.03},
        {"flip": 0.5, "rotate": 10, "zoom": 0.2, "shift": 0.05, "stretch": 0.12, "border": True},
    ],
    ids=str,
)
def test_the_mask_moves_as_the_opacity_moves(change: dict[str, float]) -> None:
    how = AugmentSettings(**{**vars(STILL), **change})
    spec = square_spec(112)
    mask = mask_of([(0.3, 0.2, 0.2, 0.4)], (128, 128), spec)
    image = Radiograph(np.where(mask > 0, 255, 20).astype(np.uint8), 255, "", "PNG")
    moved = 0
    for seed in range(6):
        changed, own = augment_with_mask(image, mask, how, 112, np.random.default_rng(seed))
        assert own is not None
        white, inside = changed.pixels > 137, own > 127
        moved += bool((inside != (mask > 0)).any())
        assert (white & inside).sum() >= 0.97 * inside.sum()
        if not how.border:  # a mirrored border repeats the opacity, where nobody drew a box
            assert (white ^ inside).sum() <= 0.03 * inside.sum()
    assert moved >= 5


def test_cells_hold_the_share_of_their_area_in_boxes() -> None:
    mask = np.zeros((26, 26), np.uint8)
    mask[0:2, 0:2], mask[2:4, 0:1] = 255, 255
    cells = cells_of(mask, (13, 13))
    assert cells[0, 0] == 1
    assert cells[1, 0] == pytest.approx(0.5)
    assert cells.sum() == pytest.approx(1.5)


def test_only_images_whose_opacities_are_known_have_a_target_for_the_map(data: Path) -> None:
    images = ImageDataset(
        training_data(data, recipe(), allow_leaks=True).train, recipe(), training=True
    )
    images.cells = (7, 7)
    boxed, free, unknown, soft = (images[place] for place in range(4))
    assert 0.05 < boxed.grid.mean() < 0.3
    assert float(free.grid.abs().max()) == 0  # a negative of a source whose opacities are drawn
    assert unknown.grid.isnan().all()  # positive, and nobody drew where
    assert float(soft.grid.max()) == pytest.approx(0.25, abs=0.01)
    assert [int(it.target) for it in (boxed, free, unknown, soft)] == [1, 0, 1, NO_CLASS]
    assert soft.likely.tolist() == [0.75, 0.25]


def test_images_with_hidden_lungs_have_no_target_for_the_map(data: Path) -> None:
    how = AugmentSettings(**{**vars(STILL), "hide": 1.0})
    images = ImageDataset(
        training_data(data, recipe(how), allow_leaks=True).train, recipe(how), training=True
    )
    assert images[0].grid.isnan().all()
    assert images[3].likely.tolist() == [0.5, 0.5]


def test_a_square_is_kept_in_memory_and_hides_shape_and_resolution(data: Path) -> None:
    images = ImageDataset(
        training_data(data, recipe(), allow_leaks=True).train, recipe(), training=True
    )
    first = images[0].pixels
    for path in data.glob("*.png"):
        path.unlink()
    assert torch.equal(images[0].pixels, first)  # nothing is read again
    assert first.shape == (112, 112)
