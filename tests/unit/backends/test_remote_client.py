"""The client of a server: which answers it asks again after."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cart_peers import HOST, free_port

from deepcovid_edge.backends.remote import client as module
from deepcovid_edge.backends.remote.client import PARAMETER, Address, Client
from deepcovid_edge.errors import BackendUnavailableError

FACTS = {"parameters": {PARAMETER: {"string_value": json.dumps({"version": "1"})}}}


@contextmanager
def answering(*statuses: int, port: int = 0) -> Iterator[tuple[Address, list[int]]]:
    """A server that answers so, one after the other, and what it has answered."""
    given: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(statuses[len(given)])
            self.send_response(given[-1])
            self.end_headers()
            answer = FACTS if given[-1] == 200 else {"error": "the server failed: OSError"}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer((HOST, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Address.of(f"kserve://{HOST}:{server.server_address[1]}"), given
        server.shutdown()


def test_a_fault_is_asked_again_after_once() -> None:
    with answering(500, 503, 200) as (address, given), Client(address, "m", patience=20) as client:
        assert client.facts() == {"version": "1"}
        assert given == [500, 503, 200]


def test_a_fault_that_comes_twice_is_the_answer() -> None:
    with (
        answering(500, 500, 200) as (address, given),
        Client(address, "m", patience=20) as client,
        pytest.raises(BackendUnavailableError, match="HTTP 500: the server failed: OSError"),
    ):
        client.facts()
    assert given == [500, 500]


def test_where_nothing_listens_the_run_ends_within_seconds() -> None:
    began = time.monotonic()
    address = Address.of(f"kserve://{HOST}:{free_port()}")
    with (
        Client(address, "m") as client,
        pytest.raises(
            BackendUnavailableError, match=r"no server answers \(.*refused\): start"
        ) as it,
    ):
        client.facts()
    assert time.monotonic() - began < 10
    assert "--resume" not in str(it.value), "there may be no file to go on with"


def test_a_server_that_has_answered_is_waited_for_when_it_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.1)
    port = free_port()
    with answering(200, port=port) as (address, _):
        client = Client(address, "m", patience=20)
        client.facts()
    found: list[object] = []
    with client:
        waits = threading.Thread(target=lambda: found.append(client.facts()))
        waits.start()
        time.sleep(0.8)
        assert waits.is_alive()
        with answering(200, port=port):
            waits.join(20)
    assert found == [{"version": "1"}]


def test_a_server_that_stays_away_is_told_with_the_time() -> None:
    with answering(200) as (address, _):
        client = Client(address, "m", patience=0.5)
        client.facts()
    with client, pytest.raises(BackendUnavailableError, match=r"no answer in 0\.5 s") as it:
        client.facts()
    assert "--resume" not in str(it.value), "there may be no file to go on with"
