"""The folder of results: a Parquet file for each shard, written whole or not at all.

The columns are those of a record (`decision.record_table`) and these:

| column | type | meaning |
| --- | --- | --- |
| `id` | int64 | the image's number in the manifest |
| `uid_hash` | int64 | first 64 bits of SHA-256 of the SOP instance UID; null without one |
| `month` | text | month of the examination by the DICOM header, else of the file's last change |
| `device` | text | manufacturer, model and station by the DICOM header, or empty |
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.archive.stamp import RunStamp
from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, NOT_ASSESSED, POSITIVE
from deepcovid_edge.decision.record_table import EXTRA, record_row, record_schema
from deepcovid_edge.errors import DataError, NotAssessedError, OutputError, one_line, require
from deepcovid_edge.files import locked_at_once, write_atomically
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB, DiskGuard
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    from deepcovid_edge.decision.record import Prediction

_UNFINISHED_SECONDS = 86_400.0
_ONE_IN = 100
_PATTERN = "shard-*.parquet"
_KEY = b"deepcovid_edge_shard"
"""Under this name a shard's metadata hold its run, its number and its counts, as JSON."""


@dataclass(frozen=True)
class Counts:
    """Images by what came of them.

    Attributes:
        positive: Assessed, positive.
        negative: Assessed, negative.
        indeterminate: Assessed, too close to the threshold.
        not_assessed: Without a result.
        unreadable: Those of them whose file could not be read; a later try may read it.
    """

    positive: int = 0
    negative: int = 0
    indeterminate: int = 0
    not_assessed: int = 0
    unreadable: int = 0

    @property
    def images(self) -> int:
        """All of them."""
        return self.positive + self.negative + self.indeterminate + self.not_assessed

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        both = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(a + b for a, b in both))

    @property
    def lacks_files(self) -> bool:
        """Whether one in a hundred files or more could not be read: a share or a folder was away.

        A single file is no reason to assess thousands of others once more.
        """
        return 0 < self.images <= self.unreadable * _ONE_IN

    @classmethod
    def of(cls, records: Sequence[Prediction]) -> Counts:
        """The counts of records."""
        names = [record.decision or record.status for record in records]
        kinds = (POSITIVE, NEGATIVE, INDETERMINATE, NOT_ASSESSED)
        unreadable = [record.reason for record in records].count(Reason.UNREADABLE.code)
        return cls(*(*map(names.count, kinds), unreadable))


@dataclass(frozen=True)
class ScreenedImage:
    """A record, and what is noted of its image beside it.

    Attributes:
        record: The record.
        id: Number of the image in the manifest.
        uid_hash: Number of its SOP instance UID; None without one.
        month: Such as `2026-11`, or empty.
        device: What took it, or empty.
    """

    record: Prediction
    id: int
    uid_hash: int | None = None
    month: str = ""
    device: str = ""


class DamagedShardError(DataError):
    """Raised when a shard cannot be read: it is written again."""


def shard_schema() -> pyarrow.Schema:
    """The columns of a shard."""
    pa = require("pyarrow", extra=EXTRA)
    name = pa.dictionary(pa.int32(), pa.string())
    schema: pyarrow.Schema = record_schema()
    for column, kind in (
        ("id", pa.int64()),
        ("uid_hash", pa.int64()),
        ("month", name),
        ("device", name),
    ):
        schema = schema.append(pa.field(column, kind))
    return schema


