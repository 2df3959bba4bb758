"""Questions about storage commitment that fail: the alert stays until one is answered."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from cart_outbox import SHORT, alerts, fill
from cart_peers import free_port
from cart_store import open_store

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send import commitment
from deepcovid_edge.cart.send.commitment import FAILURES_UNTIL_ALERT, CommitmentUser
from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.deliveries import Deliveries

_ASKED_BEFORE = {
    "transaction_uid": "1.9",
    "side": "scu",
    "peer": "pacs",
    "objects": "[]",
    "state": "kept",
    "next_try": 0,
}


def test_an_answer_of_before_does_not_end_the_alert_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port(), commitment=True)
    with open_store(tmp_path / "spool") as store:
        fill(store, kinds=("sr",))
        deliveries = Deliveries(store.ledger, store.spool)
        (waiting,) = deliveries.due("pacs")
        deliveries.sent(waiting, "0x0000")
        store.ledger.insert("commitment", {**_ASKED_BEFORE, "at_utc": now_utc()})
        user = CommitmentUser(goal, "CART", deliveries, SHORT)
        for _ in range(FAILURES_UNTIL_ALERT):
            user.ask(threading.Event())
            time.sleep(0.02)
        for _ in range(3):
            user.ask(threading.Event())
            time.sleep(0.02)
            assert alerts(store) == {"commitment:pacs": "destination_silent"}
        (raised,) = store.ledger.rows("SELECT count(*) AS n FROM event WHERE kind LIKE 'alert%'")
        assert raised["n"] == 1
