"""Watched folders: files are found by scanning, for a share tells nobody of what others write.

| a file | becomes |
| --- | --- |
| whose size and time are alike in two scans, and that is whole | an image |
| that is not whole, and does not change for ten minutes | an image; its result says why |
| that is no image at all, likewise | passed over, with an event |
| that cannot be read, likewise | the subject of an alert; it is taken once it can be read |
| that is larger than the largest image | the same; it is taken once the limit is raised |
| under a name of unfinished files, hidden, in a system's folder, or in `done` | not looked at |
| that was taken and has not changed since | not read again |
| that was taken and could not be moved or deleted | moved or deleted in a later scan |
| that lay there when the ledger was made again, of an image that is known | not taken again |

Taken is: on the disk of the spool and in the ledger. Only then is it moved or deleted, where that
was asked for, and only if it is still the same file. Names of files may be those of patients: they
are in the table `seen` alone, as the system's bytes, since a name may be in any encoding.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import ReceiveSettings
from deepcovid_edge.cart.receive.disk_alert import raise_disk_alert
from deepcovid_edge.cart.receive.listing import (
    DONE,
    NOT_KNOWN,
    Signature,
    list_files,
    signature_of,
)
from deepcovid_edge.cart.store.image_header import NotTakenError
from deepcovid_edge.cart.store.intake import Arrival, Intake
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.rebuild import may_lack_images
from deepcovid_edge.cart.store.schema import EXPIRED
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.device import shares
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import NotAssessedError, OutputError, one_line, require
from deepcovid_edge.imaging.dicom.elements import BoundedStream, read_elements
from deepcovid_edge.imaging.dicom.syntaxes import find_data_set
from deepcovid_edge.imaging.files import read_bytes
from deepcovid_edge.imaging.signatures import is_cut_off, is_dicom, known_kind
from deepcovid_edge.reasons import Reason

SCAN_SECONDS = 2.0
STALE_SECONDS = 600.0
"""How long a file that is not whole may stay as it is."""
_MOST_AWAY = 8
"""Files that a scan tries again to move or delete: new images wait meanwhile."""
_SOP_UID = 0x00080018
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Pixel data: of floats, of doubles, of whole numbers (DICOM PS3.6)."""
_MIB = 1 << 20


@dataclass
class _Found:
    """A file that keeps its signature.

    Attributes:
        signature: As of this scan and the ones before.
        since: When it was first seen so, seconds of `time.monotonic`.
        waits: Whether it was read and not taken: it is read again once it has changed or is stale.
    """

    signature: Signature
    since: float
    waits: bool = False

    def is_stale(self, now: float) -> bool:
        """Whether it has been as it is for so long that nobody goes on writing it."""
        return now - self.since >= STALE_SECONDS


def is_whole(data: bytes) -> bool:
    """Whether a file ends where its own structure says; nothing is decoded."""
    if is_dicom(data):
        return _dicom_is_whole(data)
    return known_kind(data) is not None and not is_cut_off(data)


def _dicom_is_whole(data: bytes) -> bool:
    """Whether the elements of an image go on to its pixels, and these to their end."""
    require("pydicom", extra="cart")
    pixels = False

    def pass_on(tag: int, _kind: str | None, _length: int) -> bool:
        nonlocal pixels
        pixels = pixels or tag in _PIXELS
        return False

    try:
        found = find_data_set(data)
        stream = BoundedStream.over(found)
        # One tag, so that values of all others are skipped, beyond the end too.
        read_elements(stream, pass_on, (_SOP_UID,), found.encoding)
    except Exception:  # pydicom raises nearly anything at an early end
        return False
    return pixels and stream.tell() <= len(found.data)


def alert_key(code: AlertCode, folder: Path) -> str:
    """Key of an alert of a watched folder."""
    return f"{code.code}:{folder}"


def clear_alerts_of_removed(ledger: Ledger, folders: Sequence[Path]) -> None:
    """End alerts of all folders but these, which are watched."""
    receiver = AlertCode.IMAGE_TOO_LARGE.code  # the key of images that the DICOM port cut off
    for code in (AlertCode.FOLDER_GONE, AlertCode.FILES_UNREAD, AlertCode.IMAGE_TOO_LARGE):
        keys = {receiver, *(alert_key(code, folder) for folder in folders)}
        ledger.clear_other_alerts(code.code, keys)


