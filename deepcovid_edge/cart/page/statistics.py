"""What the physicist looks at: images a day, reasons, times, and whether images have changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from deepcovid_edge.cart.page.images import KINDS
from deepcovid_edge.cart.store.drift_window import (
    LEAST_RESULTS,
    OUTCOME_KEY,
    REFERENCE_RESULTS,
    week_until,
)
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import COMMITTED, LAST_FIRST, LAST_RESULT, SENT
from deepcovid_edge.decision.record import NOT_ASSESSED

DAYS = 14
_MOST_TIMES = 1000
_MOST_WEEK = 2000
PERCENTILES = (50, 90, 95, 99)
_POINTS = 60


@dataclass(frozen=True)
class Day:
    """The images of a day.

    Attributes:
        date: The day on the cart's clock, ISO 8601.
        counts: Kind -> images, in the order of `images.KINDS`.
    """

    date: str
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All images of the day."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Times:
    """How long something takes.

    Attributes:
        step: `assessor`, `settle` (from arrival to result) or `send` (from arrival to destination).
        count: How many images that is of; of `send`, objects and destinations.
        seconds: Percentile -> seconds.
    """

    step: str
    count: int
    seconds: Mapping[int, float]


@dataclass(frozen=True)
class Drift:
    """Whether the images of the last seven days are like those that the model began with.

    The first images are the reference and are not counted a second time: in the first days of a
    model the week is empty.

    Attributes:
        state: `changed`, `unchanged` or `too_few`.
        words: What has changed, as the alert says it.
        reference: Scores of the first results of the model, sorted.
        week: Those of later results of the last seven days, sorted.
        not_assessed: Shares that were not assessed, of the reference and of the week; None without
            a result.
        images: Numbers of results, of the reference and of the week.
    """

    state: str
    words: Sequence[str]
    reference: Sequence[float]
    week: Sequence[float]
    not_assessed: tuple[float | None, float | None]
    images: tuple[int, int]


@dataclass(frozen=True)
class Statistics:
    """All of the page of statistics.

    Attributes:
        days: The last days, the oldest first.
        kinds: Kind -> images of these days.
        reasons: Code of a reason -> images of these days, the most frequent first.
        times: How long things take.
        drift: Whether the images have changed.
    """

    days: Sequence[Day]
    kinds: Mapping[str, int]
    reasons: Sequence[tuple[str, int]]
    times: Sequence[Times]
    drift: Drift

    @property
    def total(self) -> int:
        """Settled images of these days."""
        return sum(self.kinds.values())


def read_statistics(ledger: Ledger, now: datetime | None = None) -> Statistics:
    """Read the statistics."""
    now = now or datetime.now(timezone.utc)
    dates = _dates(now)
    # A day more than is shown, so that none of the first calendar day is missing.
    since = (now - timedelta(days=DAYS + 1)).isoformat(timespec="milliseconds")
    found = ledger.rows(
        "SELECT date(received_utc, 'localtime') AS day, reason, decision, count(*) AS n"
        f" FROM image LEFT JOIN result ON result.id = {LAST_RESULT}"
        " WHERE settled_utc IS NOT NULL AND received_utc > ? GROUP BY 1, 2, 3",
        since,
    )
    rows = [row for row in found if row["day"] in dates]
    days, reasons = _days(rows, dates), Counter[str]()
    for row in rows:
        if row["reason"]:
            reasons[row["reason"]] += row["n"]
    kinds = {kind: sum(day.counts[kind] for day in days) for kind in KINDS}
    return Statistics(days, kinds, reasons.most_common(), _times(ledger), _drift(ledger, now))


def _dates(now: datetime) -> list[str]:
    """The days that are shown, on the cart's clock, ISO 8601."""
    today = now.astimezone().date()
    return [(today - timedelta(days=back)).isoformat() for back in reversed(range(DAYS))]


def _days(rows: Sequence[Any], dates: Sequence[str]) -> list[Day]:
    counts = {date: dict.fromkeys(KINDS, 0) for date in dates}
    for row in rows:
        counts[row["day"]][row["decision"] or NOT_ASSESSED] += row["n"]
    return [Day(date, counts[date]) for date in dates]


