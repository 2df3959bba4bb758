"""DATA on the command line: labelled films from a folder or from a manifest CSV.

Accepted forms (`layouts` says how each is recognised):

- a manifest CSV, or a folder that holds `manifest.csv`: columns `path` (relative to the CSV),
  `label`, and optionally `split`, `patient`, `source`, `view`, `sha256`;
- a folder with one folder per class: `DATA/covid/*.png`, `DATA/normal/*.png`;
- a folder with one folder per split, each with one per class: `DATA/train/covid/*.png`;
- the published folders of COVID-Xray-5k, of the COVID-19 Radiography Database and of the
  covid-chestxray-dataset as they are downloaded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from deepcovid_edge.datasets.layouts import (
    MANIFEST_NAME,
    SPLITS,
    LabelledFilm,
    films_of,
    walk_files,
)
from deepcovid_edge.errors import DataError, UsageError

__all__ = [
    "MANIFEST_NAME",
    "SPLITS",
    "LabelledFilm",
    "check_labels",
    "dataset_sha256",
    "load_dataset",
    "load_site",
    "walk_files",
]


def load_dataset(
    data: Path, *, split: str | None = None, left_out: Counter[str] | None = None
) -> list[LabelledFilm]:
    """List the labelled films of DATA in a stable order.

    Args:
        data: A CSV or a folder, see the module's description.
        split: Keep only the films of this split.
        left_out: Gets what a table lists and is no film: why -> how many.

    Raises:
        DataError: DATA is not there, has no labelled film, or its manifest lacks a column.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder; expected a data set")
    films = list(films_of(data, left_out))
    if split is not None:
        present = sorted({film.split for film in films if film.split})
        films = [film for film in films if film.split == split]
        if not films:
            raise DataError(f"{data}: no film of split {split!r}; it has {present or 'no splits'}")
    if not films:
        raise DataError(f"{data}: no labelled film found; expected one folder per class")
    return films


def load_site(
    data: Path, *, split: str | None = None, source: str | None = None
) -> list[LabelledFilm]:
    """List the labelled films of one site.

    Args:
        data: As of `load_dataset`.
        split: Keep only the films of this split.
        source: Keep only the films of this source.

    Raises:
        DataError: As `load_dataset`, or there is no film of that source.
        UsageError: DATA has splits, and none was named.
    """
    films = load_dataset(data, split=split)
    if splits := sorted({film.split for film in films if film.split} - {split}):
        raise UsageError(f"--split: {data} has {', '.join(splits)}, which do not pool: give one")
    if source is None:
        return films
    present = sorted({film.source for film in films if film.source})
    films = [film for film in films if film.source == source]
    if not films:
        known = ", ".join(present) or "no sources"
        raise DataError(f"{data}: no film of source {source!r}; it has {known}")
    return films


def check_labels(films: Iterable[LabelledFilm], known: Collection[str]) -> None:
    """Check that every film's label means something to a model.

    Raises:
        DataError: A label belongs to no class of the model; it is neither positive nor negative.
    """
    unknown = sorted({film.label for film in films} - set(known))
    if unknown:
        raise DataError(
            f"label {unknown[0]!r} belongs to no class of the model; "
            f"expected one of {', '.join(sorted(known))}"
        )


def dataset_sha256(films: Iterable[LabelledFilm]) -> str:
    """SHA-256 over names, labels and contents of films, in their order."""
    digest = hashlib.sha256()
    for film in films:
        digest.update(f"{film.path.name}\0{film.label}\0".encode())
        digest.update(hashlib.sha256(film.path.read_bytes()).digest())
    return digest.hexdigest()
