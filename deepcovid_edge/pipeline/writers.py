"""Write records as they are ready: JSON Lines, CSV or a table; go on with a file after a kill."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.device import streams
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.files import check_replaced
from deepcovid_edge.pipeline.earlier_records import Earlier, ShownOptions, read_earlier

_SYNC_SECONDS = 1.0
_READER_SECONDS = 60.0
"""Longest wait for the reader of a pipe that results go to."""
_READER_LOOK_SECONDS = 0.05


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
    """A file of records that survives a kill: locked, flushed at once, synced every second.

    Attributes:
        earlier: The records that were there already.
        can_resume: Whether a later run can go on with the file.
    """

    def __init__(
        self,
        path: Path,
        run: RunFacts,
        *,
        kind: str,
        resume: bool,
        options: ShownOptions | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: The file; created, or cut to nothing, or gone on with.
            run: The run, which must be that of the records already there.
            kind: `jsonl`, `csv` or `table`.
            resume: Go on with the records that are there.
            options: Of the run; None if records of any may be gone on with.

        Raises:
            OutputError: The file cannot be written, another process writes it, or what it holds
                are no records, or no text.
            UsageError: Its records come from another model, backend or threshold, or from other
                options.
        """
        self._special = path.exists() and not path.is_file()
        self.can_resume = not self._special and kind != "table"
        if resume and not self.can_resume:
            raise UsageError("resume: needs an output file of JSON Lines or CSV: -o FILE.jsonl")
        self.earlier = Earlier()
        if not resume:
            check_replaced(path)
        stream = open_locked(path)
        try:
            if resume:
                self.earlier = read_earlier(path, kind, run, options)
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

    def drop_if_stuck(self) -> None:
        """Write nothing more to a pipe whose reader has stopped, see `streams.drop_if_stuck`."""
        streams.drop_if_stuck(self._text)

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


def open_locked(path: Path) -> IO[bytes]:
    """Open a file for writing as it is, and hold its lock until it is closed.

    Args:
        path: The file, which is made with its folder where they are not there; a device, or a pipe
            once somebody reads it.

    Raises:
        OutputError: The file cannot be written, or another process writes it.
    """
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
