"""A fault of the cart itself that keeps results from being sent is told until it is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from cart_outbox import alerts
from cart_peers import wait_until
from cart_store import Store

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send import outbox
from deepcovid_edge.cart.send.association import CertificateError
from deepcovid_edge.cart.send.commitment import CommitmentUser
from deepcovid_edge.cart.send.outbox import FAILURES_UNTIL_ALERT, Courier
from deepcovid_edge.cart.store.deliveries import Deliveries


def courier_of(store: Store) -> Courier:
    return Courier(Destination("pacs", "PACS", "h"), "CART", Deliveries(store.ledger, store.spool))


def test_a_lock_that_another_account_owns_is_told_until_it_can_be_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, faults = store.spool.folder / ".outbox-pacs.lock", list[None]()
    whole: Callable[..., object] = Path.open

    def refuse(path: Path, *given: object, **named: object) -> object:
        if path != place:
            return whole(path, *given, **named)
        faults.append(None)
        assert alerts(store) == {} or len(faults) > FAILURES_UNTIL_ALERT
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(outbox, "_AFTER_FAULT_SECONDS", 0.02)
    courier = courier_of(store)
    try:
        with monkeypatch.context() as refusing:
            refusing.setattr(Path, "open", refuse)
            courier.start()
            wait_until(lambda: alerts(store) == {"fault:pacs": "sending_fails"}, 10)
        (told,) = store.ledger.rows("SELECT detail FROM alert")
        assert json.loads(told["detail"]) == {
            "destination": "pacs",
            "error": "PermissionError",
            "file": str(place),
        }
        wait_until(lambda: alerts(store) == {}, 10)
    finally:
        courier.ask_to_stop()
        courier.join(10)
    assert courier._faults == 0


def test_a_certificate_has_an_alert_of_its_own_and_a_ledger_that_fails_ends_no_courier(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    courier = courier_of(store)
    for _ in range(5):
        courier._tell_of_fault(CertificateError("gone.pem"))
    assert alerts(store) == {}

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk I/O error")

    monkeypatch.setattr(store.ledger, "raise_alert", fail)
    courier._tell_of_fault(OSError("disk I/O error"))


def test_a_fault_in_storage_commitment_is_told_until_it_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(outbox, "_AFTER_FAULT_SECONDS", 0.02)
    monkeypatch.setattr(outbox, "_LOOK_SECONDS", 0.02)
    goal = Destination("pacs", "PACS", "h", commitment=True)
    courier = Courier(goal, "CART", Deliveries(store.ledger, store.spool))
    try:
        with monkeypatch.context() as failing:
            failing.setattr(CommitmentUser, "ask", fail)
            courier.start()
            wait_until(lambda: alerts(store) == {"fault:pacs": "sending_fails"}, 10)
        wait_until(lambda: alerts(store) == {}, 10)
    finally:
        courier.ask_to_stop()
        courier.join(10)
