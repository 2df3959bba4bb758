"""How an image is taken: on the disk first, then in the ledger, and only then acknowledged.

An image is known by the SHA-256 of its content. Of a DICOM file that is its transfer syntax, as the
data set has it whatever was negotiated, and its data set, without the file meta information: that
part is written by whoever stores the file last, so the same image would look new after an update of
the sender or of this program.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

from deepcovid_edge.cart.objects.encoding import encode_value
from deepcovid_edge.cart.store.clock import boot_id, clock_is_plausible, now_utc
from deepcovid_edge.cart.store.image_header import ImageHeader, NotTakenError, read_image_header
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import EXPIRED, RECEIVED
from deepcovid_edge.cart.store.spool import Spool
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end
from deepcovid_edge.imaging.signatures import is_dicom, known_kind
from deepcovid_edge.reasons import Reason

MOST_UID = 64
"""Letters of a UID (DICOM PS3.5, section 9.1)."""
_PREAMBLE = bytes(128) + b"DICM"
_IMPLEMENTATION = "2.25.137629302146843283741052264863190441473"
"""Implementation class UID of files that the cart writes; it never changes, nor do their bytes."""
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}
_HEAD = 4096


@dataclass(frozen=True)
class Arrival:
    """How an image came.

    Attributes:
        source: `ae` (DICOM), `folder` or `page`.
        peer: Address of the sender, or the watched folder.
        ae_title: What the sender calls itself, or empty.
    """

    source: str
    peer: str
    ae_title: str = ""


@dataclass(frozen=True)
class Taken:
    """What became of an image that came.

    Attributes:
        image_id: Its row in the ledger.
        is_new: Whether this content had never come before.
        same_bytes: False where the same SOP instance UID came before with another content.
    """

    image_id: int
    is_new: bool
    same_bytes: bool


@dataclass(frozen=True)
class _Image:
    content_sha256: str
    suffix: str
    data: bytes
    header: ImageHeader
    name: str


class Intake:
    """Takes images into the spool and the ledger. Safe to call from several threads."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self.ledger, self.spool = ledger, spool

    def take_dataset(
        self, data: bytes, *, sop_class: str, sop_uid: str, syntax: str, arrival: Arrival
    ) -> Taken:
        """Take a data set as a C-STORE request brings it (DICOM PS3.4, annex B).

        Args:
            data: The encoded data set, without file meta information.
            sop_class: Affected SOP class UID of the request.
            sop_uid: Affected SOP instance UID of the request.
            syntax: Transfer syntax UID of the presentation context.
            arrival: How it came.

        Returns:
            What became of it, once it survives a power cut.

        Raises:
            NotTakenError: The UID is missing, or the data set has another one or none, or it is of
                another SOP class (B.2.3: the data set does not match).
            SpoolFullError: The disk has too little room.
            LedgerBusyError: The ledger cannot be written.
            OutputError: The disk cannot be written.
        """
        if not sop_uid or len(sop_uid) > MOST_UID:
            raise NotTakenError("uid", f"SOP instance UID of {len(sop_uid)} letters")
        image = _image_of_file(_file_head(sop_class, sop_uid, syntax) + data, "")
        if image.header.sop_uid != sop_uid:
            raise NotTakenError("uid", "request and data set name different SOP instances")
        if image.header.sop_class != sop_class:
            raise NotTakenError("uid", "request and data set name different SOP classes")
        return self._take(image, arrival)

    def take_file(
        self, data: bytes, *, name: str, arrival: Arrival, unless_expired: bool = False
    ) -> Taken:
        """Take a whole file: a DICOM file, or a picture.

        Args:
            data: Its bytes.
            name: What it is called, for the page; what is not Unicode in it becomes `?`.
            arrival: How it came.
            unless_expired: Leave an image as it is that has a result and whose files were deleted
                since: this one may have lain where it is all the time.

        Returns:
            What became of it, once it survives a power cut.

        Raises:
            NotTakenError: It is neither.
            SpoolFullError: The disk has too little room.
            LedgerBusyError: The ledger cannot be written.
            OutputError: The disk cannot be written.
        """
        shown = PurePath(name).name.encode("utf-8", "replace").decode("utf-8")
        image = _image_of_file(data, shown)
        if unless_expired and (known := self._answered(image)):
            return Taken(known["id"], is_new=False, same_bytes=True)
        return self._take(image, arrival)

    def note_stored(self, path: Path, arrival: Arrival) -> Taken:
        """Note an image of the spool that the ledger does not have.

        Raises:
            NotTakenError: The file is damaged: it cannot be read, or its content does not have the
                hash of its name.
        """
        image = _image_of_file(_read(path), "")
        if image.content_sha256 != path.stem:
            raise NotTakenError("parse", "the file is damaged")
        with self.ledger.transaction():
            return self._note(image, arrival)

    def note_who(self, image_id: int, path: Path) -> None:
        """Note again whose an image of the spool is, where the ledger does not say so.

        Raises:
            NotTakenError: The file is damaged.
        """
        if self.ledger.row("SELECT 1 FROM who WHERE image_id = ?", image_id) is None:
            self._note_who(image_id, _image_of_file(_read(path), ""))

    def _take(self, image: _Image, arrival: Arrival) -> Taken:
        place = self.spool.image(image.content_sha256, image.suffix)
        known = self._known(image)
        if known is None or known["is_lost"]:
            self._store(image, place)
        with self.ledger.transaction():
            if not place.exists():  # deleted just now, or by another hand
                self._store(image, place)
            return self._note(image, arrival)

    def _store(self, image: _Image, place: Path) -> None:
        self.spool.check_room(len(image.data))
        self.spool.store([image.data], place)

    def _known(self, image: _Image) -> sqlite3.Row | None:
        """Number of an image, and whether its file was deleted or could not be read."""
        return self.ledger.row(
            "SELECT id, state = ? OR reason IS ? AS is_lost FROM image WHERE content_sha256 = ?",
            *(EXPIRED, Reason.UNREADABLE.code, image.content_sha256),
        )

    def _answered(self, image: _Image) -> sqlite3.Row | None:
        """Number of an image that has expired with a result; None for any other."""
        return self.ledger.row(
            "SELECT id FROM image WHERE content_sha256 = ? AND state = ?"
            " AND id IN (SELECT image_id FROM result)",
            *(image.content_sha256, EXPIRED),
        )

    def _note(self, image: _Image, arrival: Arrival) -> Taken:
        """Note an image whose file is in the spool."""
        known = self._known(image)
        if known is None:
            taken = self._insert(image, arrival)
        else:
            taken = Taken(known["id"], is_new=False, same_bytes=True)
            if known["is_lost"]:
                self._receive_again(known["id"], image, arrival)
        self._note_arrival(taken, arrival)
        return taken

    def _receive_again(self, image_id: int, image: _Image, arrival: Arrival) -> None:
        """Have an image whose file is back assessed again, as one that came now."""
        with self.ledger.transaction() as now:
            now.execute(
                "UPDATE image SET state = ?, tries = 0, reason = NULL, settled_utc = NULL,"
                " source = ?, received_utc = ?, boot_id = ?, clock_ok = ? WHERE id = ?",
                (
                    *(RECEIVED, arrival.source, now_utc(), boot_id(), clock_is_plausible()),
                    image_id,
                ),
            )
        self._note_who(image_id, image)

    def _note_who(self, image_id: int, image: _Image) -> None:
        with self.ledger.transaction() as now:
            now.execute("DELETE FROM who WHERE image_id = ?", (image_id,))
            who = {"image_id": image_id, **asdict(image.header.who), "file_name": image.name}
            self.ledger.insert("who", who)

    def _insert(self, image: _Image, arrival: Arrival) -> Taken:
        header = image.header
        other = header.sop_uid and self.ledger.row(
            "SELECT id FROM image WHERE sop_uid = ?", header.sop_uid
        )
        columns = {
            "content_sha256": image.content_sha256,
            "suffix": image.suffix,
            "sop_uid": header.sop_uid,
            "sop_class": header.sop_class,
            "study_uid": header.study_uid,
            "syntax": header.syntax,
            "device": header.device,
            "bytes": len(image.data),
            "source": arrival.source,
            "received_utc": now_utc(),
            "boot_id": boot_id(),
            "clock_ok": clock_is_plausible(),
        }
        image_id = self.ledger.insert("image", columns)
        self._note_who(image_id, image)
        return Taken(image_id, is_new=True, same_bytes=not other)

    def _note_arrival(self, taken: Taken, arrival: Arrival) -> None:
        columns = {
            "image_id": taken.image_id,
            "at_utc": now_utc(),
            "source": arrival.source,
            "peer": arrival.peer,
            "ae_title": arrival.ae_title,
            "same_bytes": taken.same_bytes,
        }
        self.ledger.insert("arrival", columns)
        kind = "received" if taken.is_new else "received again"
        self.ledger.event(kind, taken.image_id, source=arrival.source)
        if not taken.same_bytes:
            self.ledger.event("same UID, other bytes", taken.image_id)


