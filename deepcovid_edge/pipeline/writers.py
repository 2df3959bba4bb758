"""Write records as they are ready: JSON Lines, CSV or a table; go on with a file after a kill."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, KeysView, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard

from deepcovid_edge.decision.record import NOT_ASSESSED, Prediction, RunFacts
from deepcovid_edge.errors import NotAssessedError, OutputError, UsageError
from deepcovid_edge.files import check_replaced
from deepcovid_edge.imaging.files import read_source
from deepcovid_edge.reasons import Reason

_SYNC_SECONDS = 1.0
_READER_SECONDS = 60.0
"""Longest wait for the reader of a pipe that results go to."""
_READER_LOOK_SECONDS = 0.05
_CHANGED_SECONDS = 86_400.0
_BEGIN = b'{"schema_version"'
"""Of every record."""
_RUN_COLUMNS = ("model_sha256", "limits", "site")


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
        records: Path -> what its last record says.
        length: Length of the records that stay, bytes; what follows is a torn line, or images that
            had no room on the disk and are assessed now.
        written: When the last of them was written, seconds of the system's clock.
        again: Images that are classified again so far, as their files have changed.
    """

    records: dict[str, Done] = field(default_factory=dict)
    length: int = 0
    written: float = 0.0
    again: int = 0

    @property
    def paths(self) -> KeysView[str]:
        """Paths that have a record."""
        return self.records.keys()

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
            path = str(image)
            if path not in self.records:
                yield image
            elif self._has_changed(image, self.records[path]):
                del self.records[path]
                self.again += 1
                yield image

    def _has_changed(self, image: Path, done: Done) -> bool:
        try:
            found = image.stat()
            changed = max(found.st_mtime, found.st_ctime)
            if done.assessed and changed < self.written - _CHANGED_SECONDS:
                return False
            return read_source(image).sha256 != done.sha256
        except (OSError, NotAssessedError):  # cannot be read: as before, or not any more?
            return done.sha256 is not None


class RecordWriter(Protocol):
    """Takes records in order."""

    def write(self, *records: Prediction) -> None:
        """Write records that are ready and pass them on to the operating system."""

    def close(self) -> None:
        """Write what belongs after the last record."""


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, *records: Prediction) -> None:
        """Write records."""
        self._stream.writelines(record.as_json() + "\n" for record in records)
        self._stream.flush()

    def close(self) -> None:
        """Nothing follows the last record."""


class CsvWriter:
    """The same columns, flattened; the header stands first, in a file without a record too."""

    def __init__(self, stream: IO[str], columns: Sequence[str], *, header: bool = True) -> None:
        self._stream = stream
        self._has_header = not header
        self._csv = csv.DictWriter(
            stream, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )

    def write(self, *records: Prediction) -> None:
        """Write records."""
        self._begin()
        self._csv.writerows(record.as_row() for record in records)
        self._stream.flush()

    def close(self) -> None:
        """Write the header where there was no record."""
        self._begin()
        self._stream.flush()

    def _begin(self) -> None:
        if not self._has_header:
            self._csv.writeheader()
            self._has_header = True


