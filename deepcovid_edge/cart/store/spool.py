"""The spool folder: what must survive a power cut is written here, under names that are hashes.

| folder | holds |
| --- | --- |
| `incoming/` | files that are being written; emptied at every start |
| `images/ab/abcd....dcm` | images as they came, by the SHA-256 of their content |
| `results/ab/abcd.../` | heat map, picture and DICOM objects of an image |
| `quarantine/` | images whose assessor failed three times |
| `ledger.db` | the ledger; one that was damaged or replaced is kept beside it |
| `cart-id` | what tells this cart from others, drawn once: its objects state it |
| `model.json` | the model in use and the one before, for a ledger that is made again |
| `backup/` | nightly copies of the ledger, unless they have a folder of their own |
| `ballast` | room that is given up when the disk is full, so that results still fit |
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from deepcovid_edge.cart.store.ledger import LedgerFullError
from deepcovid_edge.errors import OutputError

_CART_ID = "cart-id"
_FOLDERS = ("incoming", "images", "results", "quarantine")
_MIB = 1 << 20
BALLAST_MIB = 64
_PROBE_BYTES = 1 << 16
"""More than the ledger needs for a word."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class SpoolFullError(OutputError):
    """Raised when the spool's disk has too little room for another image."""


@dataclass(frozen=True)
class SpoolSettings:
    """How much of a disk the spool may take.

    Attributes:
        floor_mib: No image is taken while the disk has less free, MiB.
        floor_share: Nor while it has less free than this share of its size, 0 to 1.
        ballast_mib: Size of the ballast, MiB; 0 for none.
    """

    floor_mib: int = 1024
    floor_share: float = 0.05
    ballast_mib: int = BALLAST_MIB


def write_fault(folder: Path) -> str | None:
    """Why no file can be written into a folder, as the system says; None where one can.

    None too where this account may not write there: it cannot tell.
    """
    try:
        with TemporaryFile(dir=folder) as stream:
            stream.write(bytes(_PROBE_BYTES))
    except PermissionError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


class Spool:
    """The spool folder; made where it is not there.

    Args:
        folder: The folder. Its names and contents are those of patients: mode 0700.
        settings: Its limits.

    Raises:
        OutputError: A folder cannot be made.
    """

    def __init__(self, folder: Path, settings: SpoolSettings | None = None) -> None:
        self.folder, self.settings = folder, settings or SpoolSettings()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in _FOLDERS:
                (folder / name).mkdir(exist_ok=True, mode=0o700)
            sync(folder)
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror or error}") from error

    def cart_id(self) -> str:
        """What tells this cart from others: 32 hexadecimal digits, drawn when first asked for.

        Raises:
            OSError: It cannot be read or written.
        """
        place = self.folder / _CART_ID
        if not place.exists():
            passing = self.folder / f".{secrets.token_hex(8)}.part"
            self._write([secrets.token_hex(16).encode()], passing)
            with contextlib.suppress(FileExistsError):  # another process was first
                place.hardlink_to(passing)
            passing.unlink()
            sync(self.folder)
        return place.read_text("ascii")

    def empty_incoming(self) -> None:
        """Delete what a killed receiver left half written. Only the receiver calls this."""
        for path in (self.folder / "incoming").iterdir():
            path.unlink(missing_ok=True)

    def fill_ballast(self) -> None:
        """Write the ballast, where it is not there and the disk has room for it and the floor."""
        path = self.folder / "ballast"
        size = self.settings.ballast_mib * _MIB
        if size == 0 or (path.exists() and path.stat().st_size == size):
            return
        if shutil.disk_usage(self.folder).free < size + self._floor():
            return
        with contextlib.suppress(OSError), path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)

    def write_in_reserve(self, write: Callable[[], object]) -> None:
        """Write into the ledger; where the disk is full, into the room of the ballast.

        Raises:
            LedgerFullError: There is no room there either.
            LedgerBusyError: Another role holds the ledger for too long.
        """
        try:
            write()
        except LedgerFullError:
            self.drop_ballast()
            write()

    def drop_ballast(self) -> bool:
        """Give up the ballast; whether there was one."""
        try:
            (self.folder / "ballast").unlink()
        except OSError:
            return False
        return True

    def _floor(self) -> int:
        total = shutil.disk_usage(self.folder).total
        return max(self.settings.floor_mib * _MIB, int(self.settings.floor_share * total))

    def check_room(self, size: int) -> None:
        """Check that the disk has room for an image of so many bytes beside its floor.

        Raises:
            SpoolFullError: It has not.
        """
        free = shutil.disk_usage(self.folder).free
        if free < self._floor() + size:
            raise SpoolFullError(
                f"{self.folder}: {free // _MIB} MiB free, floor {self._floor() // _MIB} MiB"
            )

    def image(self, content_sha256: str, suffix: str) -> Path:
        """Where an image lies."""
        return self.folder / "images" / content_sha256[:2] / f"{content_sha256}{suffix}"

    def results(self, content_sha256: str) -> Path:
        """The folder of an image's results."""
        return self.folder / "results" / content_sha256[:2] / content_sha256

    def results_size(self, content_sha256: str) -> int:
        """Bytes of an image's results; 0 where there are none."""
        folder = self.results(content_sha256)
        try:
            return sum(path.stat().st_size for path in folder.iterdir())
        except OSError:
            return 0

    def relative(self, path: Path) -> str:
        """A path as the ledger names it."""
        return path.relative_to(self.folder).as_posix()

    def store(self, parts: Iterable[bytes], place: Path) -> None:
        """Write a file that survives a power cut once this returns: whole, or not at all.

        Args:
            parts: Its bytes, in pieces.
            place: Where it lies in the end, within the spool.

        Raises:
            SpoolFullError: The disk is full.
            OutputError: It cannot be written.
        """
        images = self.folder / "images"
        passing = self.folder / "incoming" if images in place.parents else place.parent
        passing /= f".{secrets.token_hex(8)}.part"
        try:
            self._make_folders(place.parent)
            self._write(parts, passing)
            passing.replace(place)
            sync(place.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that fails does so again
                passing.unlink(missing_ok=True)
            kind = SpoolFullError if error.errno in FULL else OutputError
            raise kind(f"{place}: {error.strerror or error}") from error

    @staticmethod
    def _write(parts: Iterable[bytes], path: Path) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as stream:  # noqa: PTH123  -- the handle has its mode already
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())

    def _make_folders(self, folder: Path) -> None:
        """Make a folder and those above it, each entry synced into the one above."""
        if folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        sync(folder.parent)

    def quarantine(self, content_sha256: str, suffix: str) -> None:
        """Keep an image aside from those that are assessed; retention does not delete it."""
        place = self.folder / "quarantine" / f"{content_sha256}{suffix}"
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            place.hardlink_to(self.image(content_sha256, suffix))
        sync(place.parent)

    def delete(self, content_sha256: str, suffix: str) -> None:
        """Delete an image and its results."""
        self.image(content_sha256, suffix).unlink(missing_ok=True)
        shutil.rmtree(self.results(content_sha256), ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or the names of a folder, survive a power cut (fsync(2))."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
