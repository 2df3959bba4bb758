"""What an interrupted run has written: which images have a record, and whether it was this run."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from deepcovid_edge.decision.out_of_distribution import REJECT, WARN
from deepcovid_edge.decision.record import ASSESSED, NOT_ASSESSED, Prediction, RunFacts
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotAssessedError, OutputError, UsageError
from deepcovid_edge.imaging.files import read_source
from deepcovid_edge.pipeline.classifier import BY_THE_PICTURE
from deepcovid_edge.reasons import Reason, WarningCode

_CHANGED_SECONDS = 86_400.0
_BEGIN = b'{"schema_version"'
"""Of every record."""
_RUN_COLUMNS = ("model_sha256", "backend", "limits", "site")
_OF_LIMITS = (Reason.OOD.code, Reason.TURNED.code)
"""Reasons that only the out-of-distribution limits give; `E_AGE` has other causes too."""
_UP = "/../"


@dataclass(frozen=True)
class ShownOptions:
    """Options of a run that its records show although no column names them.

    Attributes:
        ood: `reject` or `warn`.
        heatmap: Whether heat maps are made.
        overlay: Whether pictures of them are drawn.
    """

    ood: str = REJECT
    heatmap: bool = False
    overlay: bool = False


_MADE = {"heatmap": "heat maps", "overlay": "pictures of heat maps"}


@dataclass(frozen=True)
class Done:
    """What is known of an image that has a record.

    Attributes:
        sha256: SHA-256 of the file, or None where it could not be read.
        assessed: Whether it has a result.
    """

    sha256: str | None
    assessed: bool


@dataclass
class Earlier:
    """What an interrupted run has already written.

    Attributes:
        records: Place of an image (`_place`) -> what its last record says.
        length: Length of the records that stay, bytes; what follows is a torn line, or images that
            had no room on the disk and are assessed now.
        written: When the last of them was written, seconds of the system's clock.
        again: Images that are classified again so far, as their files have changed.
    """

    records: dict[str, Done] = field(default_factory=dict)
    length: int = 0
    written: float = 0.0
    again: int = 0

    def holds(self, path: str) -> bool:
        """Whether an image has a record, by whatever path it was named."""
        return _place(path) in self.records

    @property
    def not_assessed(self) -> int:
        """How many images have a reason instead of a result."""
        return sum(not done.assessed for done in self.records.values())

    def left_of(self, images: Iterable[Path]) -> Iterator[Path]:
        """The images that have no record, and those whose files have changed since.

        The bytes of a file are compared with its record (SHA-256) where the record has a reason,
        and where the file was changed later than a day before the last record was written. The day
        is for long runs and for clocks that differ. Other files are taken for unchanged.
        """
        for image in images:
            place = _place(str(image))
            if place not in self.records:
                yield image
            elif self._has_changed(image, self.records[place]):
                del self.records[place]
                self.again += 1
                yield image

    def _has_changed(self, image: Path, done: Done) -> bool:
        try:
            found = shares.call(image, lambda _: image.stat())
            changed = max(found.st_mtime, found.st_ctime)
            if done.assessed and changed < self.written - _CHANGED_SECONDS:
                return False
            return read_source(image).sha256 != done.sha256
        except (OSError, NotAssessedError):  # cannot be read: as before, or not any more?
            return done.sha256 is not None


def _place(path: str) -> str:
    """Where a path leads, from the working folder on, without asking the disk for each image.

    Links stay as they are: two names of one file are two images. But only the disk knows where `..`
    leads behind a link.
    """
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - a Path's costs 8 times more
    folder, up, rest = path.rpartition(_UP)
    return f"{_parent(folder)}/{rest}" if up else path


@lru_cache(maxsize=1024)
def _parent(folder: str) -> str:
    parent = f"{folder}/.."
    try:
        return shares.call(Path(folder), lambda _: os.path.realpath(parent))
    except (OSError, ValueError):  # a share that does not answer, or a damaged record
        return parent


def read_earlier(path: Path, kind: str, run: RunFacts, options: ShownOptions | None) -> Earlier:
    """Read the records that are in a file.

    Args:
        path: The file.
        kind: `jsonl` or `csv`.
        run: The run that goes on with them.
        options: Of that run; None if records of any may be gone on with.

    Raises:
        OutputError: What the file holds are no records.
        UsageError: They come from another run.
    """
    data = path.read_bytes()
    blank = Prediction("", run)
    values = blank.as_row() if kind == "csv" else blank.as_dict()
    found = _csv_rows(data, path, [*values]) if kind == "csv" else _json_rows(data, path)
    expected = {
        name: _as_text(value)
        for name, value in values.items()
        if name.partition(".")[0] in _RUN_COLUMNS
    }
    earlier = Earlier(written=path.stat().st_mtime)
    try:
        for row, end in found:
            _check_same_run(row, expected, options, path)
            if row.get("reason") == Reason.DISK.code:
                break
            done = Done(row.get("sha256") or None, row["status"] != NOT_ASSESSED)
            earlier.records[_place(row["path"])] = done
            earlier.length = end
    except (csv.Error, RecursionError) as error:
        raise OutputError(f"{path}: no file of records, or a damaged one ({error})") from error
    return earlier


def _json_rows(data: bytes, path: Path) -> Iterable[tuple[dict[str, Any], int]]:
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not _is_record(row):
            is_torn = _BEGIN.startswith(line[: len(_BEGIN)]) or not line.strip(b"\0")
            if end + len(line) < len(data) or not is_torn:
                raise OutputError(f"{path}: byte {end}: not a record of deepcovid-edge infer")
            return  # the last line was torn by the kill
        end += len(line)
        yield row, end


def _is_record(row: Any) -> TypeGuard[dict[str, Any]]:
    kept = (row.get("path"), row.get("status")) if isinstance(row, dict) else (None,)
    return all(isinstance(value, str) for value in kept)


def _csv_rows(data: bytes, path: Path, columns: list[str]) -> Iterable[tuple[dict[str, Any], int]]:
    """Rows with the position after each; a row is whole when it has every column and a line end."""
    counted = _CountedLines(data)
    reader = csv.reader(counted)
    header = next(reader, [])
    if counted.last.endswith("\n") and header != columns:
        if not {"path", "status", "model_sha256"} <= set(header):
            raise OutputError(f"{path}: line 1: not a record of deepcovid-edge infer")
        raise UsageError(
            f"resume: {path} has the columns of another model or version: use the same, or "
            "another output file"
        )
    for values in reader:
        if len(values) != len(header) or not counted.last.endswith("\n"):
            if counted.position < len(data):
                raise OutputError(f"{path}: byte {counted.position}: not a record")
            return
        yield dict(zip(header, values, strict=True)), counted.position


class _CountedLines:
    def __init__(self, data: bytes) -> None:
        self._lines = iter(data.splitlines(keepends=True))
        self.position = 0
        self.last = ""

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.position += len(line)
        self.last = line.decode(errors="surrogateescape")
        return self.last


def _check_same_run(
    row: dict[str, Any], expected: dict[str, str], options: ShownOptions | None, path: Path
) -> None:
    for name, value in expected.items():
        _check_same(name, _as_text(row.get(name)), value, path)
    for name, shown in _shown_options(row) if options else ():
        _check_same(name, shown, getattr(options, name), path)


def _check_same(name: str, got: str | bool, value: str | bool, path: Path) -> None:
    if got != value:
        raise UsageError(
            f"resume: the records of {path} were made {_made(name, got)}, this run is "
            f"{_made(name, value)}: use the same model and options, or another output file"
        )


def _made(name: str, value: str | bool) -> str:
    if isinstance(value, bool):
        return f"{'with' if value else 'without'} {_MADE[name]}"
    return f"with {name} {value or 'none'}"


def _shown_options(row: Mapping[str, Any]) -> Iterator[tuple[str, str | bool]]:
    """Which `ShownOptions` a record was made with; those that would not change it are left out."""
    codes = re.findall(r"\w+", str(row.get("warnings")))  # a list in JSON, one text in CSV
    if WarningCode.OOD.code in codes and WarningCode.SYNTHETIC.code not in codes:
        yield "ood", WARN
    elif _is_beyond_limits(row):
        yield "ood", REJECT
    if row["status"] == ASSESSED:
        has_map = bool(row.get("heatmap"))
        yield "heatmap", has_map or WarningCode.NO_HEATMAP.code in codes
        if has_map:
            yield "overlay", bool(row.get("overlay"))


def _is_beyond_limits(row: Mapping[str, Any]) -> bool:
    by_the_picture = BY_THE_PICTURE in str(row.get("message"))
    reason = row.get("reason")
    return reason in _OF_LIMITS or (reason == Reason.AGE.code and by_the_picture)


def _as_text(value: Any) -> str:
    """As a CSV holds it, in one line."""
    return "" if value is None else " ".join(str(value).split())
