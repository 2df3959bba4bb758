"""How data sets are stored: each layout is recognised by its files, never by a flag.

| layout | recognised by |
| --- | --- |
| manifest | `manifest.csv`, or any CSV with columns `path` and `label` |
| covid-chestxray-dataset (Cohen et al. 2020, arXiv 2006.11988) | `metadata.csv` with columns \
`finding` and `filename` |
| folder per split and class, such as COVID-Xray-5k: `train/covid`, `test/non` | a folder named \
after a split |
| COVID-19 Radiography Database: `COVID/images` beside `COVID/masks` | a class folder with both: \
masks are not images; older versions have `COVID.metadata.xlsx` and no masks |
| folder per class | anything else |

A folder that only wraps one of these, as an unpacked archive does, is skipped. A folder per class
cannot be recognised, so a wrapper around one is not skipped.

A CSV is UTF-8. Commas, semicolons or tabs separate its cells, whichever its header has most of;
Excel writes semicolons where the comma is the decimal sign. Its line `sep=;` and emptied rows are
skipped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from urllib.parse import urlsplit

from deepcovid_edge.datasets.folders import FolderWalk, is_folder, is_system_folder
from deepcovid_edge.errors import DataError
from deepcovid_edge.files import open_regular

MANIFEST_NAME = "manifest.csv"
METADATA_NAME = "metadata.csv"
SPLITS = ("train", "val", "test", "external")
_SPLIT_NAMES = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}
_SPREADSHEET = ".metadata.xlsx"
_MOST_WRAPPERS = 3
_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("", "0", "0.0", "false", "f", "no", "n"), False),
}
"""Text of a column that says yes or no, as people, Python and pandas write it."""
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_ROUNDING = 0.01
"""By how much an edge of a box may pass the image's, as a fraction of its side."""


Box = tuple[float, float, float, float]
"""Left, top, width and height of an opacity, each as a fraction of the image's side."""

_Rows = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True)
class LabelledImage:
    """One image of a data set, with what is known about it.

    Attributes:
        path: The file.
        label: Class name as the data set spells it.
        split: `train`, `val`, `test`, ... or empty.
        patient: Opaque patient identifier, or empty.
        source: Collection or hospital, or empty.
        view: Projection, such as `PA` or `AP Supine`, or empty.
        boxes: Opacities as a reader drew them; empty where none was drawn.
        clear: Whether a reader saw no abnormality on it, whatever its label says.
        is_child: Whether the patient is known to be a child.
    """

    path: Path
    label: str
    split: str = ""
    patient: str = ""
    source: str = ""
    view: str = ""
    boxes: tuple[Box, ...] = ()
    clear: bool = False
    is_child: bool = False


def images_of(data: Path, excluded: Counter[str] | None = None) -> Iterator[LabelledImage]:
    """The images of a data set in a stable order.

    Args:
        data: A CSV or a folder in one of the layouts above.
        excluded: Receives what a table lists and is not an image: why -> how many.

    Raises:
        DataError: A folder or CSV cannot be read, a CSV lacks a column or names a file that is
            not there.
    """
    place = place_of(data)
    if place.is_dir():
        yield from _from_folders(place)
    elif _is_metadata(place):
        yield from _from_metadata(place, Counter() if excluded is None else excluded)
    else:
        yield from _from_manifest(place)


def place_of(data: Path) -> Path:
    """The CSV that lists the images of a data set, else the folder of its splits or classes.

    Raises:
        DataError: A folder or CSV cannot be read.
    """
    if not data.is_dir():
        return data
    folder = _unwrapped(data)
    return _table_in(folder) or folder


def walk_files(folder: Path) -> Iterator[Path]:
    """Files below a folder that count as images until they are read; see `folders`."""
    return FolderWalk().images([folder])


def _folders_in(folder: Path) -> list[Path]:
    try:
        inner = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    return [
        path
        for path in inner
        if path.name[0] != "." and not is_system_folder(path.name) and is_folder(path)
    ]


def _unwrapped(data: Path) -> Path:
    folder = data
    for _ in range(_MOST_WRAPPERS):
        inner = _folders_in(folder)
        if _is_recognised(folder) or len(inner) != 1:
            break
        folder = inner[0]
    return folder if _is_recognised(folder) else data


