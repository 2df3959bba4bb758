"""Statistics: days, reasons, percentiles, drift, from a ledger with known images."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cart_outbox import fill
from cart_page import put
from cart_store import open_store

from deepcovid_edge.cart.page.statistics import DAYS, _percentiles, read_statistics, steps_of
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.drift_window import OUTCOME_KEY


def test_images_are_counted_by_day_and_kind_and_reason(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        for number, decision in enumerate(["positive", "negative", "negative", None]):
            put(store, number, decision, picture=False)
        found = read_statistics(store.ledger)
    assert found.kinds == {"positive": 1, "indeterminate": 0, "negative": 2, "not_assessed": 1}
    assert [day.total for day in found.days] == [0] * 13 + [4]
    assert found.reasons == [("E_VIEW", 1)]
    assert found.total == 4
    assessed = found.times[0]
    assert (assessed.step, assessed.count, assessed.seconds[50]) == ("assessor", 4, 0.09)
    assert found.drift.state == "too_few"


def test_an_old_image_is_not_counted(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        put(store, 1, "positive", picture=False)
        later = datetime.now(timezone.utc) + timedelta(days=15)
        found = read_statistics(store.ledger, later)
    assert found.total == 0


def test_days_and_reasons_are_of_the_same_calendar_days(tmp_path: Path) -> None:
    noon = datetime.now().replace(hour=12, minute=0, second=0, microsecond=0)
    first = noon.replace(hour=0) - timedelta(days=DAYS - 1)
    moments = {
        "E_BLANK": first + timedelta(seconds=1),
        "E_VIEW": first - timedelta(seconds=1),  # of the 15th calendar day, yet 14 days ago
        "E_AGE": noon + timedelta(days=2),  # the clock was set back since
    }
    with open_store(tmp_path / "spool") as store:
        for number, (reason, moment) in enumerate(moments.items()):
            image = put(store, number, None, picture=False, record={"reason": reason})
            when = moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
            with store.ledger.transaction() as now:
                now.execute("UPDATE image SET received_utc = ? WHERE id = ?", (when, image))
        found = read_statistics(store.ledger, noon.astimezone(timezone.utc))
    assert found.reasons == [("E_BLANK", 1)]
    assert [day.total for day in found.days] == [1] + [0] * (DAYS - 1)


def test_the_time_of_sending_is_that_of_the_first_answer(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        fill(store, 2, kinds=("sr",))
        deliveries = Deliveries(store.ledger, store.spool)
        for delivery in deliveries.due("pacs"):
            deliveries.sent(delivery, "0x0000")
        with store.ledger.transaction() as now:
            now.execute("UPDATE image SET received_utc = '2026-12-01T10:00:00.000+00:00'")
            now.execute("UPDATE outbox SET sent_utc = '2026-12-01T10:00:07.000+00:00'")
        (kept,) = store.ledger.rows("SELECT sop_uid FROM object WHERE id = 1")
        deliveries.ask_commitment("pacs", "2.25.1", [kept["sop_uid"]])
        deliveries.settle_commitment("pacs", "2.25.1", [kept["sop_uid"]], [])
        deliveries.resend(2)
        (again,) = deliveries.due("pacs")
        deliveries.sent(again, "0x0000")
        states = {row["state"] for row in store.ledger.rows("SELECT state FROM outbox")}
        sending = read_statistics(store.ledger).times[2]
    assert states == {"sent", "committed"}
    assert (sending.step, sending.count) == ("send", 2)
    assert {round(seconds, 2) for seconds in sending.seconds.values()} == {7.0}


def test_an_empty_ledger_has_statistics(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        found = read_statistics(store.ledger)
    assert found.total == 0
    assert [one.count for one in found.times] == [0, 0, 0]
    assert found.drift.images == (0, 0)
    assert found.drift.not_assessed == (None, None)


def test_the_first_images_are_the_reference_alone_and_the_share_of_none_later_is_a_dash(
    tmp_path: Path,
) -> None:
    """On its first day a cart showed `last 7 days: 0`, and 0.0 % of them not assessed."""
    with open_store(tmp_path / "spool") as store:
        for number, decision in enumerate(["positive", "negative", "negative", None]):
            put(store, number, decision, picture=False)
        drift = read_statistics(store.ledger).drift
    assert drift.images == (4, 0)
    assert drift.not_assessed == (0.25, None)


def test_percentiles_are_of_the_nearest_rank_and_leave_out_a_clock_that_went_back() -> None:
    found = _percentiles("send", [None, -5.0, *map(float, range(1, 101))])
    assert found.count == 100
    assert found.seconds == {50: 50.0, 90: 90.0, 95: 95.0, 99: 99.0}
    assert _percentiles("send", [3.0]).seconds[99] == 3.0


@pytest.mark.parametrize(("model", "state"), [("0" * 64, "changed"), ("1" * 64, "too_few")])
def test_what_the_last_comparison_of_the_model_found_is_shown(
    tmp_path: Path, model: str, state: str
) -> None:
    """Whether the alert was acknowledged since or not."""
    outcome = {"model": model, "site": "", "words": ["More images."]}
    with open_store(tmp_path / "spool") as store:
        store.take()
        store.assess()
        store.ledger.set_meta(OUTCOME_KEY, json.dumps(outcome))
        found = read_statistics(store.ledger)
    words = ["More images."] if state == "changed" else []
    assert (found.drift.state, [*found.drift.words]) == (state, words)


def test_a_distribution_rises_from_corner_to_corner() -> None:
    points = [tuple(map(float, one.split(","))) for one in steps_of([0.2, 0.5], 100, 10).split()]
    assert points[0] == (0, 10)
    assert points[-1] == (100, 0)
    assert (20.0, 5.0) in points
    assert points == sorted(points, key=lambda point: point[0])
    assert steps_of([], 1, 1) == ""
    assert len(steps_of([n / 999 for n in range(1000)], 100, 10).split()) < 130
