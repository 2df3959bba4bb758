"""An alert names an object that a destination refuses again and again, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_store import Store, open_store

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.answers import Answer
from deepcovid_edge.cart.send.outbox import Courier
from deepcovid_edge.cart.store.deliveries import BACKOFF_SECONDS, Deliveries

SILENT = Answer("no answer", "transient", "destination", is_silent=True)
BUSY = Answer("0xA700", "transient")
SENT = Answer("0x0000", "sent")


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

    def stuck(self) -> list[int]:
        """Images that an alert names."""
        rows = self.store.ledger.rows("SELECT detail FROM alert WHERE code = 'result_stuck'")
        return [json.loads(row["detail"])["image"] for row in rows]


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
    assert len(sending.stuck()) == 1
    for one in (bad, *others):
        sending.answer(one, SENT)
    sending.courier._clear_object_alerts()
    assert sending.stuck() == []
