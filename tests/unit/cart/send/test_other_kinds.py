"""A destination that gets fewer kinds of objects than before: what waits of the others goes."""

from __future__ import annotations

import json

import pytest
from cart_outbox import SHORT, WAITS, alerts, config_for, fill
from cart_peers import free_port, wait_until
from cart_store import Store

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send import outbox
from deepcovid_edge.cart.send.dimse import Sender
from deepcovid_edge.cart.send.outbox import Courier, Outbox
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old


def rows(store: Store) -> list[tuple[str, str]]:
    """Kind and state of each row of the outbox."""
    found = store.ledger.rows(
        "SELECT kind, outbox.state FROM outbox JOIN object ON object.id = object_id"
        " ORDER BY object_id"
    )
    return [(*row,) for row in found]


def test_what_waits_of_other_kinds_is_given_up_at_the_start_with_its_alerts(store: Store) -> None:
    fill(store, 3)
    deliveries = Deliveries(store.ledger, store.spool)
    for one in deliveries.due("pacs"):
        if one.image_id == 1 or one.kind == "sr":
            deliveries.sent(one, "0x0000")
        elif one.image_id == 2:
            deliveries.park(one, "0x0122")
    code = AlertCode.DESTINATION_REJECTS.code
    store.ledger.raise_alert("rejects:pacs", code, destination="pacs", status="0x0122")
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port(), objects=("sr",))
    config = config_for(store, goal)
    courier = Outbox(config, store.ledger, store.spool, timeouts=SHORT, waits=WAITS)
    courier.start()
    try:
        wait_until(lambda: not alerts(store), 5)
    finally:
        courier.stop()
    assert rows(store) == [("sr", "sent"), ("sc", "sent"), ("sr", "sent"), ("sr", "sent")]
    (event,) = store.ledger.rows("SELECT detail FROM event WHERE kind = 'given up'")
    assert json.loads(event["detail"]) == {"destination": "pacs", "objects": 2, "why": "kind"}
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 3


def test_other_kinds_that_are_queued_later_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold nothing up."""
    monkeypatch.setattr(outbox, "_MOST", 2)
    goal = Destination("pacs", "PACS", "127.0.0.1", objects=("sr",))
    courier = Courier(goal, "CART", Deliveries(store.ledger, store.spool))
    fill(store, 3, decision="positive")  # pictures come first
    assert [one.kind for one in courier._due()] == ["sr", "sr"]
    assert rows(store) == [("sr", "queued"), ("sc", "queued")] * 3
    assert Outbox(config_for(store, goal), store.ledger, store.spool).waiting().objects == 3


def test_what_a_newer_configuration_queues_is_kept_for_the_next_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the running courier begins again after a fault."""
    monkeypatch.setattr(outbox, "_AFTER_FAULT_SECONDS", 0.01)
    faults: list[str] = []

    def has_fault(name: str) -> Sender:
        faults.append(name)
        raise OSError(name)

    monkeypatch.setattr(outbox, "make_sender", lambda goal, *_: has_fault(goal.name))
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port(), objects=("sr",))
    running = Outbox(config_for(store, goal), store.ledger, store.spool, waits=WAITS)
    fill(store)
    running.start()
    try:
        wait_until(lambda: bool(faults), 5)
        assert rows(store) == [("sr", "queued")]
        Deliveries(store.ledger, store.spool).resend(1, None, {"pacs": ("sr", "sc")})
        seen = len(faults)
        wait_until(lambda: len(faults) > seen + 2, 5)
    finally:
        running.stop()
    assert rows(store) == [("sr", "queued"), ("sc", "queued")]


def test_a_destination_that_gets_all_kinds_loses_nothing(store: Store) -> None:
    fill(store)
    deliveries = Deliveries(store.ledger, store.spool)
    assert deliveries.give_up("pacs", but=("sr", "sc")) == 0
    assert deliveries.give_up("other", but=("sr",)) == 0
    assert "given up" not in store.events()
    assert deliveries.give_up("pacs") == 2
