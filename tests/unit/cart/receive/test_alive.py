"""When the receiver tells the watchdog that it is alive, and when it must not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

import socket

from cart_peers import HOST, free_port, wait_until
from cart_store import Store

from deepcovid_edge.cart.config import read_config
from deepcovid_edge.cart.receive import role
from deepcovid_edge.cart.receive.receiver import Receiver

CONFIG = """
[cart]
spool = "spool"
[receive]
port = {port}
[[peer]]
ae_title = "CONSOLE"
address = "127.0.0.1"
"""


@pytest.fixture
def receiver(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(role, "_STALLED_SECONDS", 1.0)
    path = tmp_path / "cart.toml"
    path.write_text(CONFIG.format(port=free_port()))
    with Receiver(read_config(path), store.intake) as running:
        running.start()
        wait_until(lambda: role._is_alive(running, store.ledger), what="an accepting receiver")
        yield running


def test_a_receiver_that_does_nothing_is_alive(receiver: Receiver, store: Store) -> None:
    threading.Event().wait(1.5)
    assert role._is_alive(receiver, store.ledger)
    assert receiver.stalled_seconds() < 1.0


def test_a_receiver_whose_connections_are_stuck_is_not(receiver: Receiver, store: Store) -> None:
    """Its port takes connections all the same: the kernel does."""
    with receiver._guard._lock:
        socket.create_connection((HOST, receiver.port), 5).close()
        wait_until(lambda: not role._is_alive(receiver, store.ledger), what="a stall")
        assert receiver.is_listening
    wait_until(lambda: role._is_alive(receiver, store.ledger), what="that it goes on")


def test_while_the_ledger_is_held_nothing_is_said(receiver: Receiver, store: Store) -> None:
    said: list[bool] = []
    with store.ledger._lock:
        thread = threading.Thread(
            target=lambda: said.append(role._is_alive(receiver, store.ledger))
        )
        thread.start()
        thread.join(1.0)
        assert not said
    thread.join(10)
    assert said == [True]


def test_a_receiver_that_has_ended_is_not_alive(receiver: Receiver, store: Store) -> None:
    receiver._server.shutdown()
    wait_until(lambda: not role._is_alive(receiver, store.ledger), what="an end")
