"""DATA on the command line: labelled films from a folder per class or from a manifest CSV.

Accepted forms:

- a manifest CSV, or a folder that holds `manifest.csv`: columns `path` (relative to the CSV),
  `label`, and optionally `split`, `patient`, `source`, `view`, `sha256`;
- a folder with one folder per class: `DATA/covid/*.png`, `DATA/normal/*.png`;
- a folder with one folder per split, each with one per class: `DATA/train/covid/*.png`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepcovid_edge.errors import DataError

MANIFEST_NAME = "manifest.csv"
SPLITS = ("train", "val", "test", "external")
_SKIPPED_NAMES = {MANIFEST_NAME, "thumbs.db", "desktop.ini", "dicomdir"}


@dataclass(frozen=True)
class LabelledFilm:
    """One film of a data set, with what is known of it.

    Attributes:
        path: The file.
        label: Class name as the data set spells it.
        split: `train`, `val`, `test`, ... or empty.
        patient: Opaque patient identifier, or empty.
        source: Collection or hospital, or empty.
    """

    path: Path
    label: str
    split: str = ""
    patient: str = ""
    source: str = ""


def walk_files(folder: Path) -> Iterator[Path]:
    """Files below a folder in a stable order (folders and names sorted together).

    Hidden files and what accompanies films by name (`manifest.csv`, `Thumbs.db`, `DICOMDIR`) are
    left out; everything else is a film until its content says otherwise. Links are followed, but
    not in a circle. A folder that cannot be listed is itself yielded, so that it is not lost.
    """
    return _walk(folder, frozenset())


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in ordered:
        if entry.name.startswith(".") or entry.name.lower() in _SKIPPED_NAMES:
            continue
        if _is_folder(entry):
            yield from _walk(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered: a file, refused
        return False


def load_dataset(data: Path, *, split: str | None = None) -> list[LabelledFilm]:
    """List the labelled films of DATA in a stable order.

    Args:
        data: A manifest CSV or a folder, see the module's description.
        split: Keep only the films of this split.

    Raises:
        DataError: DATA is not there, has no labelled film, or its manifest lacks a column.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder; expected a data set")
    manifest = data / MANIFEST_NAME if data.is_dir() else data
    films = list(_from_manifest(manifest) if manifest.is_file() else _from_folders(data))
    if split is not None:
        present = sorted({film.split for film in films if film.split})
        films = [film for film in films if film.split == split]
        if not films:
            raise DataError(f"{data}: no film of split {split!r}; it has {present or 'no splits'}")
    if not films:
        raise DataError(f"{data}: no labelled film found; expected one folder per class")
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


def _from_manifest(manifest: Path) -> Iterator[LabelledFilm]:
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(
                f"{manifest}: columns {', '.join(sorted(missing))} are missing; "
                f"it has {', '.join(rows.fieldnames or ['none'])}"
            )
        for row in rows:
            path = manifest.parent / row["path"]
            if not path.is_file():
                raise DataError(f"{manifest}, line {rows.line_num}: no such file: {path}")
            known = {name: row.get(name) or "" for name in ("split", "patient", "source")}
            yield LabelledFilm(path, row["label"], **known)


def _from_folders(data: Path) -> Iterator[LabelledFilm]:
    folders = sorted(entry for entry in data.iterdir() if entry.is_dir())
    if {folder.name for folder in folders} & set(SPLITS):
        for folder in folders:
            for film in _from_folders(folder):
                yield LabelledFilm(film.path, film.label, split=folder.name)
        return
    for folder in folders:
        for path in walk_files(folder):
            yield LabelledFilm(path, folder.name)
