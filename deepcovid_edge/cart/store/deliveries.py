"""The outbox: one row for each object and destination, tried for ever until it is there.

| state | means |
| --- | --- |
| `queued` | waits, perhaps until its next try |
| `sending` | sent now; found at a start, it ended between request and answer |
| `sent` | the destination answered that it has it |
| `committed` | the destination took responsibility (storage commitment) |
| `parked` | the destination rejected it for good; a person looks, and sends again |

Objects of an image whose files were deleted are not sent, nor asked about, any more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcovid_edge.cart.store.clock import now_seconds, now_utc
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import (
    COMMITTED,
    EXPIRED,
    PARKED,
    QUEUED,
    SENDING,
    SENT,
)
from deepcovid_edge.cart.store.spool import Spool

BACKOFF_SECONDS = (10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Waits after a first, second, ... try that failed; the last is repeated for ever."""
_JITTER = 0.2
_MOST_ASKED = 100
"""Objects of one request for storage commitment."""
_LONGEST = BACKOFF_SECONDS[-1] * (1 + _JITTER)
_HAS_FILES = (
    "EXISTS (SELECT 1 FROM object AS one JOIN result ON result.id = one.result_id"
    " JOIN image ON image.id = result.image_id"
    f" WHERE one.id = outbox.object_id AND image.state != '{EXPIRED}')"
)
_KIND = "(SELECT kind FROM object WHERE id = outbox.object_id)"
"""Of a row of the outbox: whether its image has its files, and what kind of object it is."""


def with_jitter(seconds: float) -> float:
    """A wait that is up to a fifth longer or shorter: carts do not come back at one moment."""
    return seconds * (1 + random.uniform(-_JITTER, _JITTER))


@dataclass(frozen=True)
class Delivery:
    """An object on its way to a destination.

    Attributes:
        object_id: Row of the object.
        image_id: Row of its image.
        destination: Name of the destination.
        kind: `sr` or `sc`.
        sop_class: SOP class UID.
        sop_uid: SOP instance UID.
        path: The file: only these bytes are ever sent.
        sha256: SHA-256 of the file.
        tries: Tries so far.
        is_uncertain: Whether an earlier try ended between request and answer.
    """

    object_id: int
    image_id: int
    destination: str
    kind: str
    sop_class: str
    sop_uid: str
    path: Path
    sha256: str
    tries: int
    is_uncertain: bool


