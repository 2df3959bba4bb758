"""The client of a server: which answers it asks again after."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from cart_peers import HOST, free_port, wait_until
from own_certificate import make_certificate

from deepcovid_edge.backends.remote import client as module
from deepcovid_edge.backends.remote.client import PARAMETER, Address, Client
from deepcovid_edge.errors import BackendUnavailableError
from deepcovid_edge.serve.settings import ServeSettings

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


class Keeping(http.server.ThreadingHTTPServer):
    """A server that keeps its connections open until it is asked to end them.

    Attributes:
        sockets: Those that it has accepted.
        together: How many requests it answers at once.
    """

    daemon_threads = True

    def __init__(self, together: int = 1) -> None:
        self.sockets: list[socket.socket] = []
        self.together = threading.Barrier(together)
        super().__init__((HOST, 0), _KeepingHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def get_request(self) -> tuple[socket.socket, object]:
        """See `socketserver`."""
        accepted, address = super().get_request()
        self.sockets.append(accepted)
        return accepted, address

    @property
    def client(self) -> Client:
        """One of this server."""
        return Client(Address.of(f"kserve://{HOST}:{self.server_address[1]}"), "m", patience=20)


class _KeepingHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Keeping)
        self.server.together.wait(20)
        content = json.dumps(FACTS).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def ask_at_once(client: Client, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        answers = [pool.submit(client.facts) for _ in range(threads)]
        assert [answer.result(20) for answer in answers] == [{"version": "1"}] * threads


def test_threads_that_come_one_after_another_use_one_connection() -> None:
    with Keeping() as server, server.client as client:
        for _ in range(5):
            ask_at_once(client, 1)
        assert len(server.sockets) == 1
        server.shutdown()


def test_calls_at_once_have_a_connection_each_and_close_ends_them() -> None:
    with Keeping(together=3) as server:
        with server.client as client:
            for _ in range(3):
                ask_at_once(client, 3)
            assert len(server.sockets) == 3
        wait_until(lambda: all(accepted.fileno() < 0 for accepted in server.sockets))
        server.shutdown()


def test_connections_that_the_server_has_ended_cost_one_try_together() -> None:
    with Keeping(together=4) as server, server.client as client:
        ask_at_once(client, 4)
        for accepted in server.sockets:
            accepted.shutdown(socket.SHUT_RDWR)
        server.together = threading.Barrier(1)
        began = time.monotonic()
        ask_at_once(client, 1)
        assert time.monotonic() - began < 1.0, "it waits longer before each further try"
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


@pytest.mark.parametrize(
    ("scheme", "fix"),
    [
        ("kserve", r"or correct the address, or write kserve\+https:// if it expects TLS$"),
        ("kserve+https", r"TLS: .*: name the file of its certificate authority in SSL_CERT_FILE$"),
    ],
)
def test_the_message_of_a_server_with_tls_names_the_fix(
    scheme: str, fix: str, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with Keeping() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        address = Address.of(f"{scheme}://{HOST}:{server.server_address[1]}")
        with Client(address, "m") as client, pytest.raises(BackendUnavailableError, match=fix):
            client.facts()
        server.shutdown()


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


def ends_with_close(client: Client) -> float:
    """Ask in a thread that is kept waiting, close the client; how long that takes to end it."""
    found: list[BaseException] = []

    def ask() -> None:
        try:
            client.facts()
        except BackendUnavailableError as error:
            found.append(error)

    waits = threading.Thread(target=ask)
    waits.start()
    time.sleep(0.5)
    assert waits.is_alive()
    began = time.monotonic()
    client.close()
    waits.join(20)
    assert "the connection was closed here" in str(found[0])
    return time.monotonic() - began


def test_close_ends_the_calls_that_a_server_does_not_answer() -> None:
    with Keeping(together=2) as server, server.client as client:
        assert ends_with_close(client) < 5
        server.together.abort()
        server.shutdown()


def test_close_ends_the_wait_for_the_next_try() -> None:
    with answering(200) as (address, _):
        client = Client(address, "m", patience=20)
        client.facts()
    time.sleep(0.1)
    assert ends_with_close(client) < 5


def test_an_image_that_serve_gave_no_record_in_time_is_sent_again() -> None:
    assert ServeSettings.answer_seconds + 30 < module._PATIENCE_SECONDS
    assert ServeSettings.answer_seconds + 30 < module._ANSWER_SECONDS


def test_a_server_that_stays_away_is_told_with_the_time() -> None:
    with answering(200) as (address, _):
        client = Client(address, "m", patience=0.5)
        client.facts()
    with client, pytest.raises(BackendUnavailableError, match=r"no answer in 0\.5 s") as it:
        client.facts()
    assert "--resume" not in str(it.value), "there may be no file to go on with"


@contextmanager
def sending(*answers: bytes) -> Iterator[tuple[Client, list[int]]]:
    """A client of a server that sends these bytes, closes the connection, and counts."""
    taken: list[int] = []
    with socket.create_server((HOST, 0)) as port:

        def serve() -> None:
            for number, answer in enumerate(answers):
                accepted, _ = port.accept()
                with accepted:
                    accepted.recv(1 << 16)
                    accepted.sendall(answer)
                taken.append(number)

        threading.Thread(target=serve, daemon=True).start()
        address = Address.of(f"kserve://{HOST}:{port.getsockname()[1]}")
        with Client(address, "m", patience=20) as client:
            yield client, taken


def whole(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    """Within its content, at its beginning, or at a place where what is there is JSON too."""
    answer = whole(json.dumps(FACTS).encode())
    padded = whole(json.dumps(FACTS).encode() + b"    ")
    head = answer.index(b"\r\n\r\n") + 4
    with sending(answer[:-5], answer[:head], padded[:-2], answer) as (client, taken):
        assert client.facts() == {"version": "1"}
        assert taken[:3] == [0, 1, 2]


@pytest.mark.parametrize("value", ["\xb2", "1.5", "soon", ""])
def test_a_wait_that_is_no_number_is_not_used(value: str) -> None:
    busy = whole(b"{}", f"retry-after: {value}", status="503 Service Unavailable")
    with sending(busy, whole(json.dumps(FACTS).encode())) as (client, _):
        assert client.facts() == {"version": "1"}