def _is_recognised(folder: Path) -> bool:
    if not os.access(folder, os.R_OK | os.X_OK):
        return False
    if _table_in(folder) is not None or any(folder.glob(f"*{_SPREADSHEET}")):
        return True
    return any(
        inner.name.lower() in _SPLIT_NAMES or _has_masks(inner) for inner in _folders_in(folder)
    )


def _table_in(folder: Path) -> Path | None:
    manifest, metadata = folder / MANIFEST_NAME, folder / METADATA_NAME
    if manifest.is_file():
        return manifest
    return metadata if metadata.is_file() and _is_metadata(metadata) else None


def _from_folders(data: Path) -> Iterator[LabelledImage]:
    folders = _folders_in(data)
    if any(folder.name.lower() in _SPLIT_NAMES for folder in folders):
        for folder in folders:
            split = _SPLIT_NAMES.get(folder.name.lower(), folder.name)
            for inner in _folders_in(folder):
                for path in _images_in(inner):
                    yield LabelledImage(path, inner.name, split=split)
        return
    for folder in folders:
        for path in _images_in(folder):
            yield LabelledImage(path, folder.name)


def _has_masks(folder: Path) -> bool:
    return all(is_folder(folder / name) for name in ("images", "masks"))


def _images_in(folder: Path) -> Iterator[Path]:
    for path in walk_files(folder / "images" if _has_masks(folder) else folder):
        if not path.name.endswith(_SPREADSHEET):
            yield path


@contextmanager
def _opened(table: Path) -> Iterator[tuple[str, _Rows]]:
    """The separator of a CSV, and its rows from the header on, each with its last line's number."""
    try:
        with io.TextIOWrapper(open_regular(table), "utf-8-sig", newline="") as stream:
            first = stream.readline()
            unquoted = re.sub('"[^"]*"', "", first)
            separator = max(_SEPARATORS, key=unquoted.count)
            rows = _numbered(chain([first], stream), separator, table)
            if first.startswith("sep="):  # names the separator to Excel
                next(rows)
            yield separator, rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a CSV in UTF-8: {error}") from error


