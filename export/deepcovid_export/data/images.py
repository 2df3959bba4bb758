"""The images of a run: what is fitted on, what is chosen on, and what is excluded and why."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.datasets.layouts import place_of
from deepcovid_edge.device.process import set_up
from deepcovid_edge.device.progress import counted, number_of
from deepcovid_edge.errors import DataError, NotAssessedError, UsageError
from deepcovid_edge.files import write_text
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_export.data.confounders import ImageFacts, facts_of
from deepcovid_export.data.leaks import Leak, find_leaks, shared_images, write_leaks
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
        val: Images to choose on, each content once.
        excluded: Reason to number of images that are not used.
        aside: Images of other splits, such as `test`, and copies within `val`; the run does not use
            them.
        leaks: Leaks between splits, if they are allowed.
        facts: Shape and compression of the images by path; empty where unknown.
        repeated: Split to number of files with the content of an earlier one; those of `train` are
            fitted on, those of `val` are not chosen on.
    """

    train: list[LabelledImage]
    val: list[LabelledImage]
    excluded: dict[str, int]
    aside: tuple[LabelledImage, ...] = ()
    leaks: tuple[Leak, ...] = ()
    facts: Mapping[Path, ImageFacts] = field(default_factory=dict)
    repeated: Mapping[str, int] = field(default_factory=dict)


def training_data(
    data: Path | Sequence[Path],
    recipe: Recipe,
    *,
    allow_leaks: bool = False,
    exclude_leaks: bool = False,
    leaks_file: Path | None = None,
) -> TrainingData:
    """Choose the images of a run: splits `train` and `val`, drawn if the data has none.

    Every file is opened once, so that a run does not stop on a broken image after an hour.

    Args:
        data: A data set, see `deepcovid_edge.datasets.dataset`, or several that make one.
        recipe: Names classes, views and shares.
        allow_leaks: Continue if splits share a patient or an image.
        exclude_leaks: Exclude the images of `train` that `val` or another split shares, and those
            of `val` that another split shares.
        leaks_file: File for all leaks, JSON or CSV.

    Raises:
        DataError: A class has no image in a split, splits share a patient or an image, or one
            image of `val` has two labels.
        OutputError: `leaks_file` cannot be written.
        UsageError: Leaks are both allowed and excluded.
    """
    if allow_leaks and exclude_leaks:
        raise UsageError("allow_leaks: got exclude_leaks too, expected one of them")
    places = [data] if isinstance(data, Path) else list(data)
    first = places[0]
    excluded: Counter[str] = Counter()
    found = [image for place in places for image in load_dataset(place, excluded=excluded)]
    images, read = _readable(_wanted(found, recipe, excluded), excluded)
    prints = [it.fingerprint for it in read]
    images = [_held_out(image, recipe) for image in with_splits(images, prints, recipe)]
    leaks = find_leaks(images, prints)
    if leaks_file:
        write_leaks(leaks, leaks_file)
    facts = {image.path: it.facts for image, it in zip(images, read, strict=True)}
    while exclude_leaks and (shared := shared_images(images, leaks)):
        excluded["shared with another split"] += len(shared)
        left = [place for place in range(len(images)) if place not in shared]
        images, prints = [images[place] for place in left], [prints[place] for place in left]
        leaks = find_leaks(images, prints)
    kept, aside = _sorted(images, recipe)
    _check_classes(kept, recipe, first, excluded)
    if leaks and not allow_leaks:
        raise DataError(_leak_message(first, leaks))
    excluded.update(_why_aside(image) for image in aside)
    hashes = {image.path: one.sha256 for image, one in zip(images, prints, strict=True)}
    train, (val, copies) = kept["train"], _each_once(kept["val"], hashes)
    if copies:
        excluded["the content of an earlier image of val"] = len(copies)
    repeated = {"train": len(train) - len({hashes[it.path] for it in train}), "val": len(copies)}
    return TrainingData(
        train, val, dict(excluded), (*aside, *copies), tuple(leaks), facts, repeated
    )


