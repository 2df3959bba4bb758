"""The finished parts of a listing, and the manifest that is made of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepcovid_edge.archive.images.image_list import (
    KEY,
    ROWS_IN_GROUP,
    SCHEMA_VERSION,
    SUFFIX,
    image_id,
    list_schema,
    utc,
)
from deepcovid_edge.archive.images.remote_folders import ListedFile
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import OutputError, UsageError, require
from deepcovid_edge.files import locked_at_once, write_atomically

if TYPE_CHECKING:
    import pyarrow

_PARTS, _SETTINGS, _LOCK = ".parts", "listing.json", ".lock"


class ListParts:
    """The folder of finished parts, beside the manifest."""

    def __init__(self, output: Path, folders: tuple[str, ...], rows: int) -> None:
        self._output, self._folders, self._rows = output, folders, rows
        self.folder = output.with_name(output.name + _PARTS)
        self._next = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second command with the same output out.

        Raises:
            OutputError: Another process writes it, or the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        message = f"{self._output}: another `manifest` is writing it"
        try:
            with locked_at_once(self.folder / _LOCK, message):
                yield
        finally:
            with suppress(OSError):  # NFS keeps the folder of an open file
                self.folder.rmdir()

    def begin(self) -> list[tuple[int, str]]:
        """The rows of each finished part, and the hash of their paths; under the lock.

        Raises:
            UsageError: There are parts of another listing.
        """
        asked = json.dumps({"folders": self._folders, "rows": self._rows})
        settings = self.folder / _SETTINGS
        is_begun = settings.exists() and self._part(0).exists()
        if is_begun and settings.read_text("utf-8") != asked:
            raise UsageError(
                f"output: {self.folder} has parts of another listing: take its folders, another "
                "output, or delete it"
            )
        write_atomically(settings, asked.encode())
        known: list[tuple[int, str]] = []
        while (found := self._known(len(known))) is not None:
            known.append(found)
        self._next = len(known)
        return known

    def forget(self, number: int) -> None:
        """Begin with a part again: the folders have changed."""
        for later in range(number, self._next):
            self._part(later).unlink()
        self._next = number

    def write(self, files: list[ListedFile]) -> None:
        """Write the next part.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        pa = require("pyarrow", extra=EXTRA)
        pq = require("pyarrow.parquet", extra=EXTRA)
        paths = [one.path for one in files]
        columns = [
            paths,
            [one.size for one in files],
            [utc(one.changed) for one in files],
            [image_id(path) for path in paths],
        ]
        table = pa.Table.from_arrays(
            [
                pa.array(values, field.type)
                for values, field in zip(columns, list_schema(), strict=True)
            ],
            schema=list_schema(),
        )
        made = pa.BufferOutputStream()
        pq.write_table(
            table, made, compression="zstd", row_group_size=ROWS_IN_GROUP, write_page_checksum=True
        )
        write_atomically(self._part(self._next), memoryview(made.getvalue()), sync=True)
        self._next += 1

    def join(self) -> None:
        """Make the manifest of the parts, which are deleted then.

        Raises:
            OutputError: The disk is full or the folder cannot be written.
        """
        own = self.folder / f"{os.getpid()}.part"
        try:
            self._write_joined(own)
            with own.open("rb") as written:  # the parts are deleted: the disk must have it
                os.fsync(written.fileno())
            os.replace(own, self._output)  # noqa: PTH105 - as in `files`
        except OSError as error:
            own.unlink(missing_ok=True)
            raise OutputError(f"{self._output}: {error.strerror or error}") from error
        self.remove()

    def remove(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_joined(self, path: Path) -> None:
        pq = require("pyarrow.parquet", extra=EXTRA)
        digest, images, size = hashlib.sha256(), 0, 0
        with pq.ParquetWriter(path, list_schema(), compression="zstd") as writer:
            for batch in self._batches():
                digest.update(_stated(batch))
                images += batch.num_rows
                size += sum(filter(None, batch.column("size").to_pylist()))
                writer.write_batch(batch, row_group_size=ROWS_IN_GROUP)
            stated = {
                "schema_version": SCHEMA_VERSION,
                "folders": self._folders,
                "images": images,
                "bytes": size,
                "fingerprint": digest.hexdigest(),
            }
            writer.add_key_value_metadata({KEY.decode(): json.dumps(stated)})

    def _batches(self) -> Iterator[pyarrow.RecordBatch]:
        """Batches of as many rows as a group has, across the parts."""
        pq = require("pyarrow.parquet", extra=EXTRA)
        for number in range(self._next):
            yield from pq.ParquetFile(self._part(number)).iter_batches(ROWS_IN_GROUP)

    def _known(self, number: int) -> tuple[int, str] | None:
        pq = require("pyarrow.parquet", extra=EXTRA)
        path = self._part(number)
        if not path.exists():
            return None
        try:
            paths = pq.read_table(path, page_checksum_verification=True)["path"].to_pylist()
        except (OSError, ValueError, NotImplementedError):  # damaged: it is listed again
            return None
        return len(paths), hash_of_paths(paths)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06}{SUFFIX}"


def _stated(batch: pyarrow.RecordBatch) -> bytes:
    """What a fingerprint is made of: a file that changes is another image."""
    columns = (batch["path"], batch["size"], batch["mtime"].cast("int64"))
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return "".join(f"{path}\0{size}\0{changed}\n" for path, size, changed in rows).encode()


def hash_of_paths(paths: Iterable[str]) -> str:
    """A hash of paths and their order."""
    return hashlib.sha256("\0".join(paths).encode()).hexdigest()
