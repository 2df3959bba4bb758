"""Images that the cart cannot read, and answers that it cannot build: a person is alerted."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from cart_store import Store, record

from deepcovid_edge.cart.config import CartConfig, CartSettings, Destination, ReceiveSettings
from deepcovid_edge.cart.heartbeat import ALIVE_SECONDS, WORKER, Heartbeat
from deepcovid_edge.cart.page.health import assessor_works
from deepcovid_edge.cart.store.images import ClaimedImage, Settled
from deepcovid_edge.cart.store.ledger import LedgerBusyError
from deepcovid_edge.cart.store.rebuild import RECORD_NAME
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.reasons import Reason

UNREADABLE = Reason.UNREADABLE.code


@pytest.fixture
def worker(store: Store) -> Worker:
    settings = CartSettings(store.spool.folder)
    receive = ReceiveSettings(folders=(store.spool.folder.parent / "in",))
    pacs = Destination("pacs", "PACS", "127.0.0.1")
    config = CartConfig(Path("cart.toml"), settings, receive, destinations=(pacs,))
    return Worker(config, store.ledger, store.spool, threading.Event())


def settle(worker: Worker, settled: Settled) -> ClaimedImage:
    """Settle the image that has waited longest."""
    image = worker.images.claim()
    assert image is not None
    worker._settle(image, settled)
    return image


def alerts(store: Store) -> dict[str, str]:
    return {row["key"]: row["code"] for row in store.ledger.rows("SELECT key, code FROM alert")}


def test_an_image_that_cannot_be_read_is_an_alert_until_it_comes_again(
    store: Store, worker: Worker
) -> None:
    store.take()
    settle(worker, Settled({**record(None), "reason": UNREADABLE}))
    assert alerts(store) == {"file 1": "file_damaged"}
    (row,) = store.ledger.rows("SELECT detail FROM alert")
    assert json.loads(row["detail"]) == {"image": 1}
    store.take()
    assert store.states() == ["received"]
    settle(worker, Settled(record("negative")))
    assert alerts(store) == {}


def test_the_time_that_objects_state_lies_beside_them(store: Store, worker: Worker) -> None:
    store.take()
    settled = Settled(record("negative"))
    image = settle(worker, settled)
    place = store.spool.results(image.content_sha256) / RECORD_NAME
    assert json.loads(place.read_text())["made"] == settled.made
    (result,) = store.ledger.rows("SELECT made_utc FROM result")
    assert result["made_utc"] == settled.made


def test_the_worker_says_that_it_runs_while_it_waits_for_the_assessor(
    store: Store, worker: Worker
) -> None:
    """A model is loaded for minutes, and an image may take two."""
    store.ledger.set_meta(WORKER, f'[{time.time() - 2 * ALIVE_SECONDS:.0f}, "another start", 0]')
    assert not assessor_works(store.ledger)
    worker._heart = Heartbeat(store.ledger, WORKER)
    worker._while_waiting()
    assert assessor_works(store.ledger)


def test_a_ledger_that_is_busy_does_not_end_the_wait_for_an_answer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        raise LedgerBusyError("busy")

    monkeypatch.setattr(worker, "_note_alive", busy)
    worker._while_waiting()