class FolderWatch:
    """One watched folder.

    Args:
        folder: The folder, with those below it.
        settings: What becomes of taken files, and the largest image.
        intake: Takes the images.
        stop: Ends a scan between two files.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        folder: Path,
        settings: ReceiveSettings,
        intake: Intake,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self._after = folder, settings.after
        self._most_mib = settings.max_image_mib
        self._intake, self._ledger = intake, intake.ledger
        self._stop, self._clock = stop, clock
        self._files: dict[Path, _Found] = {}
        self._seen: dict[Path, Signature] | None = None
        self._old: Mapping[Path, Signature] | None = None
        self._unread: dict[Path, str] = {}
        self._too_large: set[Path] = set()
        self._staying: dict[Path, bool | None] = {}
        """Taken files that are still to be put away -> whether they are whole; None: not known."""

    def run(self) -> None:
        """Scan until it is to stop."""
        while not self._stop.is_set():
            try:
                self.scan()
            except Exception as error:  # the ledger is locked, the disk is full: later
                log("folder_waits", why=type(error).__name__)
            self._stop.wait(SCAN_SECONDS)

    def scan(self) -> int:
        """Look once; how many images were taken.

        Raises:
            OutputError: Spool or ledger cannot be written; what was not taken is so later.
        """
        if self._seen is None:
            self._seen = self._seen_before()
        listed = self._list()
        if listed is None:
            return 0
        if self._old is None and listed:
            self._old = listed if may_lack_images(self._ledger) else {}
        self._forget(listed)
        now, before = self._clock(), self._files
        self._files = {
            path: before[path]
            if path in before and before[path].signature == signature
            else _Found(signature, now)
            for path, signature in listed.items()
        }
        ready = [
            (path, found)
            for path, found in self._files.items()
            if path in before and found is before[path] and not self._is_seen(path, found.signature)
            if not found.waits or found.is_stale(now)
        ]
        # What could not be read comes last: a disk that fails takes its time for each try.
        ready.sort(key=lambda one: (one[0] in self._unread, one[1].signature.modified_ns, one[0]))
        for path in [*islice(self._staying, _MOST_AWAY)]:
            with suppress(OutputError):  # the next scan forgets a file that is gone
                self._put_away_later(path)
        return self._look_at_each(ready, now)

    def _look_at_each(self, ready: Sequence[tuple[Path, _Found]], now: float) -> int:
        """Take what can be taken; how many. Whatever one file does, the others are taken.

        Raises:
            OutputError: Spool or ledger cannot be written: no file can be taken.
        """
        taken, unread = 0, {}
        for path, found in ready:
            if self._stop.is_set():
                return taken
            is_stale = found.is_stale(now)
            try:
                is_taken = self._look_at(path, found, is_stale=is_stale)
            except SpoolFullError:
                raise_disk_alert(self._intake)
                raise
            except OutputError:
                raise
            except Exception as error:
                if is_stale:
                    unread[path] = _why(error)
            else:
                found.waits = not is_taken
                taken += is_taken
        self._unread = unread
        why = ", ".join(sorted({*unread.values()}))
        self._tell(AlertCode.FILES_UNREAD, unread, why=why)
        large = [path for path, found in self._files.items() if self._is_too_large(path, found)]
        self._tell(AlertCode.IMAGE_TOO_LARGE, large, max_image_mib=self._most_mib)
        return taken

    def _tell(self, code: AlertCode, files: Sized, **detail: object) -> None:
        """Tell of files, without their names, until there are none any more."""
        key, folder = alert_key(code, self.folder), str(self.folder)
        if files:
            self._ledger.raise_alert(key, code.code, folder=folder, files=len(files), **detail)
        else:
            self._ledger.clear_alert(key)

    def _seen_before(self) -> dict[Path, Signature]:
        """The files that are not looked at again; those that were too large are if they fit now.

        One whose image is still in the spool is put away, if that was asked for: a power cut may
        have come before.
        """
        inside, seen = os.fsencode(f"{self.folder}{os.sep}"), dict[Path, Signature]()
        self._forget_what_fits(inside)
        query = "SELECT seen.*, state FROM seen LEFT JOIN image ON image.id = image_id"
        for row in self._ledger.rows(query):
            if row["path"].startswith(inside):
                path = Path(os.fsdecode(row["path"]))
                seen[path] = Signature(row["bytes"], row["modified_ns"], row["inode"])
                if row["image_id"] is None and self._exceeds(seen[path]):
                    self._too_large.add(path)
                elif self._after != "keep" and row["state"] not in (None, EXPIRED):
                    self._staying[path] = None
        return seen

    def _forget_what_fits(self, inside: bytes) -> None:
        """Forget files that were passed over and that the limit, raised since, lets in.

        Those below the limit of the last start were read, and are no images.

        Args:
            inside: What the paths of all files in the folder begin with.
        """
        key = f"max_image_mib:{self.folder}"
        before = int(self._ledger.get_meta(key) or 0)
        with self._ledger.transaction() as now:
            now.execute(
                "DELETE FROM seen WHERE image_id IS NULL AND bytes > ? AND bytes <= ?"
                " AND substr(path, 1, ?) = ?",
                (before * _MIB, self._most_mib * _MIB, len(inside), inside),
            )
            self._ledger.set_meta(key, str(self._most_mib))

    def _was_there(self, path: Path, signature: Signature) -> bool:
        """Whether a file lay there, as it is, when the folder was first looked at, or may have."""
        if self._old is None:
            return False
        return self._old.get(path) == signature or _is_below_unlisted(path, self._old)

    def _is_seen(self, path: Path, signature: Signature) -> bool:
        """Whether a file was taken or passed over, and has not changed since.

        A share may give its files other numbers when it is mounted again. Where files stay, the
        number alone makes no file new; one that is to be deleted is looked at again.
        """
        assert self._seen is not None
        known = self._seen.get(path)
        if known and self._after == "keep":
            known = known._replace(inode=signature.inode)
        return known == signature

    def _exceeds(self, signature: Signature) -> bool:
        return signature.size > self._most_mib * _MIB

    def _is_too_large(self, path: Path, found: _Found) -> bool:
        """Whether a file was passed over for its size; one that was taken before was not."""
        return path in self._too_large and self._is_seen(path, found.signature)

    def _list(self) -> dict[Path, Signature] | None:
        """All files that may be images; None where the folder cannot be read: an alert says so."""
        code = AlertCode.FOLDER_GONE
        key = alert_key(code, self.folder)
        try:
            listed = shares.call(self.folder, partial(list_files, self.folder))
        except OSError as error:
            why = error.strerror or type(error).__name__
            self._ledger.raise_alert(key, code.code, folder=str(self.folder), why=why)
            return None
        self._ledger.clear_alert(key)
        return listed

    def _forget(self, listed: Mapping[Path, Signature]) -> None:
        """Forget files that are gone, unless all are: a share may not be mounted.

        Nobody knows whether those below a folder that cannot be listed are gone.
        """
        assert self._seen is not None
        gone = [
            path
            for path in self._seen
            if path not in listed and not _is_below_unlisted(path, listed)
        ]
        if not gone or not listed:
            return
        self._forget_seen(gone)

    def _forget_seen(self, paths: Sequence[Path]) -> None:
        with self._ledger.transaction() as now:
            now.executemany(
                "DELETE FROM seen WHERE path = ?", [(os.fsencode(path),) for path in paths]
            )
        assert self._seen is not None
        for path in paths:
            self._seen.pop(path, None)
            self._too_large.discard(path)
            self._staying.pop(path, None)

    def _look_at(self, path: Path, found: _Found, *, is_stale: bool) -> bool:
        """Take a file if it can be taken; whether it was.

        Raises:
            NotAssessedError: It cannot be read.
            OutputError: Spool or ledger cannot be written.
            OSError: The system says nothing of the file.
        """
        data = self._read(path, found.signature, is_stale=is_stale)
        whole = data is not None and is_whole(data)
        if data is None or not (whole or is_stale):
            return False
        try:
            arrival = Arrival("folder", str(self.folder))
            image = self._intake.take_file(
                data,
                name=path.name,
                arrival=arrival,
                unless_expired=self._was_there(path, found.signature),
            )
        except NotTakenError as error:
            if is_stale:
                self._pass_over(path, found.signature, f"no image: {error.kind}")
            return False
        self._note(path, found.signature, image.image_id)
        log("folder", image=image.image_id, is_new=image.is_new, is_whole=whole)
        if whole:
            self._put_away(path, found.signature)
        return True

    def _read(self, path: Path, signature: Signature, *, is_stale: bool) -> bytes | None:
        """The bytes of a file that has not changed since; None where it is not to be taken."""
        if self._exceeds(signature):
            self._pass_over(path, signature, "larger than max_image_mib")
            return None
        if signature == NOT_KNOWN:
            raise NotAssessedError(Reason.UNREADABLE, "no permission, or the disk fails")
        try:
            data = read_bytes(path).data
        except NotAssessedError as error:
            if error.reason is Reason.UNREADABLE:
                raise
            if is_stale:
                self._pass_over(path, signature, f"no image: {error.reason.code}")
            return None
        return data if self._signature(path) == signature and len(data) == signature.size else None

    def _pass_over(self, path: Path, signature: Signature, why: str) -> None:
        """Never look at a file again while it stays as it is; say so once."""
        self._note(path, signature, None)
        self._ledger.event("file passed over", folder=str(self.folder), why=why)
        log("file_passed_over", why=why)

    def _note(self, path: Path, signature: Signature, image_id: int | None) -> None:
        with self._ledger.transaction() as now:
            now.execute(
                "INSERT OR REPLACE INTO seen (path, bytes, modified_ns, inode, image_id)"
                " VALUES (?, ?, ?, ?, ?)",
                (os.fsencode(path), *signature, image_id),
            )
        assert self._seen is not None
        self._seen[path] = signature
        self._staying.pop(path, None)
        if image_id is None and self._exceeds(signature):
            self._too_large.add(path)
        else:
            self._too_large.discard(path)

    def _put_away(self, path: Path, signature: Signature) -> None:
        """Move or delete a file that the ledger has, if it is still the same; else later."""
        if self._after == "keep":
            return
        try:
            if self._signature(path) != signature:
                return
            shares.call(path, lambda _: self._remove(path))
        except OSError as error:
            if not self._staying.pop(path, None):
                log("file_stays", why=error.strerror or type(error).__name__)
            self._staying[path] = True  # behind the others
            return
        self._forget_seen([path])

    def _put_away_later(self, path: Path) -> None:
        """Put away a file that was taken before, if it is whole and has not changed since."""
        assert self._seen is not None
        found, whole = self._files.get(path), self._staying.pop(path)
        self._staying[path] = whole  # behind the others
        if found is None or found.signature != self._seen.get(path):
            return
        if whole is None:
            whole = _file_is_whole(path)
        if whole:
            self._put_away(path, found.signature)
        elif whole is False:
            del self._staying[path]  # its sender may go on

    def _remove(self, path: Path) -> None:
        if self._after == "delete":
            path.unlink()
            return
        (path.parent / DONE).mkdir(exist_ok=True)
        path.rename(_free_name(path.parent / DONE / path.name))

    @staticmethod
    def _signature(path: Path) -> Signature:
        return shares.call(path, lambda _: signature_of(path.stat()))


def _file_is_whole(path: Path) -> bool | None:
    """Whether a file is whole; None where it cannot be read now."""
    try:
        return is_whole(read_bytes(path).data)
    except Exception as error:  # whatever one file does, the others are taken
        is_unread = isinstance(error, NotAssessedError) and error.reason is Reason.UNREADABLE
        return None if is_unread else False


def _is_below_unlisted(path: Path, listed: Mapping[Path, Signature]) -> bool:
    """Whether a file lies below a folder that could not be listed."""
    return any(listed.get(place) == NOT_KNOWN for place in path.parents)


def _why(error: Exception) -> str:
    """Why a file is not taken, without its name: of a fault of the program its kind alone."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return one_line(error) if isinstance(error, NotAssessedError) else type(error).__name__


def _free_name(path: Path) -> Path:
    """A name that no file has: no taken file ever replaces another."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return free
