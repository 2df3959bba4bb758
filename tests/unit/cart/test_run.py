"""`cart run` looks at its ports before it starts a role."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from deepcovid_edge.cart import run
from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.errors import NotThereError

HOST = "127.0.0.1"
PACS = Destination("pacs", "PACS", HOST, commitment=True)


@pytest.mark.parametrize(("peers", "destinations"), [((Peer("CONSOLE", HOST),), ()), ((), (PACS,))])
def test_a_port_that_is_in_use_is_told_whoever_would_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    peers: tuple[Peer, ...],
    destinations: tuple[Destination, ...],
) -> None:
    monkeypatch.setattr(run, "_PORT_SECONDS", 0.0)
    stop = threading.Event()
    stop.set()
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        receive = ReceiveSettings(port=port, folders=(tmp_path / "incoming",))
        settings = CartSettings(tmp_path / "spool")
        config = CartConfig(tmp_path / "cart.toml", settings, receive, peers, destinations)
        with pytest.raises(NotThereError, match=f"receive.port: {HOST}:{port}: Address already"):
            run.run_roles(config, stop, ("receive",))
