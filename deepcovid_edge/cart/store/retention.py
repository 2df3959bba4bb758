"""What is deleted, and when: never what a destination does not have yet.

An image is done when it is settled and every row of its outbox is done: `committed`, or `sent`
where the destination is not asked for storage commitment. An image that the cart could not read,
or that has no report for a destination, is not done: it waits for a person. Done images are deleted
`keep_days` after the last of these steps, and earlier, oldest first, while images and results take
more room than the quota. Their rows stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from deepcovid_edge.cart.store.clock import clock_is_plausible, is_plausible, now_utc
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import ASSESSED, EXPIRED, NOT_ASSESSED, unanswered
from deepcovid_edge.cart.store.spool import Spool

_MIB = 1 << 20
_WITH_OUTBOX = (
    "image LEFT JOIN result ON result.image_id = image.id"
    " LEFT JOIN object ON object.result_id = result.id"
    " LEFT JOIN outbox ON outbox.object_id = object.id"
)


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
        _correct_dates(ledger)
    doomed = [*_aged(ledger, settings)]
    doomed += _over_quota(ledger, settings, {row for row, _ in doomed})
    for image_id, _ in doomed:
        row = ledger.row("SELECT content_sha256, suffix FROM image WHERE id = ?", image_id)
        assert row is not None
        with ledger.transaction() as now:
            now.execute("UPDATE image SET state = ? WHERE id = ?", (EXPIRED, image_id))
            now.execute("DELETE FROM who WHERE image_id = ?", (image_id,))
            ledger.event("expired", image_id)
        with ledger.transaction():  # the same image may have been taken again meanwhile
            if ledger.row("SELECT 1 FROM image WHERE id = ? AND state = ?", image_id, EXPIRED):
                spool.delete(row["content_sha256"], row["suffix"])
    return len(doomed)


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


def _done(ledger: Ledger, settings: RetentionSettings) -> list[tuple[int, int, str]]:
    """Number, bytes with results, and time of images that are done, the oldest first."""
    marks = ", ".join("?" * len(settings.committing)) or "''"
    rows = ledger.rows(
        "SELECT image.id, bytes + result_bytes AS size,"
        " max(settled_utc, coalesce(max(changed_utc), '')) AS at"
        f" FROM {_WITH_OUTBOX} WHERE image.state IN (?, ?)"
        f" AND NOT {unanswered(has_destinations=settings.has_destinations)}"
        " GROUP BY image.id HAVING coalesce(min("
        f" outbox.state = 'committed' OR (outbox.state = 'sent' AND destination NOT IN ({marks}))"
        "), 1) ORDER BY image.id",
        *(ASSESSED, NOT_ASSESSED, *settings.committing),
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
