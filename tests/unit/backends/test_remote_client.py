"""The client of a server: which answers it asks again after."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cart_peers import HOST

from deepcovid_edge.backends.remote.client import PARAMETER, Address, Client
from deepcovid_edge.errors import BackendUnavailableError

FACTS = {"parameters": {PARAMETER: {"string_value": json.dumps({"version": "1"})}}}


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[Address, list[int]]]:
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

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
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
