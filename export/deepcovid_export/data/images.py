"""The images of a run: what is fitted on, what is chosen on, and what is excluded and why."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage, check_not_read, load_dataset
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
_MARKS = {"no_visible_abnormality": "clear", "paediatric": "is_child"}
"""Column of a manifest to the attribute of an image that it marks."""


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
        OutputError: `leaks_file` cannot be written, or is what is read.
        UsageError: Leaks are both allowed and excluded.
    """
    if allow_leaks and exclude_leaks:
        raise UsageError("allow_leaks: got exclude_leaks too, expected one of them")
    places = [data] if isinstance(data, Path) else list(data)
    first = places[0]
    excluded: Counter[str] = Counter()
    sets = [load_dataset(place, excluded=excluded) for place in places]
    check_not_read(leaks_file, *places)
    wanted, unwanted = _wanted([image for own in sets for image in own], recipe, excluded)
    images, read = _readable(wanted, excluded)
    prints = [it.fingerprint for it in read]
    placed = with_splits(images, prints, recipe, _without_splits(sets))
    images = [replace(image, split=recipe.data.split_of(image)) for image in placed]
    searched = _Searched(images, prints, *_elsewhere(unwanted))
    leaks = searched.leaks()
    if leaks_file:
        write_leaks(leaks, leaks_file)
    facts = {image.path: it.facts for image, it in zip(images, read, strict=True)}
    while exclude_leaks and (shared := shared_images(searched.images, leaks)):
        excluded["shared with another split"] += len(shared)
        searched = searched.without(shared)
        leaks = searched.leaks()
    kept, aside = _sorted(searched.images, recipe)
    _check_classes(kept, recipe, first, excluded, unwanted)
    if leaks and not allow_leaks:
        raise DataError(_leak_message(first, leaks))
    excluded.update(_why_aside(image) for image in aside)
    hashes = searched.hashes
    train, (val, copies) = kept["train"], _each_once(kept["val"], hashes)
    if copies:
        excluded["the content of an earlier image of val"] = len(copies)
    repeated = {"train": len(train) - len({hashes[it.path] for it in train}), "val": len(copies)}
    return TrainingData(
        train, val, dict(excluded), (*aside, *copies), tuple(leaks), facts, repeated
    )


def _without_splits(sets: Sequence[Sequence[LabelledImage]]) -> set[Path]:
    """Files of the data sets that have no splits."""
    bare = (images for images in sets if not any(image.split for image in images))
    return {image.path for images in bare for image in images}


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
    writer.writerow(("path", *_COLUMNS, "boxes", *_MARKS))
    for image in (*images.train, *images.val, *images.aside):
        place = os.path.relpath(image.path.absolute(), path.parent.resolve())
        boxes = json.dumps(image.boxes) if image.boxes else ""
        marks = ("1" if getattr(image, name) else "" for name in _MARKS.values())
        writer.writerow((place, *(getattr(image, name) for name in _COLUMNS), boxes, *marks))
    write_text(path, stream.getvalue())


def _wanted(
    images: Sequence[LabelledImage], recipe: Recipe, excluded: Counter[str]
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Images that the recipe uses, and all others, which are counted with their reason."""
    wanted: list[LabelledImage] = []
    unwanted: list[LabelledImage] = []
    for image in images:
        if why := _why_unwanted(image, recipe):
            excluded[why] += 1
        (unwanted if why else wanted).append(image)
    return wanted, unwanted


def _why_unwanted(image: LabelledImage, recipe: Recipe) -> str:
    index = recipe.class_of(image.label)
    if index is None and image.label not in recipe.soft_labels:
        return f"label {image.label} is in no class of the recipe"
    return recipe.data.why_excluded(image, positive=index == recipe.positive_index)


def _elsewhere(
    unwanted: Sequence[LabelledImage],
) -> tuple[list[LabelledImage], list[Fingerprint]]:
    """Unwanted images of splits that the run does not use, and their fingerprints.

    `evaluate` measures them, whatever the recipe wants: a run must not share them either. Those of
    `train` and `val` have no part in the run.
    """
    others = [image for image in unwanted if image.split not in ("", "train", "val")]
    if not others:
        return [], []
    images, read = _readable(others, Counter())  # they are counted as unwanted
    return images, [it.fingerprint for it in read]


@dataclass(frozen=True)
class _Searched:
    """The images among which leaks are searched, with their fingerprints.

    Attributes:
        images: Images of the run.
        prints: Theirs.
        others: Images that have no part in the run.
        prints_of_others: Theirs.
    """

    images: list[LabelledImage]
    prints: list[Fingerprint]
    others: list[LabelledImage]
    prints_of_others: list[Fingerprint]

    def leaks(self) -> list[Leak]:
        return find_leaks([*self.images, *self.others], [*self.prints, *self.prints_of_others])

    def without(self, shared: set[int]) -> _Searched:
        """The same without some images of the run."""
        kept = [place for place in range(len(self.images)) if place not in shared]
        return replace(
            self,
            images=[self.images[place] for place in kept],
            prints=[self.prints[place] for place in kept],
        )

    @property
    def hashes(self) -> dict[Path, str]:
        """SHA-256 of the run's images by path."""
        pairs = zip(self.images, self.prints, strict=True)
        return {image.path: one.sha256 for image, one in pairs}


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
    kept: dict[str, list[LabelledImage]],
    recipe: Recipe,
    data: Path,
    excluded: Counter[str],
    unwanted: Sequence[LabelledImage],
) -> None:
    for split in ("train", "val"):
        present = {recipe.class_of(image.label) for image in kept[split]}
        for index, (name, labels) in enumerate(recipe.classes.items()):
            if index not in present:
                raise DataError(
                    f"{data}: class {name!r} has no image in split {split!r}; expected images "
                    f"labelled {' or '.join(labels)}, such as in {_where(data, split, labels[0])}"
                    f"{_chief_reason(excluded)}{_unknown_label(unwanted, recipe, name)}"
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


def _unknown_label(unwanted: Sequence[LabelledImage], recipe: Recipe, name: str) -> str:
    """How the commonest label that the recipe does not know becomes one of a class."""
    labels = (image.label for image in unwanted)
    unknown = Counter(
        label
        for label in labels
        if recipe.class_of(label) is None and label not in recipe.soft_labels
    )
    if not unknown:
        return ""
    ((label, _),) = unknown.most_common(1)
    if recipe.data.groups:
        return f"; no group of the recipe draws label {label!r}: choose a recipe without groups"
    labels_of_class = json.dumps([*recipe.classes[name], label], ensure_ascii=False)
    change = shlex.quote(f"classes.{name}={labels_of_class}")
    return f"; to take label {label!r} as class {name!r}, add --set {change}"


def _leak_message(data: Path, leaks: Sequence[Leak]) -> str:
    named = "; ".join(str(leak) for leak in leaks[:_NAMED_LEAKS])
    more = len(leaks) - _NAMED_LEAKS
    return (
        f"{data}: {named}{f'; and {more} more' if more > 0 else ''}: give all images of a patient "
        "and all near-duplicates of an image to one split (--leaks FILE lists them), or add "
        "--exclude-leaks or --allow-leaks"
    )