def _numbered(lines: Iterable[str], separator: str, table: Path) -> _Rows:
    """Rows and the numbers of their last lines; quotes that join lines must be right."""
    of_row: list[str] = []

    def taken() -> Iterator[str]:
        for line in lines:
            of_row.append(line)
            yield line
        of_row.append("")  # within a row, the end is only reached behind an unclosed quote

    rows = csv.reader(taken(), delimiter=separator)
    while True:
        of_row.clear()
        try:
            row = next(rows)
            if len(of_row) > 1:
                list(csv.reader(of_row, delimiter=separator, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            if len(of_row) < 2:
                raise
            line = rows.line_num + 1 - len([*filter(None, of_row)])
            raise DataError(
                f"{table}, line {line}: a quote of the row that begins here is not closed, or text "
                "follows the one that closes it: correct the row; within quotes, write a quote "
                "twice"
            ) from error
        yield rows.line_num, row


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV; column names in lower case, as older files differ in case."""
    with _opened(table) as (separator, rows):
        names = _names(rows, table)
        has_rows = False
        for line, row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):  # of an emptied row Excel keeps the separators
                continue
            has_rows = True
            if len(cells) > len(names):  # a separator without quotes shifts what follows
                raise DataError(
                    f"{table}, line {line}: got {len(cells)} cells, expected "
                    f"{len(names)} as in the header: correct the row; a cell with a "
                    f"{_SEPARATORS[separator]} needs quotes"
                )
            if any(_holds_a_row(cell, names, separator, table) for cell in cells):
                raise DataError(
                    f"{table}, line {line}: a cell that ends here holds whole rows: close its "
                    "quote before them"
                )
            # Spreadsheets leave out the separators of empty cells that end a row.
            yield line, dict(zip_longest(names, cells, fillvalue=""))
        if not has_rows:
            raise DataError(f"{table}: has only a header: list one image per line below it")


def _holds_a_row(cell: str, names: list[str], separator: str, table: Path) -> bool:
    """Whether a quote that is closed too late has swallowed a row: a line names another image."""
    _, *later = cell.splitlines() or [""]
    if not later or "path" not in names:
        return False
    place = names.index("path")
    found = [row for row in csv.reader(later, delimiter=separator) if len(row) == len(names)]
    return any((table.parent / row[place].strip()).is_file() for row in found)


def _header(table: Path) -> list[str]:
    with _opened(table) as (_, rows):
        return _names(rows, table)


def _names(rows: _Rows, table: Path) -> list[str]:
    _, header = next(rows, (0, []))
    names = [name.strip().lower() for name in header]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(f"{table}: has the column {twice[0]!r} twice, capitals aside: remove one")
    return names


def _is_metadata(table: Path) -> bool:
    names = set(_header(table))
    return {"finding", "filename"} <= names and not {"path", "label"} <= names


def _from_manifest(manifest: Path) -> Iterator[LabelledImage]:
    header = _header(manifest)
    if missing := {"path", "label"} - set(header):
        raise DataError(
            f"{manifest}: columns {', '.join(sorted(missing))} are missing; "
            f"it has {', '.join(header or ['none'])}"
        )
    for line, row in _rows(manifest):
        path = _present(manifest.parent / row["path"], manifest, line)
        known = {name: row.get(name, "") for name in ("patient", "source", "view")}
        split = row.get("split", "")
        yield LabelledImage(
            path,
            row["label"],
            _SPLIT_NAMES.get(split.lower(), split),
            **known,
            boxes=_boxes(row.get("boxes", ""), manifest, line),
            clear=_flag(row, "no_visible_abnormality", manifest, line),
            is_child=_flag(row, "paediatric", manifest, line),
        )


def _flag(row: Mapping[str, str], name: str, manifest: Path, line: int) -> bool:
    text = row.get(name, "").strip()
    try:
        return _FLAGS[text.casefold()]
    except KeyError:
        raise DataError(
            f"{manifest}, line {line}: {name}: got {text[:80]!r}, expected yes or no, or 1 or 0"
        ) from None


def _boxes(text: str, manifest: Path, line: int) -> tuple[Box, ...]:
    """The boxes of a row: a JSON list of [x, y, width, height], or nothing."""
    try:
        return tuple(_box(numbers) for numbers in json.loads(text or "[]"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{manifest}, line {line}: boxes: got {text[:80]!r}, expected a JSON list of "
            "[x, y, width, height] as fractions of the image, 0 to 1: correct the row"
        ) from error


def _box(numbers: list[float]) -> Box:
    """Four fractions; an edge may pass the image's by rounding."""
    left, top, width, height = (float(number) for number in numbers)
    ends = (left, top, left + width, top + height)
    if not all(-_ROUNDING <= end <= 1 + _ROUNDING for end in ends) or min(width, height) <= 0:
        raise ValueError("a box outside the image")  # a comparison with NaN fails too
    return left, top, width, height


def _from_metadata(metadata: Path, excluded: Counter[str]) -> Iterator[LabelledImage]:
    """Images of the covid-chestxray-dataset; its SCHEMA.md explains the columns.

    CT slices and volumes are excluded. Early versions have no columns `folder` and `modality`; they
    name CT in `view`.
    """
    for line, row in _rows(metadata):
        view = row.get("view", "")
        modality = row.get("modality", "CT" if view in _CT_VIEWS else "X-ray")
        if modality != "X-ray":
            excluded[f"modality {modality or 'unknown'} is not X-ray"] += 1
            continue
        path = metadata.parent / row.get("folder", "images") / row["filename"]
        yield LabelledImage(
            _present(path, metadata, line),
            label_of_finding(row["finding"]),
            patient=row.get("patientid", ""),
            source=_host(row.get("url", "")),
            view=view,
        )


def _host(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").removeprefix("www.")
    except ValueError:  # not an address
        return ""


_CT_VIEWS = {"CT", "Axial", "Coronal"}


def label_of_finding(finding: str) -> str:
    """A label for a finding such as `Pneumonia/Viral/COVID-19`.

    Returns:
        `covid` where COVID-19 is named, `normal` for `No Finding`, else the first and broadest
        part in lower case: `pneumonia`, `tuberculosis`, `unknown`, `todo`.
    """
    if "COVID-19" in finding:
        return "covid"
    if finding == "No Finding":
        return "normal"
    return re.split("[/,]", finding, maxsplit=1)[0].strip().lower()


def _present(path: Path, table: Path, line: int) -> Path:
    if not path.is_file():
        raise DataError(f"{table}, line {line}: no such file: {path}")
    return path
