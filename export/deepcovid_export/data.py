"""Films for torch: read and prepared by the runtime's own `images` and `preprocess`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepcovid_edge.dataset import LabelledFilm, load_dataset
from deepcovid_edge.errors import DataError, ImageRefusedError
from deepcovid_edge.images import read_radiograph
from deepcovid_edge.preprocess import prepare
from deepcovid_export.augment import augment
from deepcovid_export.recipe import Recipe

VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class TrainingData:
    """The films of a training run.

    Attributes:
        train: Films to fit on.
        val: Films to choose on.
        dropped: Why films were left out -> how many.
    """

    train: list[LabelledFilm]
    val: list[LabelledFilm]
    dropped: dict[str, int]


def training_data(data: Path, recipe: Recipe) -> TrainingData:
    """Choose the films of a run: splits `train` and `val`, or a share of a plain folder.

    Every file is opened once, so that a run does not stop on a broken film after an hour.

    Raises:
        DataError: A class has no film, or one patient is in both splits.
    """
    films = load_dataset(data)
    dropped: Counter[str] = Counter()
    if not any(film.split for film in films):
        films = [replace(film, split=_drawn_split(film)) for film in films]
    kept: dict[str, list[LabelledFilm]] = {"train": [], "val": []}
    for film in films:
        if film.split not in kept:
            dropped[f"split {film.split}"] += 1
        elif recipe.class_of(film.label) is None:
            dropped[f"label {film.label} is in no class of the recipe"] += 1
        elif reason := _refusal(film.path):
            dropped[reason] += 1
        else:
            kept[film.split].append(film)
    _check_classes(kept, recipe, data)
    _check_patients(kept, data)
    return TrainingData(kept["train"], kept["val"], dict(dropped))


def _drawn_split(film: LabelledFilm) -> str:
    """A split that depends on the patient (else the file name) alone, so it never changes."""
    digest = hashlib.sha256((film.patient or film.path.name).encode()).digest()
    return "val" if digest[0] < 256 * VALIDATION_SHARE else "train"


def _refusal(path: Path) -> str | None:
    try:
        read_radiograph(path)
    except ImageRefusedError as error:
        return f"{error.reason.code} {path}: {error}"
    return None


def _check_classes(kept: dict[str, list[LabelledFilm]], recipe: Recipe, data: Path) -> None:
    for split, films in kept.items():
        present = {recipe.class_of(film.label) for film in films}
        for index, (name, labels) in enumerate(recipe.classes.items()):
            if index not in present:
                raise DataError(
                    f"{data}: class {name!r} has no film in split {split!r}; "
                    f"expected films labelled {' or '.join(labels)}"
                )


def _check_patients(kept: dict[str, list[LabelledFilm]], data: Path) -> None:
    train = {film.patient for film in kept["train"] if film.patient}
    for film in kept["val"]:
        if film.patient in train:
            raise DataError(
                f"{data}: patient {film.patient} is in train and in val (such as {film.path}): "
                "give all films of a patient to one split"
            )


class FilmDataset(Dataset[tuple[Tensor, int]]):
    """Pairs of a prepared film, uint8 of shape (H, W), and its class index."""

    def __init__(self, films: Sequence[LabelledFilm], recipe: Recipe, *, training: bool) -> None:
        self.films = list(films)
        self.recipe = recipe
        self.training = training
        self.epoch = 0
        self.targets = [recipe.class_of(film.label) or 0 for film in films]

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        film = read_radiograph(self.films[index].path)
        if self.training:
            draw = np.random.default_rng([self.recipe.fit.seed, self.epoch, index])
            film = augment(film, self.recipe.augment, draw)
        return torch.from_numpy(prepare(film, self.recipe.input)), self.targets[index]


def one_thread_each(_worker: int) -> None:
    """Keep OpenCV's own threads out of data workers."""
    cv2.setNumThreads(1)
