"""The manifest of an archive: a Parquet file with a row for each image, in a fixed order.

| column | type | meaning |
| --- | --- | --- |
| `path` | text | path or address, as records name it |
| `size` | int64 | bytes; null where the file could not be asked |
| `mtime` | timestamp | when it was last changed, UTC |
| `id` | int64 | first 64 bits of BLAKE2b of the path |

A shard is a range of rows, so a manifest must not change while it is worked on: its fingerprint
stands in every run. A Parquet file of another origin works too, if it has a column `path`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.archive.images.addresses import check_readable
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import DataError, one_line, require
from deepcovid_edge.files import file_sha256

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
KEY = b"deepcovid_edge_manifest"
"""Under this name the file's metadata hold what it states of itself, as JSON."""
SCHEMA_VERSION = 1
ROWS_IN_GROUP = 10_000
"""Rows that are read together: those of a shard of the usual size."""


def list_schema() -> pyarrow.Schema:
    """The columns of a manifest."""
    pa = require("pyarrow", extra=EXTRA)
    schema: pyarrow.Schema = pa.schema(
        {
            "path": pa.string(),
            "size": pa.int64(),
            "mtime": pa.timestamp("us", tz="UTC"),
            "id": pa.int64(),
        }
    )
    return schema


def image_id(path: str) -> int:
    """The first 64 bits of BLAKE2b of a path, signed as Parquet has them."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class ListedImage:
    """A row of a manifest.

    Attributes:
        path: Path or address.
        id: Its number.
        month: Month of its last change, such as `2026-11`, or empty.
    """

    path: str
    id: int
    month: str


@dataclass(frozen=True)
class ImageList:
    """A manifest that is read.

    Attributes:
        path: The file.
    """

    path: Path

    def __post_init__(self) -> None:
        check_readable(self.path)
        if "path" not in self._file.schema_arrow.names:
            raise DataError(f"{self.path}: has no column `path`: write it with `manifest`")

    def __reduce__(self) -> tuple[type[ImageList], tuple[Path]]:
        return ImageList, (self.path,)

    @cached_property
    def _file(self) -> ParquetFile:
        pq = require("pyarrow.parquet", extra=EXTRA)
        try:
            opened: ParquetFile = pq.ParquetFile(self.path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: not a manifest in Parquet ({one_line(error)}): write one with "
                "`deepcovid-edge manifest`"
            ) from error
        return opened

    @property
    def count(self) -> int:
        """How many images it lists."""
        return int(self._file.metadata.num_rows)

    @cached_property
    def stated(self) -> dict[str, Any]:
        """What the file states of itself; empty for one of another origin."""
        found = (self._file.metadata.metadata or {}).get(KEY)
        return json.loads(found) if found else {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images and their order."""
        return str(self.stated.get("fingerprint") or file_sha256(self.path))

    def rows(self, start: int, stop: int) -> list[ListedImage]:
        """The images of a range of rows.

        Raises:
            DataError: The file is damaged.
        """
        columns = [
            name for name in ("path", "mtime", "id") if name in self._file.schema_arrow.names
        ]
        try:
            tables = list(self._slices(start, stop, columns))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: damaged ({one_line(error)}): write it again") from error
        return [image for table in tables for image in _images(table)]

    def _slices(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pyarrow.Table]:
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                table = self._file.read_row_group(group, columns=[*columns], use_threads=False)
                yield table.slice(low, high - low)
            first += size


def _images(table: pyarrow.Table) -> Iterator[ListedImage]:
    paths = table["path"].to_pylist()
    known = table.column_names
    ids = table["id"].to_pylist() if "id" in known else [image_id(path) for path in paths]
    months = _months(table) if "mtime" in known else [""] * len(paths)
    for path, number, month in zip(paths, ids, months, strict=True):
        yield ListedImage(path, number, month)


def _months(table: pyarrow.Table) -> list[str]:
    pc = require("pyarrow.compute", extra=EXTRA)
    found = pc.strftime(table["mtime"], format="%Y-%m")
    return [month or "" for month in found.to_pylist()]


def utc(seconds: float | None) -> datetime | None:
    """A time of the system's clock as a manifest holds it; None beyond the years 1 to 9999."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a disk may state any time
        return None
