"""Films for torch: read and prepared by the runtime's own `images` and `preprocess`."""

from __future__ import annotations

import csv
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

from deepcovid_edge.datasets.dataset import LabelledFilm, load_dataset
from deepcovid_edge.datasets.layouts import place_of
from deepcovid_edge.errors import DataError, ImageRefusedError, OutputError
from deepcovid_edge.imaging.pictures import read_radiograph
from deepcovid_edge.imaging.prepare import prepare
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
    """The films of a training run.

    Attributes:
        train: Films to fit on.
        val: Films to choose on.
        dropped: Why films were left out -> how many.
        aside: Films of other splits, such as `test`: none is looked at.
        leaks: What splits have in common, where that is allowed.
    """

    train: list[LabelledFilm]
    val: list[LabelledFilm]
    dropped: dict[str, int]
    aside: tuple[LabelledFilm, ...] = ()
    leaks: tuple[Leak, ...] = ()


def training_data(
    data: Path, recipe: Recipe, *, allow_leaks: bool = False, leaks_file: Path | None = None
) -> TrainingData:
    """Choose the films of a run: splits `train` and `val`, drawn where the data has none.

    Every file is opened once, so that a run does not stop on a broken film after an hour.

    Args:
        data: A data set, see `deepcovid_edge.datasets.dataset`.
        recipe: Names classes, views and shares.
        allow_leaks: Go on where splits share a patient or a film.
        leaks_file: Gets all that splits share, as JSON or CSV.

    Raises:
        DataError: A class has no film in a split, or splits share a patient or a film.
        OutputError: The file of leaks cannot be written.
    """
    dropped: Counter[str] = Counter()
    films = _wanted(load_dataset(data, left_out=dropped), recipe, dropped)
    films, prints = _readable(films, dropped)
    films = with_splits(films, prints, recipe)
    kept: dict[str, list[LabelledFilm]] = {"train": [], "val": []}
    for film in films:
        kept.setdefault(film.split, []).append(film)
    _check_classes(kept, recipe, data, dropped)
    leaks = find_leaks(films, prints)
    if leaks_file:
        write_leaks(leaks, leaks_file)
    if leaks and not allow_leaks:
        raise DataError(_leak_message(data, leaks))
    aside = [film for film in films if film.split not in ("train", "val")]
    dropped.update(f"split {film.split}" if film.split else "no split" for film in aside)
    return TrainingData(kept["train"], kept["val"], dict(dropped), tuple(aside), tuple(leaks))


def write_splits(films: TrainingData, path: Path) -> None:
    """Write which film is in which split, as a manifest CSV that every command takes as DATA.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("path", *_COLUMNS))
            for film in (*films.train, *films.val, *films.aside):
                place = os.path.relpath(film.path.absolute(), path.parent.resolve())
                writer.writerow((place, *(getattr(film, name) for name in _COLUMNS)))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise OutputError(f"{path}: a film's name is not UTF-8: rename it ({error})") from error


def _wanted(
    films: Sequence[LabelledFilm], recipe: Recipe, dropped: Counter[str]
) -> list[LabelledFilm]:
    """Films that the recipe has a class and a view for."""
    views = {view.casefold() for view in recipe.data.views}
    wanted = []
    for film in films:
        if recipe.class_of(film.label) is None:
            dropped[f"label {film.label} is in no class of the recipe"] += 1
        elif views and film.view.casefold() not in views:
            known = f"view {film.view}" if film.view else "unknown view"
            dropped[f"{known}; the recipe takes {', '.join(recipe.data.views)}"] += 1
        else:
            wanted.append(film)
    return wanted


def _readable(
    films: Sequence[LabelledFilm], dropped: Counter[str]
) -> tuple[list[LabelledFilm], list[Fingerprint]]:
    """Films that can be judged, with their fingerprints."""
    cv2.setNumThreads(1)  # its threads would not live on in forked data workers, which then hang

    def read(film: LabelledFilm) -> Fingerprint | str:
        try:
            return fingerprint(read_radiograph(film.path))
        except ImageRefusedError as error:
            return f"{error.reason.code} {film.path}: {error}"

    kept, prints = [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for film, found in zip(films, pool.map(read, films), strict=True):
            if isinstance(found, str):
                dropped[found] += 1
            else:
                kept.append(film)
                prints.append(found)
    return kept, prints


def _check_classes(
    kept: dict[str, list[LabelledFilm]], recipe: Recipe, data: Path, dropped: Counter[str]
) -> None:
    for split in ("train", "val"):
        present = {recipe.class_of(film.label) for film in kept[split]}
        for index, (name, labels) in enumerate(recipe.classes.items()):
            if index not in present:
                raise DataError(
                    f"{data}: class {name!r} has no film in split {split!r}; expected films "
                    f"labelled {' or '.join(labels)}, such as in {_where(data, split, labels[0])}"
                    f"{_chief_reason(dropped)}"
                )


def _where(data: Path, split: str, label: str) -> Path:
    place = place_of(data)
    if not place.is_dir():
        return place
    return (place / split if (place / split).is_dir() else place) / label


def _chief_reason(dropped: Counter[str]) -> str:
    if not dropped:
        return ""
    reason, count = dropped.most_common(1)[0]
    return f"; left out: {count} film{'s' * (count > 1)}: {reason}"


def _leak_message(data: Path, leaks: Sequence[Leak]) -> str:
    named = "; ".join(str(leak) for leak in leaks[:_NAMED_LEAKS])
    more = len(leaks) - _NAMED_LEAKS
    return (
        f"{data}: {named}{f'; and {more} more' if more > 0 else ''}: give all films of a patient "
        "and all copies of a film to one split (--leaks FILE lists them), or add --allow-leaks"
    )


NO_CLASS = -1
"""Target of a film that says nothing of its class."""


class FilmDataset(Dataset[tuple[Tensor, int]]):
    """Pairs of a prepared film, uint8 of shape (H, W), and its class index or `NO_CLASS`."""

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
        if not self.training:
            return torch.from_numpy(prepare(film, self.recipe.input)), self.targets[index]
        draw = np.random.default_rng([self.recipe.fit.seed, self.epoch, index])
        spec = self.recipe.input
        changed = augment(film, self.recipe.augment, min(spec.height, spec.width), draw)
        pixels = prepare(changed, spec)
        if hides_lungs(self.recipe.augment, draw):
            return torch.from_numpy(hide_centre(pixels, draw)), NO_CLASS
        return torch.from_numpy(pixels), self.targets[index]


def one_thread_each(_worker: int) -> None:
    """Keep OpenCV's own threads out of data workers."""
    cv2.setNumThreads(1)
