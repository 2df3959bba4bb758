"""What the page says of images: rows of the list, and one image with all that is known of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from deepcovid_edge.cart.pictures import MAP, PICTURE, THUMBNAIL
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import (
    ASSESSED,
    COMMITTED,
    EXPIRED,
    LAST_FIRST,
    LAST_RESULT,
    NOT_ASSESSED,
    PARKED,
    QUEUED,
    SENDING,
    SENT,
)
from deepcovid_edge.cart.store.spool import Spool
from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE, SIGNS

PAGE_ROWS = 50
_MOST_PINNED = 8
WAITING = "waiting"
_SHA256, _SHORT_DIGEST = re.compile(r"[0-9a-f]{64}"), 12
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
"""A time as the ledger has it."""
_WAITING_SIGN = "…"
KINDS = (POSITIVE, INDETERMINATE, NEGATIVE, NOT_ASSESSED)
"""In the order of charts."""
_SETTLED = (ASSESSED, NOT_ASSESSED, EXPIRED)
_WORST_FIRST = (PARKED, QUEUED, SENDING, SENT, COMMITTED)
_SHOWN_STATES = {SENDING: QUEUED}
_ROWS = (
    "SELECT last.id AS arrival, last.at_utc AS came_utc, image.id, image.state, content_sha256,"
    " settled_utc, clock_ok, reason, device, bytes, patient_id, name, birth_date, accession,"
    " acquired, file_name, result.id AS result_id, decision, record"
    " FROM arrival AS last CROSS JOIN image ON image.id = last.image_id"
    " LEFT JOIN who ON who.image_id = image.id"
    f" LEFT JOIN result ON result.id = {LAST_RESULT}"
    " WHERE last.id = (SELECT max(id) FROM arrival WHERE image_id = last.image_id)"
)
"""Each image once, by the last time that it came. SQLite keeps the order of a CROSS JOIN, so that
the newest are found without a look at the others."""


@dataclass(frozen=True)
class Delivery:
    """What became of an image's objects at one destination.

    Attributes:
        destination: Its name.
        state: The worst of its objects: `parked`, `queued`, `sent` or `committed`.
        status: The last answer.
    """

    destination: str
    state: str
    status: str = ""


@dataclass(frozen=True)
class Row:
    """An image in the list.

    Attributes:
        image_id: Its number.
        kind: A decision, `not_assessed` or `waiting`.
        sign: The shape of its verdict.
        decision: The decision; None where there is none.
        reason: Code of the reason why it was not assessed, or None.
        warnings: Codes of its warnings.
        received: When it came last, UTC, ISO 8601.
        acquired: When it was taken, as its header says, or empty.
        patient: Patient ID, as its header says.
        name: Patient's name.
        file_name: Of an image that came as a file.
        has_picture: Whether there is a thumbnail.
        is_pinned: Whether it stands above newer ones.
        is_expired: Whether its files were deleted.
        deliveries: What became of its objects.
    """

    image_id: int
    kind: str
    sign: str
    decision: str | None
    reason: str | None
    warnings: Sequence[str]
    received: str
    acquired: str
    patient: str
    name: str
    file_name: str
    has_picture: bool
    is_pinned: bool = False
    is_expired: bool = False
    deliveries: Sequence[Delivery] = ()


@dataclass(frozen=True)
class Bar:
    """The bar of limits with the score on it; all values are shares of its length.

    Attributes:
        low: Where `negative` ends.
        high: Where `positive` begins.
        score: The score.
    """

    low: float
    high: float
    score: float


@dataclass(frozen=True)
class Image:
    """An image with all that is known of it.

    Attributes:
        row: What the list says too.
        record: That of the result that holds, or empty.
        score: Its score in words, or None; never of an image that was not assessed.
        limits: Name -> limit in words.
        bar: Where score and limits lie on the bar, 0 to 1; None where there is no score.
        who: Name of a field -> value, of those that the header has.
        facts: The row of the ledger.
        arrivals: Each time that it came.
        results: Its results, the one that holds first.
        has_map: Whether there is a picture with its heat map.
        can_send: Whether it has objects that may be sent again.
    """

    row: Row
    record: Mapping[str, Any]
    score: str | None
    limits: Mapping[str, str]
    bar: Bar | None
    who: Mapping[str, str]
    facts: Mapping[str, Any]
    arrivals: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    has_map: bool
    can_send: bool


@dataclass(frozen=True)
class ImageList:
    """Rows of the list.

    Attributes:
        rows: Pinned ones, then the newest first.
        older: Arrival that the next page starts below; None where there is none.
    """

    rows: Sequence[Row] = field(default=())
    older: int | None = None


def list_images(ledger: Ledger, spool: Spool, before: int | None = None) -> ImageList:
    """The images that came last, ordered by their arrivals; those that are flagged stand first.

    Args:
        ledger: The ledger.
        spool: Its spool folder.
        before: Images that came last before this arrival; nothing is pinned then.
    """
    found = ledger.rows(
        f"{_ROWS} AND last.id < ? ORDER BY last.id DESC LIMIT ?",
        *(before or 1 << 62, PAGE_ROWS + 1),
    )
    shown = found[:PAGE_ROWS]
    deliveries = _deliveries(ledger, [row["id"] for row in shown])
    rows = [_row(one, spool, deliveries.get(one["id"], ())) for one in shown]
    if before is None:
        flagged = [row for row in rows if row.decision == POSITIVE][:_MOST_PINNED]
        pinned = {row.image_id for row in flagged}
        rest = [row for row in rows if row.image_id not in pinned]
        rows = [*(replace(row, is_pinned=True) for row in flagged), *rest]
    more = len(found) > PAGE_ROWS
    return ImageList(rows, shown[-1]["arrival"] if more else None)


def find_image(ledger: Ledger, spool: Spool, image_id: int) -> Image | None:
    """All that is known of an image; None where there is none of that number."""
    found = ledger.row(f"{_ROWS} AND last.image_id = ?", image_id)
    if found is None:
        return None
    deliveries = _deliveries(ledger, [image_id]).get(image_id, ())
    record = json.loads(found["record"]) if found["record"] else {}
    row = _row(found, spool, deliveries)
    decided = record if row.decision else {}
    score, limits = _in_words(decided)
    folder = spool.results(found["content_sha256"])
    who = {
        name: found[name] or ""
        for name in ("patient_id", "name", "birth_date", "accession", "file_name")
        if found[name]
    }
    return Image(
        row,
        record,
        score,
        limits,
        _bar(decided),
        who,
        dict(found),
        [*map(dict, _arrivals(ledger, image_id))],
        [*map(dict, _results(ledger, image_id))],
        row.decision is not None and (folder / MAP).is_file(),
        bool(deliveries) and not row.is_expired,
    )


def picture_of(ledger: Ledger, spool: Spool, image_id: int, kind: str) -> bytes | None:
    """The bytes of an image's picture: its place is made of what the ledger says.

    Args:
        ledger: The ledger.
        spool: Its spool folder.
        image_id: The image's number.
        kind: `picture`, `thumbnail` or `map`; there is no map of an image that was not assessed.
    """
    found = ledger.row(
        "SELECT content_sha256, decision FROM image"
        f" LEFT JOIN result ON result.id = {LAST_RESULT} WHERE image.id = ?",
        image_id,
    )
    if found is None or (kind == "map" and found["decision"] is None):
        return None
    name = {"picture": PICTURE, "thumbnail": THUMBNAIL, "map": MAP}[kind]
    try:
        return (spool.results(found["content_sha256"]) / name).read_bytes()
    except OSError:
        return None


def _row(found: Any, spool: Spool, deliveries: Sequence[Delivery]) -> Row:
    record = json.loads(found["record"]) if found["record"] else {}
    is_settled = found["state"] in _SETTLED
    decision = found["decision"] if is_settled else None
    kind = (decision or NOT_ASSESSED) if is_settled else WAITING
    return Row(
        image_id=found["id"],
        kind=kind,
        sign=SIGNS[decision][0] if is_settled else _WAITING_SIGN,
        decision=decision,
        reason=found["reason"] if is_settled else None,
        warnings=record.get("warnings") or () if decision else (),
        received=found["came_utc"],
        acquired=_acquired(found["acquired"] or ""),
        patient=found["patient_id"] or "",
        name=found["name"] or "",
        file_name=found["file_name"] or "",
        has_picture=(spool.results(found["content_sha256"]) / THUMBNAIL).is_file(),
        is_expired=found["state"] == EXPIRED,
        deliveries=deliveries,
    )


def _deliveries(ledger: Ledger, images: Sequence[int]) -> dict[int, list[Delivery]]:
    """Image -> the worst state of the objects of all its results, destination by destination."""
    marks = ", ".join("?" * len(images))
    rows = ledger.rows(
        "SELECT image_id, destination, state, last_status FROM result"
        " JOIN object ON object.result_id = result.id JOIN outbox ON outbox.object_id = object.id"
        f" WHERE image_id IN ({marks}) ORDER BY image_id, destination",
        *images,
    )
    worst: dict[int, dict[str, Delivery]] = {}
    for row in rows:
        of_image = worst.setdefault(row["image_id"], {})
        one = Delivery(row["destination"], row["state"], row["last_status"] or "")
        known = of_image.get(one.destination)
        if known is None or _WORST_FIRST.index(one.state) < _WORST_FIRST.index(known.state):
            of_image[one.destination] = one
    return {
        image: [
            Delivery(one.destination, _SHOWN_STATES.get(one.state, one.state), one.status)
            for one in found.values()
        ]
        for image, found in worst.items()
    }


def _arrivals(ledger: Ledger, image_id: int) -> list[Any]:
    return ledger.rows("SELECT * FROM arrival WHERE image_id = ? ORDER BY id LIMIT 50", image_id)


def _results(ledger: Ledger, image_id: int) -> list[Any]:
    return ledger.rows(
        "SELECT id, decision, made_utc, model_sha256 FROM result WHERE image_id = ?"
        f" ORDER BY {LAST_FIRST} LIMIT 20",
        image_id,
    )


def _in_words(record: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """Score and limits with as many decimals as it takes to see which is greater."""
    score, limits = record.get("probability"), record.get("limits") or {}
    if score is None:
        return None, {}
    for decimals in (3, 4, 5, 6):
        words = {name: f"{value:.{decimals}f}" for name, value in limits.items()}
        if f"{score:.{decimals}f}" not in words.values():
            break
    return f"{score:.{decimals}f}", words


def _bar(record: Mapping[str, Any]) -> Bar | None:
    score, limits = record.get("probability"), record.get("limits") or {}
    if score is None or not limits:
        return None
    threshold = limits.get("threshold", 0.0)
    return Bar(limits.get("low", threshold), limits.get("high", threshold), score)


def _acquired(text: str) -> str:
    """Date and time of a header (DICOM PS3.5, 6.2: DA and TM) as `2026-01-31 14:05`, or as it is.

    A header may hold anything; what is no date is shown as it stands.
    """
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(?: (\d\d)(\d\d)?.*)?", text)
    if not found:
        return text[:32]
    year, month, day, hour, minute = found.groups()
    return f"{year}-{month}-{day}" + (f" {hour}:{minute or '00'}" if hour else "")


def sign_of(kind: str) -> str:
    """The shape of a kind of image."""
    return SIGNS[None if kind == NOT_ASSESSED else kind][0]


def detail_pairs(text: str) -> list[tuple[str, str]]:
    """Names and values of an event's detail; the unknown are left out, digests are cut short."""
    return named_values(json.loads(text))


def named_values(detail: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names and values of a detail; times stand on the cart's own clock."""
    known = {name: value for name, value in detail.items() if value not in (None, "")}
    return [(name.replace("_", " "), _value_text(value)) for name, value in known.items()]


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value_text, value))
    text = str(value)
    if _UTC.fullmatch(text):
        return local_time(text)
    return text[:_SHORT_DIGEST] if _SHA256.fullmatch(text) else text


def local_time(utc: str) -> str:
    """A time of the ledger on the cart's own clock, such as `2026-01-31 14:05:09`."""
    try:
        return datetime.fromisoformat(utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return utc
