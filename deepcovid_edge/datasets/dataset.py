"""DATA of the command line: labelled images from a folder or from a manifest CSV.

Accepted layouts (`layouts` says how each is recognised):

- a manifest CSV, or a folder that holds `manifest.csv`: columns `path` (relative to the CSV),
  `label`, and optionally `split`, `patient`, `source`, `view`, `boxes`, `no_visible_abnormality`,
  `paediatric`; commas, semicolons or tabs between the cells;
- a folder with one folder per class: `DATA/covid/*.png`, `DATA/normal/*.png`;
- a folder with one folder per split, each with one per class: `DATA/train/covid/*.png`;
- the published folders of COVID-Xray-5k, of the COVID-19 Radiography Database and of the
  covid-chestxray-dataset as they are downloaded.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from deepcovid_edge.datasets.layouts import (
    MANIFEST_NAME,
    SPLITS,
    LabelledImage,
    images_of,
    place_of,
    walk_files,
)
from deepcovid_edge.device import shares
from deepcovid_edge.errors import DataError, NotThereError, UsageError
from deepcovid_edge.files import check_not_input, read_regular

__all__ = [
    "MANIFEST_NAME",
    "SPLITS",
    "LabelledImage",
    "check_labels",
    "check_not_read",
    "dataset_sha256",
    "load_dataset",
    "load_one_split",
    "load_site",
    "sources_and_boxes_sha256",
    "walk_files",
]


def load_dataset(
    data: Path, *, split: str | None = None, excluded: Counter[str] | None = None
) -> list[LabelledImage]:
    """List the labelled images of DATA in a stable order.

    Args:
        data: A CSV or a folder, see the module's description.
        split: Keep only the images of this split.
        excluded: Receives what a table lists and is not an image: why -> how many.

    Raises:
        NotThereError: DATA is not there, or its network share does not answer.
        DataError: DATA has no labelled image, or its manifest lacks a column.
    """
    try:
        is_there = shares.call(data, lambda _: data.exists())
    except OSError as error:
        raise NotThereError(f"{data}: {error.strerror or error}") from error
    if not is_there:
        raise NotThereError(f"{data}: no such file or folder; expected a data set")
    images = list(images_of(data, excluded))
    if not images:
        raise DataError(f"{data}: no labelled image found; expected one folder per class")
    return _chosen(images, data, "split", split)


_NO_SPLIT = (
    ": name another split, or a manifest with this one; `train` writes splits.csv, with the splits "
    "that data.shares of its recipe names"
)


def _chosen(
    images: list[LabelledImage], data: Path, field: str, value: str | None
) -> list[LabelledImage]:
    """The images with this split or source; all where None."""
    chosen = [image for image in images if value in (None, getattr(image, field))]
    if not chosen:
        known = ", ".join(sorted({getattr(image, field) for image in images} - {""}))
        fix = _NO_SPLIT if field == "split" else ""
        raise DataError(
            f"{data}: no image of {field} {value!r}; it has {known or f'no {field}s'}{fix}"
        )
    return chosen


def load_one_split(data: Path, *, split: str | None = None) -> list[LabelledImage]:
    """List the labelled images of DATA that are measured together: of one split, or without any.

    Args:
        data: See `load_dataset`.
        split: Keep only the images of this split.

    Raises:
        DataError: As `load_dataset`.
        UsageError: DATA has splits, and none was named.
    """
    images = load_dataset(data, split=split)
    splits = sorted({image.split for image in images if image.split} - {split})
    if len(splits) == 1:
        raise UsageError(f"--split: {data} has images of the split {splits[0]}: give it")
    if splits:
        raise UsageError(
            f"--split: {data} has {', '.join(splits)}, which are not measured together: give one"
        )
    return images


def load_site(
    data: Path, *, split: str | None = None, source: str | None = None
) -> list[LabelledImage]:
    """List the labelled images of one site.

    Args:
        data: See `load_dataset`.
        split: Keep only the images of this split.
        source: Keep only the images of this source.

    Raises:
        DataError: As `load_dataset`, or there is no image of that source.
        UsageError: DATA has splits, and none was named.
    """
    return _chosen(load_one_split(data, split=split), data, "source", source)


def check_not_read(output: Path | None, *sources: Path | None) -> None:
    """Refuse to write over a file that is read, or over the table that lists the images of DATA.

    Raises:
        OutputError: The output is one of them.
    """
    if output:
        for source in filter(None, sources):
            check_not_input(output, place_of(source))


def check_labels(images: Iterable[LabelledImage], known: Collection[str]) -> None:
    """Check that every image's label belongs to a class of a model.

    Raises:
        DataError: A label is neither positive nor negative.
    """
    unknown = sorted({image.label for image in images} - set(known))
    if unknown:
        raise DataError(
            f"label {unknown[0]!r} belongs to no class of the model; "
            f"expected one of {', '.join(sorted(known))}, spelt so: rename its folder, or correct "
            "the manifest"
        )


def dataset_sha256(images: Iterable[LabelledImage]) -> str:
    """SHA-256 over names, labels and contents of images, in their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(os.fsencode(image.path.name) + b"\0")  # a file's name may be any bytes
        digest.update(image.label.encode(errors="surrogateescape") + b"\0")  # so may its folder's
        digest.update(hashlib.sha256(read_regular(image.path)).digest())
    return digest.hexdigest()


def sources_and_boxes_sha256(images: Iterable[LabelledImage]) -> str:
    """SHA-256 over sources and boxes of images, in their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr((image.source, image.boxes)).encode())
    return digest.hexdigest()
