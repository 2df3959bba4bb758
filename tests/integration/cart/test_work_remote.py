"""A worker whose model a real server runs: slow, stopped, and asked for what it has not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_peers import HOST
from cart_store import FOLDER, Store, open_store
from dicom_files import EXPLICIT
from serving import RunningServer
from whole_cart import phantom_image

from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.page.health import assessor_works
from deepcovid_edge.cart.work.assessor import AssessorProcess
from deepcovid_edge.cart.work.worker import Worker

pytest.importorskip("highdicom", reason="the cart needs extra cart")
pytest.importorskip("uvicorn", reason="the server needs extra serve")
TEXT = """
[cart]
spool = "spool"
backend = "kserve://{host}:{port}"
heatmap = "none"
floor_mib = 1
floor_share = 0.0
ballast_mib = 0
[receive]
folders = ["incoming"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("serve"), "--assessors", 1) as running:
        yield running


@pytest.fixture(scope="module")
def config(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> CartConfig:
    path = tmp_path_factory.mktemp("cart") / "cart.toml"
    path.write_text(TEXT.format(host=HOST, port=server.port))
    return read_config(path)


@pytest.fixture(scope="module")
def store(config: CartConfig) -> Iterator[Store]:
    with open_store(config.cart.spool) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(config: CartConfig, store: Store) -> Iterator[Worker]:
    with Worker(config, store.ledger, store.spool, threading.Event()) as made:
        yield made


def assessor_of(worker: Worker, store: Store, number: int) -> AssessorProcess:
    """The assessor, which has answered before; an image waits for it."""
    store.intake.take_file(phantom_image(number, EXPLICIT), name="f.dcm", arrival=FOLDER)
    assessor = worker._ready()
    assert assessor is not None
    return assessor


def test_a_server_that_takes_its_time_is_waited_for(
    worker: Worker, store: Store, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcovid_edge.cart.work.assessor._STALL_SECONDS", 1.0)
    monkeypatch.setattr("deepcovid_edge.device.child_process._LOOKS", 1)
    assessor_of(worker, store, 1)
    server.freeze()
    goes_on = threading.Timer(4.0, server.thaw)
    goes_on.start()
    try:
        assert worker.assess_next()
    finally:
        goes_on.join()
    assert store.states() == ["assessed"]
    assert "given back" not in store.events()


def test_a_server_that_is_away_costs_an_image_no_try(
    worker: Worker, store: Store, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assessor = assessor_of(worker, store, 2)
    worker._note_alive()
    assert assessor_works(store.ledger)
    monkeypatch.setattr(assessor, "_seconds", 1.5)
    server.freeze()
    try:
        assert worker.assess_next()
    finally:
        server.thaw()
    (row,) = store.ledger.rows("SELECT state, tries FROM image ORDER BY id DESC LIMIT 1")
    assert tuple(row) == ("received", 0)
    assert not assessor_works(store.ledger)
    assert worker._ready() is not None
    assert worker.assess_next()
    assert store.states() == ["assessed", "assessed"]
    assert assessor_works(store.ledger)
    assert not store.ledger.rows("SELECT * FROM alert")


def test_a_server_that_cannot_be_used_is_no_fault_of_the_model(
    config: CartConfig, server: RunningServer, tmp_path: Path
) -> None:
    text = TEXT.format(host=HOST, port=f"{server.port}/elsewhere")
    (tmp_path / "cart.toml").write_text(text)
    elsewhere = read_config(tmp_path / "cart.toml")
    with open_store(elsewhere.cart.spool) as store:
        with Worker(elsewhere, store.ledger, store.spool, threading.Event()) as worker:
            assert worker._ready() is None
        (alert,) = store.ledger.rows("SELECT code, detail FROM alert")
    assert alert["code"] == "assessor_stopped"
    assert "HTTP 404" in alert["detail"]


def test_a_stop_does_not_wait_for_the_server(
    worker: Worker, store: Store, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcovid_edge.cart.work.worker._FINISH_SECONDS", 1.0)
    assessor_of(worker, store, 3)
    server.freeze()
    stops = threading.Timer(1.0, worker.stop.set)
    stops.start()
    began = time.monotonic()
    try:
        worker.run()
    finally:
        server.thaw()
        stops.join()
    assert time.monotonic() - began < 10
    (row,) = store.ledger.rows("SELECT state, tries FROM image ORDER BY id DESC LIMIT 1")
    assert tuple(row) == ("received", 0)
