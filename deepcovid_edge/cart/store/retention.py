"""What is deleted, and when: never what a destination does not have yet.

An image is done when it is settled and every row of its outbox is done: `committed`, or `sent`
where the destination is not asked for storage commitment. An image that the cart could not read,
or that has no report for a destination, is not done: it waits for a person. Done images are deleted
`keep_days` after the last of these steps, and earlier, oldest first, while images and results take
more room than the quota. Their rows stay.

A clock that goes ahead by more than a week makes nothing old until the cart has run for a day, so
that a person can set it right. The day is the sum of the times that the cart was on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from deepcovid_edge.cart.store.clock import (
    clock_is_plausible,
    is_plausible,
    now_seconds,
    now_utc,
)
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import ASSESSED, EXPIRED, NOT_ASSESSED, unanswered
from deepcovid_edge.cart.store.spool import Spool

_MIB = 1 << 20
_DAY_SECONDS = 86400.0
_MOST_SECONDS = 7 * _DAY_SECONDS
"""Between two looks at the clock; more is a clock that went ahead, or a cart that was off."""
_RUNNING_SECONDS = 600.0
"""Between two looks of a cart that runs; it looks twice a minute."""
CLOCK_KEY = "clock"
"""Of the table `meta`: when the clock was last trusted, how long the cart has run since then, and
when it was last looked at, in seconds (since 1970)."""
_WITH_OUTBOX = (
    "image LEFT JOIN result ON result.image_id = image.id"
    " LEFT JOIN object ON object.result_id = result.id"
    " LEFT JOIN outbox ON outbox.object_id = object.id"
)
_IS_EXPIRED = "SELECT suffix FROM image WHERE content_sha256 = ? AND state = ?"


@dataclass(frozen=True)
class RetentionSettings:
    """How long images are kept.

    Attributes:
        keep_days: Days after an image is done.
        quota_mib: Most room for images and results, MiB; 0 for no limit.
        committing: Destinations that are asked for storage commitment.
        has_destinations: Whether results go anywhere.
    """

    keep_days: int
    quota_mib: int
    committing: tuple[str, ...] = ()
    has_destinations: bool = True


def delete_old(ledger: Ledger, spool: Spool, settings: RetentionSettings) -> int:
    """Delete the files of images that are done and old, or too many; how many images.

    The row says `expired` before the files are gone: one whose row says otherwise has its files.
    """
    if clock_is_plausible():
        _note_clock(ledger)
        _correct_dates(ledger)
    doomed = [] if clock_went_ahead(ledger) else [*_aged(ledger, settings)]
    doomed += _over_quota(ledger, settings, {row for row, _ in doomed})
    return sum(_expire(ledger, spool, settings, image_id) for image_id, _ in doomed)


def _expire(ledger: Ledger, spool: Spool, settings: RetentionSettings, image_id: int) -> bool:
    """Delete the files of an image, if it is still done: a person may have sent it again."""
    with ledger.transaction() as now:
        if not _done(ledger, settings, image_id):
            return False
        row = now.execute(
            "UPDATE image SET state = ? WHERE id = ? RETURNING content_sha256, suffix",
            (EXPIRED, image_id),
        ).fetchone()
        now.execute("DELETE FROM who WHERE image_id = ?", (image_id,))
        ledger.event("expired", image_id)
    _delete_expired(ledger, spool, row["content_sha256"], row["suffix"])
    return True


def _delete_expired(ledger: Ledger, spool: Spool, content_sha256: str, suffix: str) -> None:
    """Delete the files of an image, unless it has been taken again meanwhile."""
    with ledger.transaction():
        if ledger.row(_IS_EXPIRED, content_sha256, EXPIRED):
            spool.delete(content_sha256, suffix)


def delete_leftovers(ledger: Ledger, spool: Spool) -> None:
    """Delete files of expired images that stayed because the cart ended, or its disk failed."""
    for place in (*spool.folder.glob("images/??/*"), *spool.folder.glob("results/??/*")):
        row = ledger.row(_IS_EXPIRED, place.stem, EXPIRED)
        if row:
            _delete_expired(ledger, spool, place.stem, row["suffix"])


def _note_clock(ledger: Ledger) -> None:
    """Note what the clock says, and whether it is trusted to say what is old."""
    now = now_seconds()
    trusted, ran, last = _clock(ledger) or (now, 0.0, now)
    if 0 <= now - last <= _RUNNING_SECONDS:
        ran += now - last
    # As ever, or set right again; or the date has stayed.
    if now - trusted <= _MOST_SECONDS or ran > _DAY_SECONDS:
        trusted, ran = now, 0.0
    ledger.set_meta(CLOCK_KEY, json.dumps([trusted, ran, now]))


def _clock(ledger: Ledger) -> tuple[float, float, float] | None:
    text = ledger.get_meta(CLOCK_KEY)
    return tuple(json.loads(text)) if text else None


def clock_went_ahead(ledger: Ledger) -> bool:
    """Whether the clock went ahead by more than a week, less than a day of running ago."""
    clock = _clock(ledger)
    return clock is not None and clock[0] != clock[2]


def _correct_dates(ledger: Ledger) -> None:
    """Date images that were settled, or sent, under a wrong clock as of now."""
    settled = ledger.rows(
        "SELECT id, settled_utc AS at FROM image WHERE state IN (?, ?)", ASSESSED, NOT_ASSESSED
    )
    sent = ledger.rows(
        f"SELECT outbox.rowid AS id, changed_utc AS at FROM {_WITH_OUTBOX}"
        " WHERE image.state IN (?, ?) AND changed_utc IS NOT NULL",
        *(ASSESSED, NOT_ASSESSED),
    )
    for rows, update in (
        (settled, "UPDATE image SET settled_utc = ? WHERE id = ?"),
        (sent, "UPDATE outbox SET changed_utc = ? WHERE rowid = ?"),
    ):
        wrong = [(now_utc(), row["id"]) for row in rows if not is_plausible(row["at"])]
        if wrong:
            with ledger.transaction() as now:
                now.executemany(update, wrong)


def _done(
    ledger: Ledger, settings: RetentionSettings, image_id: int | None = None
) -> list[tuple[int, int, str]]:
    """Number, bytes with results, and time of images that are done, the oldest first."""
    which = "image.id > ?" if image_id is None else "image.id = ?"
    marks = ", ".join("?" * len(settings.committing)) or "''"
    rows = ledger.rows(
        "SELECT image.id, bytes + result_bytes AS size,"
        " max(settled_utc, coalesce(max(changed_utc), '')) AS at"
        f" FROM {_WITH_OUTBOX} WHERE {which} AND image.state IN (?, ?)"
        f" AND NOT {unanswered(has_destinations=settings.has_destinations)}"
        " GROUP BY image.id HAVING coalesce(min("
        f" outbox.state = 'committed' OR (outbox.state = 'sent' AND destination NOT IN ({marks}))"
        "), 1) ORDER BY image.id",
        *(image_id or 0, ASSESSED, NOT_ASSESSED, *settings.committing),
    )
    return [(row["id"], row["size"], row["at"]) for row in rows]


def _aged(ledger: Ledger, settings: RetentionSettings) -> Iterable[tuple[int, int]]:
    limit = datetime.now(timezone.utc) - timedelta(days=settings.keep_days)
    for image_id, size, since in _done(ledger, settings):
        if datetime.fromisoformat(since) < limit:
            yield image_id, size


def _over_quota(
    ledger: Ledger, settings: RetentionSettings, doomed: set[int]
) -> list[tuple[int, int]]:
    if not settings.quota_mib:
        return []
    row = ledger.row(
        "SELECT coalesce(sum(bytes + result_bytes), 0) AS n FROM image WHERE state != ?", EXPIRED
    )
    done = _done(ledger, settings)
    over = int(row["n"] if row else 0) - settings.quota_mib * _MIB
    over -= sum(size for image_id, size, _ in done if image_id in doomed)
    found = []
    for image_id, size, _ in done:
        if over <= 0:
            break
        if image_id not in doomed:
            found.append((image_id, size))
            over -= size
    return found
