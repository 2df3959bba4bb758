"""A clock that goes far ahead deletes nothing for a day, so that a person can set it right."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from cart_store import Store

from deepcovid_edge.cart.store import clock, retention
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.retention import (
    RetentionSettings,
    clock_went_ahead,
    delete_leftovers,
    delete_old,
)

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
MONTH = RetentionSettings(30, 0)


class Clock:
    """The clock of the system, set by hand."""

    def run(self, store: Store, hours: float) -> tuple[int, bool]:
        """Have the cart run, with a look every ten minutes; what `look` said last."""
        said = look(store)
        for _ in range(round(hours * 6)):
            self.moved += HOUR / 6 - 5.0  # the test takes time too
            said = look(store)
        return said

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.moved = 0.0
        moved = self

        class Moved(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return datetime.now(timezone.utc) + timedelta(seconds=moved.moved)

        for module in (clock, retention):
            patched.setattr(module, "datetime", Moved)
        patched.setattr(retention, "now_seconds", lambda: Moved.now().timestamp())


@pytest.fixture
def moved(store: Store, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock; the store has an image that is done."""
    store.take()
    store.assess()
    send_all(store)
    made = Clock(monkeypatch)
    assert delete_old(store.ledger, store.spool, MONTH) == 0
    return made


def send_all(store: Store) -> None:
    outbox = Deliveries(store.ledger, store.spool)
    for delivery in outbox.due("pacs"):
        outbox.sent(delivery, "0x0000")


def look(store: Store) -> tuple[int, bool]:
    """How many images were deleted, and whether the clock is said to have gone ahead."""
    return delete_old(store.ledger, store.spool, MONTH), clock_went_ahead(store.ledger)


def test_a_clock_that_goes_ahead_deletes_nothing_until_it_is_set_right(
    store: Store, moved: Clock
) -> None:
    for moved.moved in (10 * YEAR, 10 * YEAR + 23 * HOUR):
        assert look(store) == (0, True)
    moved.moved = DAY
    assert look(store) == (0, False)
    assert store.states() == ["assessed"]


def test_a_date_that_stays_for_a_day_is_the_date(store: Store, moved: Clock) -> None:
    """The cart was off."""
    moved.moved = 40 * DAY
    assert moved.run(store, 23) == (0, True)
    assert moved.run(store, 2)[1] is False
    assert store.states() == ["expired"]


def test_only_the_time_counts_in_which_the_cart_runs(store: Store, moved: Clock) -> None:
    for moved.moved in (YEAR, YEAR + 25 * HOUR, 2 * YEAR, 1.5 * YEAR):
        assert look(store) == (0, True)


def test_a_cart_that_is_seldom_on_deletes_too(store: Store, moved: Clock) -> None:
    for moved.moved in (40 * DAY, 48 * DAY, 56 * DAY):
        assert moved.run(store, 7) == (0, True)
    moved.moved = 64 * DAY
    assert moved.run(store, 7)[1] is False
    assert store.states() == ["expired"]


def test_a_cart_that_was_off_for_some_days_deletes_as_ever(store: Store, moved: Clock) -> None:
    for _ in range(4):
        moved.moved += 6 * DAY
        assert look(store) == (0, False)
    moved.moved += 6.5 * DAY
    assert look(store) == (1, False)


def test_a_board_that_starts_before_the_program_was_written_is_not_said_to_go_ahead(
    store: Store, moved: Clock
) -> None:
    """It has no battery: a time server sets its clock a minute later."""
    moved.moved = -50 * YEAR
    assert look(store) == (0, False)
    moved.moved = 0
    assert look(store) == (0, False)


def test_a_full_quota_does_not_ask_the_clock(store: Store, moved: Clock) -> None:
    with store.ledger.transaction() as now:
        now.execute("UPDATE image SET bytes = 2 << 20")
    moved.moved = YEAR
    assert delete_old(store.ledger, store.spool, RetentionSettings(30, 1)) == 1


def test_an_image_that_is_sent_again_meanwhile_is_not_deleted(
    store: Store, moved: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        store.take(number)
        store.assess()
    send_all(store)
    chosen = retention._over_quota

    def choose_and_send(*given: object) -> object:
        assert Deliveries(store.ledger, store.spool).resend(2, None, {"pacs": ("sr", "sc")}) == 2
        return chosen(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_over_quota", choose_and_send)
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 2
    assert store.states() == ["expired", "assessed", "expired"]
    assert len(Deliveries(store.ledger, store.spool).due("pacs")) == 2


def test_files_of_expired_images_that_stayed_are_deleted_at_the_next_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        store.take(number)
        store.assess()
    outbox = Deliveries(store.ledger, store.spool)
    for delivery in outbox.due("pacs"):
        if delivery.image_id == 1:
            outbox.sent(delivery, "0x0000")
    with monkeypatch.context() as patched:
        patched.setattr(store.spool, "delete", lambda *_: None)  # it is killed here
        assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1
    delete_leftovers(store.ledger, store.spool)
    kept = {path.stem for path in store.spool.folder.glob("images/??/*")}
    assert kept == {path.name for path in store.spool.folder.glob("results/??/*")}
    (row,) = store.ledger.rows("SELECT content_sha256 FROM image WHERE state = 'assessed'")
    assert kept == {row["content_sha256"]}