class ShardFolder:
    """The results of one run.

    Args:
        folder: The folder.
        stamp: The run.
        min_free: A shard is not written with less free on the disk, MiB.
    """

    def __init__(self, folder: Path, stamp: RunStamp, min_free: int = LEAST_FREE_MIB) -> None:
        self.folder, self.stamp = folder, stamp
        self._digest = stamp.digest
        self._min_free = min_free

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / _name(shard)

    def check_room(self) -> None:
        """Check the room on the disk.

        Raises:
            OutputError: There is too little.
        """
        try:
            DiskGuard([self.folder], self._min_free).check()
        except NotAssessedError as error:
            raise OutputError(
                f"{self.folder}: {error.detail}: free some; the same command goes on"
            ) from error

    def write(self, shard: int, images: Sequence[ScreenedImage]) -> Counts:
        """Write a shard; one that is there stays if fewer of its images could not be read.

        Returns:
            The counts of the shard that is there then.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        pa = require("pyarrow", extra=EXTRA)
        pq = require("pyarrow.parquet", extra=EXTRA)
        counts = Counts.of([image.record for image in images])
        if there := self._better(shard, counts):
            return there
        stated = {"run": self._digest, "shard": shard, "counts": asdict(counts)}
        schema = shard_schema().with_metadata({_KEY: json.dumps(stated).encode()})
        rows = [
            {
                **record_row(image.record),
                "id": image.id,
                "uid_hash": image.uid_hash,
                "month": image.month,
                "device": image.device,
            }
            for image in images
        ]
        made = pa.BufferOutputStream()
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, made, compression="zstd", write_page_checksum=True)
        self.check_room()
        write_atomically(self.path(shard), memoryview(made.getvalue()), sync=True)
        return counts

    def _better(self, shard: int, counts: Counts) -> Counts | None:
        """The counts of a shard that is there and was read better; else None."""
        with suppress(DataError):  # damaged, or of another run
            there = self.done(shard)
            return there if there and there.unreadable < counts.unreadable else None
        return None

    def done(self, shard: int) -> Counts | None:
        """The counts of a shard that is there; None where it is not.

        Raises:
            DamagedShardError: The file is damaged.
            DataError: It is of another run.
        """
        path = self.path(shard)
        if not path.exists():
            return None
        stated, rows = read_shard(path)
        start, stop = self.stamp.rows(shard)
        counts = Counts(**stated["counts"])
        if stated["run"] != self._digest or stated["shard"] != shard:
            raise DataError(f"{path}: is a shard of another run: use another folder")
        if not rows == counts.images == stop - start:
            raise DamagedShardError(f"{path}: has {rows} records, expected {stop - start}")
        return counts

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep a second command with the same work out of the folder.

        Raises:
            OutputError: Another process has it.
        """
        message = f"{self.folder}: another `screen` is writing it"
        return locked_at_once(self.folder / f".{name}.lock", message)


def read_shard(path: Path) -> tuple[Mapping[str, Any], int]:
    """What a shard states of itself, and its records; all its bytes are checked.

    Raises:
        DamagedShardError: The file is damaged.
    """
    pq = require("pyarrow.parquet", extra=EXTRA)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            stated = _stated(file)
            if not file.schema_arrow.remove_metadata().equals(shard_schema()):
                raise ValueError("its footer states other columns")
            records = file.read(use_threads=False)
            records.validate(full=True)  # a page's header has no checksum
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DamagedShardError(f"{path}: damaged ({one_line(error)})") from error
    return stated, records.num_rows


def _stated(file: ParquetFile) -> Mapping[str, Any]:
    """What a shard states of itself: Parquet has it twice, in a footer without a checksum.

    Raises:
        KeyError: It states nothing.
        ValueError: It is damaged.
    """
    text = (file.metadata.metadata or {})[_KEY]
    if (file.schema_arrow.metadata or {})[_KEY] != text:
        raise ValueError("its footer contradicts itself")
    stated: dict[str, Any] = json.loads(text)
    return stated


def _name(shard: int) -> str:
    return f"shard-{shard:06}.parquet"


def shard_files(folder: Path, shards: int) -> tuple[dict[int, Path], list[str]]:
    """The shards of a folder, in their order, and names of files that only look like shards.

    Args:
        folder: The folder.
        shards: How many shards its run has.
    """
    found = {path.name: path for path in sorted(folder.glob(_PATTERN))}
    own = {number: found.pop(name) for number in range(shards) if (name := _name(number)) in found}
    return own, [*found]


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left: unfinished files that are older than any write takes."""
    for path in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS:
                path.unlink()