class Deliveries:
    """The outbox of a ledger."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self.ledger, self.spool = ledger, spool

    def due(
        self, destination: str, most: int = 100, kinds: Sequence[str] | None = None
    ) -> list[Delivery]:
        """What may be sent to a destination now: pictures of positive images, then the oldest.

        A next try that lies further ahead than the longest wait was written before the clock was
        set back: it is due now. What was being sent when the sender ended is due too.

        Args:
            destination: Its name.
            most: So many objects at most.
            kinds: Of objects of these kinds; None for all.
        """
        now = now_seconds()
        of_kinds = "" if kinds is None else f" AND kind IN ({', '.join('?' * len(kinds))})"
        rows = self.ledger.rows(
            "SELECT outbox.*, object.*, result.image_id FROM outbox"
            " JOIN object ON object.id = object_id JOIN result ON result.id = result_id"
            " WHERE destination = ? AND (state = ? OR (state = ? AND"
            f" (next_try <= ? OR next_try > ?))) AND {_HAS_FILES}{of_kinds}"
            " ORDER BY urgent DESC, object_id LIMIT ?",
            *(destination, SENDING, QUEUED, now, now + _LONGEST, *(kinds or ()), most),
        )
        return [
            Delivery(
                object_id=row["object_id"],
                image_id=row["image_id"],
                destination=row["destination"],
                kind=row["kind"],
                sop_class=row["sop_class"],
                sop_uid=row["sop_uid"],
                path=self.spool.folder / row["path"],
                sha256=row["sha256"],
                tries=row["tries"],
                is_uncertain=row["state"] == SENDING,
            )
            for row in rows
        ]

    def begin(self, delivery: Delivery) -> None:
        """Note that an object is being sent, before its first byte leaves."""
        self._set(delivery, SENDING, tries=delivery.tries + 1)

    def sent(self, delivery: Delivery, status: str) -> None:
        """The destination answered that it has the object."""
        with self.ledger.transaction() as now:
            self._set(delivery, SENT, status=status)
            now.execute(
                "UPDATE outbox SET sent_utc = coalesce(sent_utc, changed_utc)"
                " WHERE object_id = ? AND destination = ?",
                (delivery.object_id, delivery.destination),
            )
            self.note("sent", delivery, status)

    def defer(self, delivery: Delivery, status: str) -> float:
        """Try again later; the seconds until then."""
        wait = with_jitter(BACKOFF_SECONDS[min(delivery.tries, len(BACKOFF_SECONDS) - 1)])
        self._set(delivery, QUEUED, status=status, next_try=now_seconds() + wait)
        return wait

    def park(self, delivery: Delivery, status: str) -> None:
        """The destination rejected it for good: tell a person, and do not try again by itself."""
        with self.ledger.transaction():
            self._set(delivery, PARKED, status=status)
            self.note("parked", delivery, status)

    def note(self, what: str, delivery: Delivery, status: str) -> None:
        """Append to the events what became of an object."""
        self.ledger.event(
            what,
            delivery.image_id,
            destination=delivery.destination,
            object=delivery.kind,
            status=status,
        )

    def _set(
        self,
        delivery: Delivery,
        state: str,
        *,
        status: str | None = None,
        next_try: float = 0.0,
        tries: int | None = None,
    ) -> None:
        with self.ledger.transaction() as now:
            now.execute(
                "UPDATE outbox SET state = ?, last_status = coalesce(?, last_status), next_try = ?,"
                " tries = coalesce(?, tries), changed_utc = ?"
                " WHERE object_id = ? AND destination = ?",
                (
                    *(state, status, next_try, tries, now_utc()),
                    *(delivery.object_id, delivery.destination),
                ),
            )

    def ask_commitment(
        self, destination: str, transaction_uid: str, sop_uids: Sequence[str]
    ) -> None:
        """Note which objects a destination is asked to take responsibility for."""
        with self.ledger.transaction() as now:
            now.executemany(
                "UPDATE outbox SET transaction_uid = ? WHERE destination = ? AND state = ? AND"
                " object_id = (SELECT id FROM object WHERE sop_uid = ?)",
                [(transaction_uid, destination, SENT, uid) for uid in sop_uids],
            )

    def uncommitted(self, destination: str) -> list[tuple[str, str]]:
        """SOP class and instance UIDs that a destination has and was not asked to commit."""
        rows = self.ledger.rows(
            "SELECT sop_class, sop_uid FROM outbox JOIN object ON object.id = object_id"
            f" WHERE destination = ? AND state = ? AND transaction_uid IS NULL AND {_HAS_FILES}"
            " ORDER BY object_id LIMIT ?",
            *(destination, SENT, _MOST_ASKED),
        )
        return [(row["sop_class"], row["sop_uid"]) for row in rows]

    def settle_commitment(
        self, destination: str, transaction_uid: str, kept: Sequence[str], lost: Sequence[str]
    ) -> None:
        """Write a destination's answer: what it has lost is sent again."""
        query = (
            "UPDATE outbox SET state = ?, transaction_uid = NULL, next_try = 0, changed_utc = ?"
            " WHERE destination = ? AND transaction_uid = ?"
            " AND object_id = (SELECT id FROM object WHERE sop_uid = ?)"
        )
        with self.ledger.transaction() as now:
            for state, uids in ((COMMITTED, kept), (QUEUED, lost)):
                now.executemany(
                    query, [(state, now_utc(), destination, transaction_uid, uid) for uid in uids]
                )
            self.ledger.event("commitment", destination=destination, kept=len(kept), lost=len(lost))

    def resend(
        self,
        image_id: int | None = None,
        destination: str | None = None,
        named: Mapping[str, Sequence[str]] | None = None,
    ) -> int:
        """Send again, the same bytes: all of an image, or what a destination rejected.

        Args:
            image_id: Every object of this image; None for those that are parked.
            destination: To this destination alone; None for all.
            named: The destinations of the configuration, each with the kinds of objects that it
                gets: nothing else is sent, and a new one gets the image's objects too. None for
                those alone that the objects had before, whether they are still named or not.

        Returns:
            How many objects are queued.
        """
        where, values = ["state != 'sending'", _HAS_FILES], list[object]()
        if image_id is None:
            where.append("state = 'parked'")
        else:
            where.append(
                "object_id IN (SELECT object.id FROM object JOIN result ON result.id = result_id"
                " WHERE image_id = ?)"
            )
            values.append(image_id)
        if destination is not None:
            where.append("destination = ?")
            values.append(destination)
        if named is not None:
            pairs = [(name, kind) for name, kinds in named.items() for kind in kinds]
            marks = ", ".join(["(?, ?)"] * len(pairs)) or "(NULL, NULL)"
            where.append(f"(destination, {_KIND}) IN (VALUES {marks})")
            values += [value for pair in pairs for value in pair]
        with self.ledger.transaction() as now:
            if image_id is not None:
                new = {
                    name: kinds
                    for name, kinds in (named or {}).items()
                    if destination in (None, name)
                }
                self._add_missing(image_id, new)
            count = now.execute(
                f"UPDATE outbox SET state = 'queued', next_try = 0, transaction_uid = NULL,"
                f" changed_utc = ? WHERE {' AND '.join(where)}",
                (now_utc(), *values),
            ).rowcount
            self.ledger.event("send again", image_id, destination=destination, objects=count)
        return count

    def _add_missing(self, image_id: int, named: Mapping[str, Sequence[str]]) -> None:
        """Have an image's objects go to destinations which they were not meant for before."""
        with self.ledger.transaction() as now:
            now.executemany(
                "INSERT INTO outbox (object_id, destination, urgent, changed_utc)"
                " SELECT object.id, ?, result.decision IS 'positive' AND object.kind = 'sc', ?"
                " FROM object JOIN result ON result.id = result_id JOIN image ON image.id ="
                " image_id WHERE image_id = ? AND kind = ? AND image.state != ?"
                " ON CONFLICT DO NOTHING",
                [
                    (name, now_utc(), image_id, kind, EXPIRED)
                    for name, kinds in named.items()
                    for kind in kinds
                ],
            )

    def of_removed(self, named: Sequence[str]) -> dict[str, int]:
        """Objects that wait for destinations which are not named any more, by destination."""
        marks = ", ".join("?" * len(named))
        rows = self.ledger.rows(
            "SELECT destination, count(*) AS n FROM outbox"
            f" WHERE state IN (?, ?, ?) AND destination NOT IN ({marks})"
            " GROUP BY destination ORDER BY destination",
            *(QUEUED, SENDING, PARKED, *named),
        )
        return {row["destination"]: row["n"] for row in rows}

    def give_up(self, destination: str, but: Sequence[str] = ()) -> int:
        """Forget what waits for a destination, for ever; how many objects.

        Args:
            destination: Nothing is sent to it meanwhile.
            but: Kinds of objects that it still gets; none where it is not named any more.
        """
        marks = ", ".join("?" * len(but))
        with self.ledger.transaction() as now:
            count = now.execute(
                "DELETE FROM outbox WHERE destination = ? AND state IN (?, ?, ?)"
                f" AND {_KIND} NOT IN ({marks})",
                (destination, QUEUED, SENDING, PARKED, *but),
            ).rowcount
            if count:
                why = "kind" if but else "removed"
                self.ledger.event("given up", destination=destination, objects=count, why=why)
        return count

    def give_up_expired(self) -> None:
        """Forget what waits of images whose files were deleted; it was there before they were."""
        with self.ledger.transaction() as now:
            count = now.execute(
                f"DELETE FROM outbox WHERE state IN (?, ?, ?) AND NOT {_HAS_FILES}",
                (QUEUED, SENDING, PARKED),
            ).rowcount
            if count:
                self.ledger.event("given up", objects=count, why="expired")

    def hasten(self, destination: str) -> None:
        """A destination answers again: what waits for a later try may be sent now."""
        with self.ledger.transaction() as now:
            now.execute(
                "UPDATE outbox SET next_try = 0 WHERE destination = ? AND state = ?",
                (destination, QUEUED),
            )