def _times(ledger: Ledger) -> list[Times]:
    """Times of the last images. A clock that was set meanwhile makes some negative: left away."""
    assessed = ledger.rows(
        "SELECT json_extract(record, '$.timings_ms.total') / 1000.0 AS seconds FROM result"
        f" ORDER BY {LAST_FIRST} LIMIT ?",
        _MOST_TIMES,
    )
    settled = ledger.rows(
        "SELECT (julianday(settled_utc) - julianday(received_utc)) * 86400 AS seconds FROM image"
        " WHERE settled_utc IS NOT NULL ORDER BY id DESC LIMIT ?",
        _MOST_TIMES,
    )
    sent = ledger.rows(
        "SELECT (julianday(sent_utc) - julianday(received_utc)) * 86400 AS seconds FROM"
        " (SELECT object_id, sent_utc FROM outbox WHERE state IN (?, ?)"
        " ORDER BY object_id DESC LIMIT ?) JOIN object ON object.id = object_id"
        " JOIN result ON result.id = result_id JOIN image ON image.id = image_id",
        *(SENT, COMMITTED, _MOST_TIMES),
    )
    steps = (("assessor", assessed), ("settle", settled), ("send", sent))
    return [_percentiles(step, [row["seconds"] for row in rows]) for step, rows in steps]


def _percentiles(step: str, values: Sequence[float | None]) -> Times:
    """Percentiles by the nearest rank (Hyndman and Fan 1996, definition 1)."""
    known = sorted(value for value in values if value is not None and value >= 0)
    ranks = {share: -(-share * len(known) // 100) - 1 for share in PERCENTILES} if known else {}
    return Times(step, len(known), {share: known[rank] for share, rank in ranks.items()})


def _drift(ledger: Ledger, now: datetime) -> Drift:
    newest = ledger.row(
        f"SELECT model_sha256, site_sha256 FROM result ORDER BY {LAST_FIRST} LIMIT 1"
    )
    model = (newest["model_sha256"], newest["site_sha256"]) if newest else ("", "")
    query = (
        "SELECT id, decision, json_extract(record, '$.probability') AS score FROM result"
        " WHERE model_sha256 = ? AND site_sha256 = ?"
    )
    reference = ledger.rows(f"{query} ORDER BY id LIMIT ?", *model, REFERENCE_RESULTS)
    week = ledger.rows(
        f"{query} AND id > ? AND made_utc BETWEEN ? AND ? ORDER BY id DESC LIMIT ?",
        *(*model, reference[-1]["id"] if reference else 0, *week_until(now), _MOST_WEEK),
    )
    outcome = json.loads(ledger.get_meta(OUTCOME_KEY) or "{}")
    words = outcome["words"] if outcome and (outcome["model"], outcome["site"]) == model else []
    few = min(len(reference), len(week)) < LEAST_RESULTS
    return Drift(
        "changed" if words else "too_few" if few else "unchanged",
        words,
        _scores(reference),
        _scores(week),
        (_not_assessed(reference), _not_assessed(week)),
        (len(reference), len(week)),
    )


def _scores(rows: Sequence[Any]) -> list[float]:
    return sorted(row["score"] for row in rows if row["score"] is not None)


def _not_assessed(rows: Sequence[Any]) -> float | None:
    return sum(row["decision"] is None for row in rows) / len(rows) if rows else None


def steps_of(scores: Sequence[float], width: float, height: float) -> str:
    """The distribution function of sorted scores as points of an SVG polyline.

    Args:
        scores: From 0 to 1, sorted.
        width: Of a score of 1.
        height: Of a share of 1; the share grows upwards.
    """
    if not scores:
        return ""
    places = sorted({round(at * (len(scores) - 1) / _POINTS) for at in range(_POINTS + 1)})
    points = [(0.0, 0.0)]
    for place in places:
        points += [(scores[place], points[-1][1]), (scores[place], (place + 1) / len(scores))]
    points.append((1.0, 1.0))
    return " ".join(f"{x * width:.1f},{(1 - y) * height:.1f}" for x, y in points)
