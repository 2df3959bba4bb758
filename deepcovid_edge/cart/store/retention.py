"""What is deleted, and when: never what a destination does not have yet.

A film is done when it is settled and every row of its outbox is done: `committed`, or `sent` where
the destination is not asked for storage commitment. Done films are deleted after `keep_days`, and
earlier, oldest first, while films and results take more room than the quota. Their rows stay.
A film that was settled under a wrong clock is as old as the day on which that is noticed: it must
not go at once when the clock is set right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from deepcovid_edge.cart.store.clock import clock_is_plausible, is_plausible, now_utc
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import EXPIRED, JUDGED, REFUSED
from deepcovid_edge.cart.store.spool import Spool

_MIB = 1 << 20


@dataclass(frozen=True)
class RetentionSettings:
    """How long films are kept.

    Attributes:
        keep_days: Days after a film is done.
        quota_mib: Most room for films, MiB; 0 for no limit.
        committing: Destinations that are asked for storage commitment.
    """

    keep_days: int
    quota_mib: int
    committing: tuple[str, ...] = ()


def delete_old(ledger: Ledger, spool: Spool, settings: RetentionSettings) -> int:
    """Delete the files of films that are done and old, or too many; how many films.

    The row says `expired` before the files are gone: a film whose row says otherwise has its files.
    """
    if clock_is_plausible():
        _date_anew(ledger)
    doomed = [*_aged(ledger, settings)]
    doomed += _over_quota(ledger, settings, {row for row, _ in doomed})
    for film_id, _ in doomed:
        row = ledger.row("SELECT content_sha256, suffix FROM film WHERE id = ?", film_id)
        assert row is not None
        with ledger.transaction() as now:
            now.execute("UPDATE film SET state = ? WHERE id = ?", (EXPIRED, film_id))
            now.execute("DELETE FROM who WHERE film_id = ?", (film_id,))
            ledger.event("expired", film_id)
        spool.delete(row["content_sha256"], row["suffix"])
    return len(doomed)


def _date_anew(ledger: Ledger) -> None:
    """Have films that were settled under a wrong clock be settled now."""
    rows = ledger.rows("SELECT id, settled_utc FROM film WHERE state IN (?, ?)", JUDGED, REFUSED)
    wrong = [(now_utc(), row["id"]) for row in rows if not is_plausible(row["settled_utc"])]
    if wrong:
        with ledger.transaction() as now:
            now.executemany("UPDATE film SET settled_utc = ? WHERE id = ?", wrong)


def _done(ledger: Ledger, settings: RetentionSettings) -> list[tuple[int, int, str]]:
    """Number, bytes and time of films that are done, the oldest first."""
    marks = ", ".join("?" * len(settings.committing)) or "''"
    rows = ledger.rows(
        "SELECT id, bytes, settled_utc FROM film WHERE state IN (?, ?) AND NOT EXISTS ("
        " SELECT 1 FROM result JOIN object ON object.result_id = result.id"
        " JOIN outbox ON outbox.object_id = object.id WHERE result.film_id = film.id AND NOT ("
        f" outbox.state = 'committed' OR (outbox.state = 'sent' AND destination NOT IN ({marks}))))"
        " ORDER BY id",
        *(JUDGED, REFUSED, *settings.committing),
    )
    return [(row["id"], row["bytes"], row["settled_utc"]) for row in rows]


def _aged(ledger: Ledger, settings: RetentionSettings) -> Iterable[tuple[int, int]]:
    limit = datetime.now(timezone.utc) - timedelta(days=settings.keep_days)
    for film_id, size, settled in _done(ledger, settings):
        if datetime.fromisoformat(settled) < limit:
            yield film_id, size


def _over_quota(
    ledger: Ledger, settings: RetentionSettings, doomed: set[int]
) -> list[tuple[int, int]]:
    if not settings.quota_mib:
        return []
    row = ledger.row("SELECT coalesce(sum(bytes), 0) AS n FROM film WHERE state != ?", EXPIRED)
    done = _done(ledger, settings)
    over = int(row["n"] if row else 0) - settings.quota_mib * _MIB
    over -= sum(size for film_id, size, _ in done if film_id in doomed)
    found = []
    for film_id, size, _ in done:
        if over <= 0:
            break
        if film_id not in doomed:
            found.append((film_id, size))
            over -= size
    return found