class RecordFile:
    """A file of records that survives a kill: locked, flushed at once, synced every second."""

    def __init__(self, path: Path, run: RunFacts, *, kind: str, resume: bool) -> None:
        """Open the file.

        Args:
            path: The file; created, or cut to nothing, or gone on with.
            run: The run, which must be that of the records already there.
            kind: `jsonl`, `csv` or `table`.
            resume: Go on with the records that are there.

        Raises:
            OutputError: The file cannot be written, another process writes it, or what it holds
                are no records, or no text.
            UsageError: Its records come from another model or threshold.
        """
        self._special = path.exists() and not path.is_file()
        if resume and (self._special or kind == "table"):
            raise UsageError("resume: needs an output file of JSON Lines or CSV: -o FILE.jsonl")
        self.earlier = Earlier()
        if not resume:
            check_replaced(path)
        stream = _open_locked(path)
        try:
            if resume:
                self.earlier = _read_earlier(path, kind, run)
            if not self._special:
                stream.truncate(self.earlier.length)
                stream.seek(self.earlier.length)
        except BaseException:
            stream.close()
            raise
        self._path = path
        self._text = io.TextIOWrapper(
            stream, encoding="utf-8", errors="surrogateescape", newline=""
        )
        self._writer = make_writer(kind, self._text, run, header=self.earlier.length == 0)
        self._whole = self.earlier.length
        self._synced = time.monotonic()

    def write(self, *records: Prediction) -> None:
        """Write records: all of them, or none where the disk is full.

        Raises:
            OutputError: The disk is full or gone.
        """
        with self._failures():
            self._writer.write(*records)
            if not self._special:
                self._whole = os.lseek(self._text.fileno(), 0, os.SEEK_CUR)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()

    def close(self) -> None:
        """Sync and close the file.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._text.closed:
            return
        with self._failures():
            self._writer.close()
            self._sync()
            self._text.close()

    def _sync(self) -> None:
        self._text.flush()
        if not self._special:
            os.fsync(self._text.fileno())
        self._synced = time.monotonic()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Name the file in errors of the system, and leave whole records behind, no half one."""
        try:
            yield
        except OSError as error:
            handle = os.dup(self._text.fileno())  # keeps the lock until the file is cut
            for layer in (self._text, self._text.buffer):
                with contextlib.suppress(OSError, ValueError):
                    layer.close()
            with contextlib.suppress(OSError):
                if not self._special:
                    os.ftruncate(handle, self._whole)
            os.close(handle)
            raise OutputError(f"{self._path}: {error.strerror or error}") from error


def make_writer(kind: str, stream: IO[str], run: RunFacts, *, header: bool = True) -> RecordWriter:
    """A writer for `jsonl`, `csv` or `table` of a run."""
    if kind == "csv":
        return CsvWriter(stream, [*Prediction("", run).as_row()], header=header)
    if kind == "table":
        from deepcovid_edge.pipeline.table import TableWriter  # rich is slow to import

        return TableWriter(stream)
    return JsonLinesWriter(stream)


def _open_locked(path: Path) -> IO[bytes]:
    try:
        if path.exists() and not path.is_file():
            return _open_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise OutputError(f"{path}: another deepcovid-edge is writing it") from error
    except OSError:  # a file system without locks
        return stream
    return stream


def _open_special(path: Path) -> IO[bytes]:
    """/dev/null, or a pipe once somebody reads it; how fast it is read then is the reader's."""
    ends = time.monotonic() + _READER_SECONDS
    while (handle := _writable(path)) is None:
        if time.monotonic() > ends:
            raise OutputError(f"{path}: nobody reads this pipe: start its reader first")
        time.sleep(_READER_LOOK_SECONDS)
    os.set_blocking(handle, True)
    return os.fdopen(handle, "wb")


def _writable(path: Path) -> int | None:
    """The open file; None for a pipe without a reader, which is not waited for (fifo(7))."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            return None
        raise


def _read_earlier(path: Path, kind: str, run: RunFacts) -> Earlier:
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
            _check_same_run(row, expected, path)
            if row.get("reason") == Reason.DISK.code:
                break
            done = Done(row["sha256"] or None, row["status"] != NOT_ASSESSED)
            earlier.records[row["path"]] = done
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


def _check_same_run(row: dict[str, Any], expected: dict[str, str], path: Path) -> None:
    for name, value in expected.items():
        got = _as_text(row.get(name))
        if got != value:
            raise UsageError(
                f"resume: {path} has records with {name} {got or 'none'}, this run has "
                f"{value or 'none'}: use the same model and threshold, or another output file"
            )


def _as_text(value: Any) -> str:
    """As a CSV holds it, in one line."""
    return "" if value is None else " ".join(str(value).split())