def _each_once(
    images: Sequence[LabelledImage], hashes: Mapping[Path, str]
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """The first image of each content, and its copies, which are no further evidence."""
    contents = Contents()
    first: list[LabelledImage] = []
    copies: list[LabelledImage] = []
    for image in images:
        (first if contents.is_new(image, hashes[image.path]) else copies).append(image)
    return first, copies


def _held_out(image: LabelledImage, recipe: Recipe) -> LabelledImage:
    """An image of a group without a share helps to choose; it is never fitted on."""
    group = recipe.data.group_of(image.label, image.source)
    held = group is not None and recipe.data.groups[group].share == 0
    return replace(image, split="val") if held and image.split == "train" else image


def _sorted(
    images: Sequence[LabelledImage], recipe: Recipe
) -> tuple[dict[str, list[LabelledImage]], list[LabelledImage]]:
    """Images of `train` and `val`, and all others: only images with a class are chosen on."""
    kept: dict[str, list[LabelledImage]] = {"train": [], "val": []}
    aside = []
    for image in images:
        soft = recipe.class_of(image.label) is None
        if image.split == "train" or (image.split == "val" and not soft):
            kept[image.split].append(image)
        else:
            aside.append(image)
    return kept, aside


def _why_aside(image: LabelledImage) -> str:
    if image.split == "val":
        return f"label {image.label} of split val is in no class: nothing is chosen on it"
    return f"split {image.split}" if image.split else "no split"


def write_splits(images: TrainingData, path: Path) -> None:
    """Write the splits as a manifest CSV that every command takes as DATA.

    Raises:
        OutputError: The file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("path", *_COLUMNS, "boxes"))
    for image in (*images.train, *images.val, *images.aside):
        place = os.path.relpath(image.path.absolute(), path.parent.resolve())
        boxes = json.dumps(image.boxes) if image.boxes else ""
        writer.writerow((place, *(getattr(image, name) for name in _COLUMNS), boxes))
    write_text(path, stream.getvalue())


def _wanted(
    images: Sequence[LabelledImage], recipe: Recipe, excluded: Counter[str]
) -> list[LabelledImage]:
    """Images that the recipe has a class and a view for."""
    views = {view.casefold() for view in recipe.data.views}
    wanted = []
    for image in images:
        if recipe.class_of(image.label) is None and image.label not in recipe.soft_labels:
            excluded[f"label {image.label} is in no class of the recipe"] += 1
        elif recipe.data.groups and recipe.data.group_of(image.label, image.source) is None:
            excluded[f"label {image.label}: no group of the recipe holds its source"] += 1
        elif recipe.data.visible and image.clear and _is_positive(image, recipe):
            excluded[f"label {image.label} without a visible abnormality"] += 1
        elif views and image.view.casefold() not in views:
            known = f"view {image.view}" if image.view else "unknown view"
            taken = ", ".join(view or "unknown" for view in recipe.data.views)
            excluded[f"{known}; the recipe takes {taken}"] += 1
        else:
            wanted.append(image)
    return wanted


def _is_positive(image: LabelledImage, recipe: Recipe) -> bool:
    return recipe.class_of(image.label) == recipe.positive_index


@dataclass(frozen=True)
class _Read:
    """What one reading of a file tells: its fingerprint and its facts."""

    fingerprint: Fingerprint
    facts: ImageFacts


def _readable(
    images: Sequence[LabelledImage], excluded: Counter[str]
) -> tuple[list[LabelledImage], list[_Read]]:
    """Images that can be assessed, and what reading them told."""
    set_up()  # forked data workers would lose OpenCV's threads and hang

    def read(image: LabelledImage) -> _Read | str:
        try:
            radiograph = read_radiograph(image.path)
        except NotAssessedError as error:
            return f"{error.reason.code} {image.path}: {error}"
        return _Read(fingerprint(radiograph), facts_of(image.path, radiograph.pixels.shape))

    kept, found = [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = counted(pool.map(read, images), len(images), "images to read")
        for image, one in zip(images, done, strict=True):
            if isinstance(one, str):
                excluded[one] += 1
            else:
                kept.append(image)
                found.append(one)
    return kept, found


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
    return f"; excluded: {number_of(count, 'image')}: {reason}"


def _leak_message(data: Path, leaks: Sequence[Leak]) -> str:
    named = "; ".join(str(leak) for leak in leaks[:_NAMED_LEAKS])
    more = len(leaks) - _NAMED_LEAKS
    return (
        f"{data}: {named}{f'; and {more} more' if more > 0 else ''}: give all images of a patient "
        "and all near-duplicates of an image to one split (--leaks FILE lists them), or add "
        "--exclude-leaks or --allow-leaks"
    )
