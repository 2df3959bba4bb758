"""Images for torch, read and prepared by the runtime's own functions."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.datasets.layouts import place_of
from deepcovid_edge.errors import DataError, NotAssessedError
from deepcovid_edge.files import write_text
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_export.data.augment import augment, hide_centre, hides_lungs
from deepcovid_export.data.leaks import Leak, find_leaks, write_leaks
from deepcovid_export.data.near_duplicates import Fingerprint, fingerprint
from deepcovid_export.data.splits import with_splits
from deepcovid_export.recipe import Recipe

SPLITS_NAME = "splits.csv"
_NAMED_LEAKS = 3
_COLUMNS = ("label", "split", "patient", "source", "view")


@dataclass(frozen=True)
class TrainingData:
    """The images of a training run.

    Attributes:
        train: Images to fit on.
        val: Images to choose on.
        excluded: Reason to number of images that are not used.
        aside: Images of other splits, such as `test`; the run does not use them.
        leaks: Leaks between splits, if they are allowed.
    """

    train: list[LabelledImage]
    val: list[LabelledImage]
    excluded: dict[str, int]
    aside: tuple[LabelledImage, ...] = ()
    leaks: tuple[Leak, ...] = ()


def training_data(
    data: Path, recipe: Recipe, *, allow_leaks: bool = False, leaks_file: Path | None = None
) -> TrainingData:
    """Choose the images of a run: splits `train` and `val`, drawn if the data has none.

    Every file is opened once, so that a run does not stop on a broken image after an hour.

    Args:
        data: A data set, see `deepcovid_edge.datasets.dataset`.
        recipe: Names classes, views and shares.
        allow_leaks: Continue if splits share a patient or an image.
        leaks_file: File for all leaks, JSON or CSV.

    Raises:
        DataError: A class has no image in a split, or splits share a patient or an image.
        OutputError: `leaks_file` cannot be written.
    """
    excluded: Counter[str] = Counter()
    images = _wanted(load_dataset(data, excluded=excluded), recipe, excluded)
    images, prints = _readable(images, excluded)
    images = with_splits(images, prints, recipe)
    kept: dict[str, list[LabelledImage]] = {"train": [], "val": []}
    for image in images:
        kept.setdefault(image.split, []).append(image)
    _check_classes(kept, recipe, data, excluded)
    leaks = find_leaks(images, prints)
    if leaks_file:
        write_leaks(leaks, leaks_file)
    if leaks and not allow_leaks:
        raise DataError(_leak_message(data, leaks))
    aside = [image for image in images if image.split not in ("train", "val")]
    excluded.update(f"split {image.split}" if image.split else "no split" for image in aside)
    return TrainingData(kept["train"], kept["val"], dict(excluded), tuple(aside), tuple(leaks))


def write_splits(images: TrainingData, path: Path) -> None:
    """Write the splits as a manifest CSV that every command takes as DATA.

    Raises:
        OutputError: The file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("path", *_COLUMNS))
    for image in (*images.train, *images.val, *images.aside):
        place = os.path.relpath(image.path.absolute(), path.parent.resolve())
        writer.writerow((place, *(getattr(image, name) for name in _COLUMNS)))
    write_text(path, stream.getvalue())


def _wanted(
    images: Sequence[LabelledImage], recipe: Recipe, excluded: Counter[str]
) -> list[LabelledImage]:
    """Images that the recipe has a class and a view for."""
    views = {view.casefold() for view in recipe.data.views}
    wanted = []
    for image in images:
        if recipe.class_of(image.label) is None:
            excluded[f"label {image.label} is in no class of the recipe"] += 1
        elif views and image.view.casefold() not in views:
            known = f"view {image.view}" if image.view else "unknown view"
            excluded[f"{known}; the recipe takes {', '.join(recipe.data.views)}"] += 1
        else:
            wanted.append(image)
    return wanted


def _readable(
    images: Sequence[LabelledImage], excluded: Counter[str]
) -> tuple[list[LabelledImage], list[Fingerprint]]:
    """Images that can be assessed, with their fingerprints."""
    cv2.setNumThreads(1)  # forked data workers would lose its threads and hang

    def read(image: LabelledImage) -> Fingerprint | str:
        try:
            return fingerprint(read_radiograph(image.path))
        except NotAssessedError as error:
            return f"{error.reason.code} {image.path}: {error}"

    kept, prints = [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for image, found in zip(images, pool.map(read, images), strict=True):
            if isinstance(found, str):
                excluded[found] += 1
            else:
                kept.append(image)
                prints.append(found)
    return kept, prints


def _check_classes(
    kept: dict[str, list[LabelledImage]], recipe: Recipe, data: Path, excluded: Counter[str]
) -> None:
    for split in ("train", "val"):
        present = {recipe.class_of(image.label) for image in kept[split]}
        for index, (name, labels) in enumerate(recipe.classes.items()):
            if index not in present:
                raise DataError(
                    f"{data}: class {name!r} has no image in split {split!r}; expected images "
                    f"labelled {' or '.join(labels)}, such as in {_where(data, split, labels[0])}"
                    f"{_chief_reason(excluded)}"
                )


def _where(data: Path, split: str, label: str) -> Path:
    place = place_of(data)
    if not place.is_dir():
        return place
    return (place / split if (place / split).is_dir() else place) / label


def _chief_reason(excluded: Counter[str]) -> str:
    if not excluded:
        return ""
    reason, count = excluded.most_common(1)[0]
    return f"; excluded: {count} image{'s' * (count > 1)}: {reason}"


def _leak_message(data: Path, leaks: Sequence[Leak]) -> str:
    named = "; ".join(str(leak) for leak in leaks[:_NAMED_LEAKS])
    more = len(leaks) - _NAMED_LEAKS
    return (
        f"{data}: {named}{f'; and {more} more' if more > 0 else ''}: give all images of a patient "
        "and all near-duplicates of an image to one split (--leaks FILE lists them), or add "
        "--allow-leaks"
    )


NO_CLASS = -1
"""Target of an image that says nothing of its class."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Pairs of a prepared image, uint8 of shape (H, W), and its class index or `NO_CLASS`."""

    def __init__(self, images: Sequence[LabelledImage], recipe: Recipe, *, training: bool) -> None:
        self.images = list(images)
        self.recipe = recipe
        self.training = training
        self.epoch = 0
        self.targets = [recipe.class_of(image.label) or 0 for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, spec = self.images[index].path, self.recipe.input
        if not self.training:
            image = read_radiograph(path, spec)
            return torch.from_numpy(prepare(image, spec)), self.targets[index]
        image = read_radiograph(path)
        draw = np.random.default_rng([self.recipe.fit.seed, self.epoch, index])
        changed = augment(image, self.recipe.augment, min(spec.height, spec.width), draw)
        pixels = prepare(changed, spec)
        if hides_lungs(self.recipe.augment, draw):
            return torch.from_numpy(hide_centre(pixels, draw)), NO_CLASS
        return torch.from_numpy(pixels), self.targets[index]


def one_thread_each(_worker: int) -> None:
    """Keep OpenCV's own threads out of data workers."""
    cv2.setNumThreads(1)
