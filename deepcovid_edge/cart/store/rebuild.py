"""A damaged ledger is made again from the files: names are hashes, objects carry their UIDs.

The new ledger has another name until it is whole: one that was not finished never takes the place
of the old one.

Each image becomes a row again. One that has objects of a result was assessed: its record lies
beside them, its objects keep their UIDs and bytes, and go to every destination once more, which the
fixed UIDs make harmless. One without is assessed again.

Images whose files were deleted have left no file. The newest nightly copy says which they are, so
that those that still lie in a watched folder are not taken for new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.image_header import NotTakenError, read_image_header
from deepcovid_edge.cart.store.images import BuiltObject, ClaimedImage, Images, Settled
from deepcovid_edge.cart.store.intake import Arrival, Intake
from deepcovid_edge.cart.store.ledger import (
    DAMAGED_NAME,
    LEDGER_NAME,
    UNFINISHED_NAME,
    Ledger,
    move_aside,
)
from deepcovid_edge.cart.store.schema import (
    ASSESSED,
    ASSESSING,
    COMMITTED,
    EXPIRED,
    LAST_RESULT,
    NOT_ASSESSED,
    RECEIVED,
    SENT,
    unanswered,
)
from deepcovid_edge.cart.store.spool import Spool, sync
from deepcovid_edge.decision.record import SIGNS
from deepcovid_edge.errors import OutputError
from deepcovid_edge.reasons import Reason

ALERT_KEY = "ledger"
"""Of the alert that the ledger was made again or restored, whatever its code."""
RECORD_NAME = "record.json"
"""The record of an image, with its objects, when they were made and where they go, beside them."""
_IMAGE = (
    *("id", "content_sha256", "suffix", "sop_uid", "sop_class", "study_uid", "syntax", "device"),
    *("bytes", "source", "received_utc", "boot_id", "clock_ok", "reason", "settled_utc"),
)
_RESULT = ("image_id", "model_sha256", "site_sha256", "decision", "record", "made_utc", "settling")
_ARRIVAL = ("image_id", "at_utc", "source", "peer", "ae_title", "same_bytes")
"""Columns of every version of the ledger."""
Answer = tuple[Mapping[str, Any], str]
"""The record of a result, and when its objects were made."""
_ANSWERED = (
    f"state = '{EXPIRED}' OR (state IN ('{ASSESSED}', '{NOT_ASSESSED}') AND NOT "
    f"{unanswered(has_destinations=True)}"
    " AND NOT EXISTS (SELECT 1 FROM result JOIN object ON object.result_id = result.id"
    " JOIN outbox ON outbox.object_id = object.id WHERE result.image_id = image.id"
    f" AND outbox.state NOT IN ('{SENT}', '{COMMITTED}')))"
)
"""Of an image that every destination has the answer to."""


@contextlib.contextmanager
def replaced_ledger(spool: Spool, why: str) -> Iterator[Ledger]:
    """A ledger that takes the place of the spool's at the end of the block, if it ends well.

    The file that lies under `UNFINISHED_NAME`, if there is one, is what it begins with.

    Args:
        spool: The spool folder.
        why: How the name of the old ledger begins, which is kept.

    Raises:
        OutputError: It cannot be written; the old ledger stays.
    """
    place = spool.folder / UNFINISHED_NAME
    try:
        with Ledger(spool.folder, name=UNFINISHED_NAME) as ledger:
            yield ledger
            ledger.merge_log()
        place.chmod(0o600)
        sync(place)
        move_aside(spool.folder, why)
        place.replace(spool.folder / LEDGER_NAME)
        (spool.folder / DAMAGED_NAME).unlink(missing_ok=True)
        sync(spool.folder)
    except OSError as error:
        raise OutputError(f"{spool.folder / LEDGER_NAME}: is not replaced: {error}") from error
    finally:
        delete_unfinished(spool)


def delete_unfinished(spool: Spool) -> None:
    """Delete a ledger that was not finished."""
    for path in spool.folder.glob(f"{UNFINISHED_NAME}*"):
        path.unlink(missing_ok=True)


def rebuild(ledger: Ledger, spool: Spool, copy: Path | None = None) -> int:
    """Fill an empty ledger from the spool.

    Args:
        ledger: The ledger.
        spool: The spool folder.
        copy: The newest nightly copy of the old ledger, or None.

    Returns:
        How many images of the spool it has then.
    """
    intake, images = Intake(ledger, spool), Images(ledger, spool)
    if copy:
        with contextlib.suppress(sqlite3.DatabaseError, OutputError):  # it is damaged too
            _note_expired(ledger, spool, copy)
    count = 0
    for path in _images(spool):
        with ledger.transaction():
            try:
                taken = intake.note_stored(path, Arrival("rebuild", "spool"))
            except NotTakenError:
                ledger.event("not rebuilt", file=path.name)
                continue
            _settle_again(images, taken.image_id, path)
        count += 1
    ledger.event("rebuilt", images=count)
    return count


def _note_expired(ledger: Ledger, spool: Spool, copy: Path) -> None:
    """Note images that were answered before their files were deleted: results, arrivals.

    One whose answer a destination may lack is not noted: it is assessed if it comes again.
    """
    address = f"{copy.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as night, ledger.transaction():
        night.row_factory = sqlite3.Row
        noted = set[int]()
        for row in night.execute(f"SELECT {', '.join(_IMAGE)} FROM image WHERE {_ANSWERED}"):
            if spool.image(row["content_sha256"], row["suffix"]).exists():
                continue
            ledger.insert("image", {**row, "state": EXPIRED})
            results = f"SELECT {', '.join(_RESULT)} FROM result WHERE image_id = ? ORDER BY id"
            for result in night.execute(results, (row["id"],)):
                ledger.insert("result", {**result})
            noted.add(row["id"])
        for arrival in night.execute(f"SELECT {', '.join(_ARRIVAL)} FROM arrival ORDER BY id"):
            if arrival["image_id"] in noted:
                ledger.insert("arrival", {**arrival})
        if noted:
            ledger.event("expired before", images=len(noted), copy=copy.name)


def catch_up(ledger: Ledger, spool: Spool) -> int:
    """Have an older ledger know what the spool has; how many images it did not know.

    Names are read from the images again, results from what lies beside their objects. An image
    whose files were deleted since is `expired`, and nothing of it is sent: its destinations had it
    before. One that was taken again since is not `expired` any more, and one that was answered
    again since, by the same model or another one, has that answer.
    """
    intake, images = Intake(ledger, spool), Images(ledger, spool)
    known = {
        row["content_sha256"]: row
        for row in ledger.rows(
            "SELECT image.id, content_sha256, suffix, state, record, made_utc"
            f" FROM image LEFT JOIN result ON result.id = {LAST_RESULT}"
        )
    }
    count = 0
    for path in _images(spool):
        row = known.pop(path.stem, None)
        with contextlib.suppress(NotTakenError), ledger.transaction():
            known_answer: Answer | None = None
            if row is None or row["state"] == EXPIRED:
                image_id = intake.note_stored(path, Arrival("restore", "spool")).image_id
                count += row is None
            else:
                image_id = row["id"]
                intake.note_who(image_id, path)
                if row["state"] not in (RECEIVED, ASSESSING):
                    known_answer = json.loads(row["record"] or "{}"), row["made_utc"]
            _settle_again(images, image_id, path, known_answer)
    with ledger.transaction() as now:
        gone = [(EXPIRED, row["id"]) for row in known.values() if row["state"] != EXPIRED]
        now.executemany("UPDATE image SET state = ? WHERE id = ?", gone)
        Deliveries(ledger, spool).give_up_expired()
    return count


def may_lack_images(ledger: Ledger) -> bool:
    """Whether the ledger was made again or restored, and no person has acknowledged that."""
    return ledger.row("SELECT 1 FROM alert WHERE key = ?", ALERT_KEY) is not None


def note_unknown(ledger: Ledger, spool: Spool) -> int:
    """Note images that were stored while the ledger was made again; how many there were.

    Only the receiver calls this, at its start, before it takes anything. A ledger that was never
    made again knows every image that was acknowledged, and is not asked.
    """
    if not may_lack_images(ledger):
        return 0
    rows = ledger.rows("SELECT content_sha256 FROM image WHERE state != ?", EXPIRED)
    known = {row["content_sha256"] for row in rows}
    intake, count = Intake(ledger, spool), 0
    for path in _images(spool):
        if path.stem in known:
            continue
        try:
            intake.note_stored(path, Arrival("rebuild", "spool"))
        except NotTakenError:  # noted when the ledger was made again
            continue
        count += 1
    return count


def _images(spool: Spool) -> Iterator[Path]:
    """The images of a spool, those that came first before the others."""
    found = [path for path in (spool.folder / "images").glob("??/*") if path.is_file()]
    yield from sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _settle_again(
    images: Images, image_id: int, path: Path, known_answer: Answer | None = None
) -> None:
    """Give an image the result that lies beside its objects, unless the ledger has it already."""
    settled = _settled(images.spool.results(path.stem))
    if settled and (settled.record, settled.made) != known_answer:
        images.settle(ClaimedImage(image_id, path.stem, path, bool(settled.objects), 1), settled)


def _settled(folder: Path) -> Settled | None:
    """The result whose files lie in a folder; None unless all are whole, and of the cart."""
    try:
        values = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        _check_record(values["record"])
        objects = [_object(folder, one) for one in values["objects"]]
        datetime.fromisoformat(values["made"])
        settled = Settled(values["record"], objects, values["destinations"], values["made"])
        settled_text(settled)  # what cannot be written was not written by the cart
    except (OSError, LookupError, AttributeError, TypeError, ValueError, NotTakenError):
        return None
    return settled


def _check_record(record: Mapping[str, Any]) -> None:
    """Check that a record is one of `infer`, as far as the ledger and the page read it.

    Raises:
        ValueError: A value is not. What lacks keys, or is no mapping, raises as Python does.
    """
    if record["reason"] is not None:
        Reason.of(record["reason"])
    score = record["probability"]
    if not (
        record["decision"] in SIGNS
        and (score is None or isinstance(score, int | float))
        and isinstance(record["model_sha256"], str)
        and (record["site"] is None or isinstance(record["site"]["sha256"], str))
    ):
        raise ValueError("record: has values that `infer` does not write")


def _object(folder: Path, values: Mapping[str, Any]) -> BuiltObject:
    path = folder / values["name"]
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if path.parent != folder or digest != values["sha256"] or not isinstance(values["kind"], str):
        raise ValueError(f"{path}: is not the object that was sent")
    header = read_image_header(data)
    return BuiltObject(values["kind"], header.sop_class, header.sop_uid, path, digest)


def settled_text(settled: Settled) -> str:
    """What `rebuild` needs of a result, for `RECORD_NAME`."""
    objects = [
        {"kind": one.kind, "name": one.path.name, "sha256": one.sha256} for one in settled.objects
    ]
    destinations = {name: [*kinds] for name, kinds in settled.destinations.items()}
    values = {"record": dict(settled.record), "objects": objects, "destinations": destinations}
    return json.dumps({**values, "made": settled.made}, allow_nan=False)
