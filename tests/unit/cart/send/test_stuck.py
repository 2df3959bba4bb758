"""An alert names the images whose objects are refused again and again, or damaged; no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_store import Store, open_store

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send import outbox
from deepcovid_edge.cart.send.answers import Answer
from deepcovid_edge.cart.send.outbox import Courier
from deepcovid_edge.cart.store.deliveries import BACKOFF_SECONDS, Deliveries

SILENT = Answer("no answer", "transient", "destination", is_silent=True)
BUSY = Answer("0xA700", "transient")
SENT = Answer("0x0000", "sent")
DAMAGED = Answer("file: changed since it was built", "permanent", "file")


class Sending:
    """A courier whose destination answers as the test says."""

    def __init__(self, store: Store) -> None:
        self.store, self.outbox = store, Deliveries(store.ledger, store.spool)
        self.courier = Courier(Destination("pacs", "PACS", "h"), "CART", self.outbox)

    def answer(self, object_id: int, answer: Answer) -> None:
        self.outbox.hasten("pacs")
        (one,) = (due for due in self.outbox.due("pacs") if due.object_id == object_id)
        self.outbox.begin(one)
        self.courier._settle(one, answer)

    def stuck(self, code: str = "result_stuck") -> list[str]:
        """Images that an alert names."""
        rows = self.store.ledger.rows("SELECT detail FROM alert WHERE code = ?", code)
        return [json.loads(row["detail"])["images"] for row in rows]


@pytest.fixture
def sending(tmp_path: Path) -> Iterator[Sending]:
    """Objects that wait, of two images."""
    with open_store(tmp_path) as store:
        for number in range(2):
            store.take(number)
            store.assess()
        yield Sending(store)


def test_a_destination_that_was_silent_makes_no_object_stuck(sending: Sending) -> None:
    first, second, *_ = (one.object_id for one in sending.outbox.due("pacs"))
    for _ in BACKOFF_SECONDS:
        for one in (first, second):
            sending.answer(one, SILENT)
    sending.answer(first, SENT)
    sending.answer(second, BUSY)
    assert sending.stuck() == []


def test_an_object_that_is_refused_after_every_wait_is_stuck(sending: Sending) -> None:
    bad, *others = (one.object_id for one in sending.outbox.due("pacs"))
    for _ in BACKOFF_SECONDS:
        assert sending.stuck() == []
        sending.answer(bad, BUSY)
        sending.courier._succeeded()  # others go out meanwhile
    assert sending.stuck() == ["1"]
    for one in (bad, *others):
        sending.answer(one, SENT)
    sending.courier._clear_object_alerts()
    assert sending.stuck() == []


def test_every_image_of_which_an_object_is_refused_is_named(sending: Sending) -> None:
    reports = [one.object_id for one in sending.outbox.due("pacs") if one.kind == "sr"]
    for _ in BACKOFF_SECONDS:
        for one in reports:
            sending.answer(one, BUSY)
            sending.courier._succeeded()
    assert sending.stuck() == ["1, 2"]
    sending.answer(reports[0], SENT)
    sending.answer(reports[1], BUSY)
    assert sending.stuck() == ["2"]


def test_after_a_restart_every_image_of_which_an_object_is_refused_is_named(
    sending: Sending,
) -> None:
    reports = [one.object_id for one in sending.outbox.due("pacs") if one.kind == "sr"]
    for again in range(2):
        for _ in BACKOFF_SECONDS:
            for one in reports[again:]:
                sending.answer(one, BUSY)
                sending.courier._succeeded()
        assert sending.stuck() == ["1, 2"]
        sending.courier = Sending(sending.store).courier


def test_every_image_with_a_damaged_object_is_named(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers never leave, so a person must look at each of them."""
    refused = Answer("0x0122 class not supported", "permanent")
    first, second, *others = (one.object_id for one in sending.outbox.due("pacs"))
    sending.answer(others[0], DAMAGED)
    assert sending.stuck("file_damaged") == ["2"]
    sending.answer(first, refused)
    sending.answer(second, DAMAGED)
    assert sending.stuck("file_damaged") == ["1, 2"]
    monkeypatch.setattr(outbox, "_MOST_NAMED", 1)
    sending.answer(others[1], DAMAGED)
    assert sending.stuck("file_damaged") == ["1 and 1 more"]


def test_images_whose_objects_are_damaged_no_more_are_not_named(sending: Sending) -> None:
    """Nor is an object that a destination rejects taken for a damaged one, or the other way."""
    refused = Answer("0x0122 class not supported", "permanent")
    first, second, third, _ = (one.object_id for one in sending.outbox.due("pacs"))
    for one, answer in ((first, DAMAGED), (second, refused), (third, DAMAGED)):
        sending.answer(one, answer)
    for mended, damaged, codes in (
        (first, ["2"], ["file_damaged", "destination_rejects"]),
        (third, [], ["destination_rejects"]),
        (second, [], []),
    ):
        with sending.store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'queued' WHERE object_id = ?", (mended,))
        sending.answer(mended, SENT)
        sending.courier._clear_object_alerts()
        assert sending.stuck("file_damaged") == damaged
        rows = sending.store.ledger.rows("SELECT code FROM alert ORDER BY since_utc")
        assert [row["code"] for row in rows] == codes


def test_a_damaged_object_does_not_keep_a_rejection(sending: Sending) -> None:
    first, second, *_ = (one.object_id for one in sending.outbox.due("pacs"))
    sending.answer(first, Answer("0x0122 class not supported", "permanent"))
    sending.answer(second, DAMAGED)
    sending.outbox.resend()
    sending.answer(second, DAMAGED)
    sending.answer(first, SENT)
    sending.courier._clear_object_alerts()
    rows = sending.store.ledger.rows("SELECT code FROM alert")
    assert [row["code"] for row in rows] == ["file_damaged"]