def content_hash(syntax: str, data: bytes | memoryview) -> str:
    """What a DICOM image is known by.

    Args:
        syntax: UID of its transfer syntax.
        data: Its data set, without file meta information.
    """
    digest = hashlib.sha256(f"{syntax}\0".encode())
    digest.update(data)
    return digest.hexdigest()


def _file_head(sop_class: str, sop_uid: str, syntax: str) -> bytes:
    """Preamble and file meta information (DICOM PS3.10, section 7.1), always the same bytes."""
    uids = {2: sop_class, 3: sop_uid, 0x10: syntax, 0x12: _IMPLEMENTATION}
    elements = encode_value(0x00020001, "OB", b"\0\1") + b"".join(
        encode_value(0x00020000 + number, "UI", uid.encode("ascii", "replace"))
        for number, uid in uids.items()
    )
    length = len(elements).to_bytes(4, "little")
    return _PREAMBLE + encode_value(0x00020000, "UL", length) + elements


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotTakenError("parse", "the file cannot be read") from error


def _image_of_file(data: bytes, name: str) -> _Image:
    if is_dicom(data):
        header = read_image_header(data)
        return _Image(
            content_hash(header.syntax, memoryview(data)[file_meta_end(data) :]),
            ".dcm",
            data,
            header,
            name,
        )
    kind = known_kind(data[:_HEAD])
    if kind is None:
        raise NotTakenError("parse", "neither DICOM nor a picture that is read")
    suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
    return _Image(hashlib.sha256(data).hexdigest(), suffix, data, ImageHeader(), name)
