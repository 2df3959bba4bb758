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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.archive.images.addresses import check_readable
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import DataError, NotThereError, one_line, require
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

    Raises:
        NotThereError: It is not there, or lists no image.
        DataError: It is no manifest, or lacks the path of an image.
    """

    path: Path

    def __post_init__(self) -> None:
        check_readable(self.path)
        schema = self._file.schema_arrow
        if "path" not in schema.names:
            raise DataError(f"{self.path}: has no column `path`: write it with `manifest`")
        if not _is_text(kind := schema.field("path").type):
            raise DataError(f"{self.path}: its column `path` holds {kind}, expected text")
        if any(map(self._nulls, range(self._file.metadata.num_row_groups))):
            raise DataError(f"{self.path}: some rows have no `path`: remove these rows")
        if not self.count:
            raise NotThereError(f"no image found in {self.path}: write it again with `manifest`")

    def __reduce__(self) -> tuple[type[ImageList], tuple[Path]]:
        return ImageList, (self.path,)

    @cached_property
    def _file(self) -> ParquetFile:
        pq = require("pyarrow.parquet", extra=EXTRA)
        try:
            opened: ParquetFile = pq.ParquetFile(self.path)
        except (OSError, ValueError, NotImplementedError) as error:
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
        """What the file states of itself; empty for one of another origin.

        Whoever takes rows out of a manifest may copy what it states along with them.
        """
        found = (self._file.metadata.metadata or {}).get(KEY)
        stated = json.loads(found) if found else {}
        return stated if stated.get("images") == self.count else {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images, with size and time of each, and of their order."""
        return str(self.stated.get("fingerprint") or file_sha256(self.path))

    def rows(self, start: int, stop: int) -> list[ListedImage]:
        """The images of a range of rows.

        Raises:
            DataError: The file is damaged.
        """
        try:
            return [image for table in self._slices(start, stop) for image in _images(table)]
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: damaged ({one_line(error)}): write it again") from error

    def _slices(self, start: int, stop: int) -> Iterator[pyarrow.Table]:
        columns, first = self._columns(), 0
        for group in range(self._file.metadata.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                table = self._file.read_row_group(group, columns=columns, use_threads=False)
                yield table.slice(low, high - low)
            first += size

    def _columns(self) -> list[str]:
        """The columns that are used; in a file of another origin their names may mean other things.

        Whole numbers of 64 bits without a sign do not all fit into a shard.
        """
        types = require("pyarrow", extra=EXTRA).types
        kinds = {field.name: field.type for field in self._file.schema_arrow}
        columns = ["path"]
        if "mtime" in kinds and types.is_timestamp(kinds["mtime"]):
            columns.append("mtime")
        if "id" in kinds and types.is_integer(kinds["id"]) and not types.is_uint64(kinds["id"]):
            columns.append("id")
        return columns

    def _nulls(self, group: int) -> int:
        """Rows of a group that have no path; they are read where the file does not state it."""
        stated = self._file.metadata.row_group(group).column(self._place_of_path).statistics
        if stated is not None and stated.has_null_count:
            return int(stated.null_count)
        try:
            return int(self._file.read_row_group(group, columns=["path"])["path"].null_count)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: damaged ({one_line(error)}): write it again") from error

    @cached_property
    def _place_of_path(self) -> int:
        """Of the column among those of the file: a column of structures is several there."""
        schema = self._file.schema
        return [schema.column(place).path for place in range(len(schema))].index("path")


def _is_text(kind: pyarrow.DataType) -> bool:
    types = require("pyarrow", extra=EXTRA).types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _images(table: pyarrow.Table) -> Iterator[ListedImage]:
    paths = table["path"].to_pylist()
    known = table.column_names
    ids = table["id"].to_pylist() if "id" in known else [None] * len(paths)
    months = _months(table["mtime"]) if "mtime" in known else [""] * len(paths)
    for path, number, month in zip(paths, ids, months, strict=True):
        yield ListedImage(path, image_id(path) if number is None else number, month)


def _months(times: pyarrow.ChunkedArray) -> list[str]:
    """The months of times in UTC, whatever their zone; empty where there is none."""
    pa = require("pyarrow", extra=EXTRA)
    pc = require("pyarrow.compute", extra=EXTRA)
    # Without its zone, which needs no database of time zones: the numbers are those of UTC.
    utc = times.cast(pa.int64()).cast(pa.timestamp(times.type.unit))
    pairs = zip(pc.year(utc).to_pylist(), pc.month(utc).to_pylist(), strict=True)
    return ["" if year is None else f"{year:04}-{month:02}" for year, month in pairs]


def utc(seconds: float | None) -> datetime | None:
    """A time of the system's clock as a manifest holds it; None beyond the years 1 to 9999."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a disk may state any time
        return None
