"""Connections of the page: none takes its time, and none keeps others out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cart_page import RunningPage, filled, served, write_config
from cart_peers import HOST, free_port, wait_until
from own_certificate import answer_over_tls, make_certificate

from deepcovid_edge.cart.page import role
from deepcovid_edge.serve.listener import ConnectionLimits

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MANY = 80
LONGEST = 20.0


def opened(port: int, sent: bytes, count: int) -> list[socket.socket]:
    """Connections that send this and no more."""
    found = []
    for _ in range(count):
        one = socket.create_connection((HOST, port), LONGEST)
        one.sendall(sent)
        found.append(one)
    return found


def assert_ended(connections: list[socket.socket]) -> None:
    began = time.monotonic()
    for one in connections:
        with suppress(ConnectionError):  # ended by a reset, or properly
            while one.recv(1 << 16):
                pass
        one.close()
    assert time.monotonic() - began < LONGEST


def test_many_half_sent_heads_keep_nobody_out(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as page:
        slow = opened(page.reader.port, HALF, MANY)
        for path in ("/healthz", "/", "/readyz"):
            assert page.reader.get(path).status == 200
        for one in slow:
            one.close()


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningPage]:
    limits = ConnectionLimits(connections=8, header_seconds=0.5, body_seconds=0.5)
    monkeypatch.setattr(role, "_LIMITS", limits)
    with served(filled(tmp_path)) as page:
        yield page


@pytest.mark.parametrize(
    "sent",
    [
        (b"",),
        (HALF,),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /he"),
        (b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nabc",),
    ],
    ids=["nothing", "half a head", "half of the next", "a body nobody reads"],
)
def test_what_does_not_arrive_is_ended_and_an_event_stream_is_not(
    impatient: RunningPage, sent: tuple[bytes, ...]
) -> None:
    port = impatient.reader.port
    (stream,) = opened(port, b"GET /changes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 1)
    while b"hello" not in stream.recv(4096):
        pass
    slow = opened(port, sent[0], 2)
    for part in sent[1:]:
        for one in slow:
            assert one.recv(4096)
            one.sendall(part)
    assert_ended(slow)
    time.sleep(1)  # twice the time of a header
    stream.setblocking(False)
    with suppress(BlockingIOError):
        while part := stream.recv(4096):
            assert part
        pytest.fail("the stream has ended")
    stream.close()
    assert impatient.reader.get("/healthz").status == 200


def test_answers_that_nobody_reads_keep_nobody_out(impatient: RunningPage) -> None:
    address = b"GET /image/1/picture HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    deaf = []
    for _ in range(8):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect((HOST, impatient.reader.port))
        one.setblocking(False)
        one.send(address * 400)
        deaf.append(one)
    wait_until(lambda: _lives(impatient), what="an answer beside them")
    for one in deaf:
        one.close()


def _lives(page: RunningPage) -> bool:
    try:
        return page.reader.get("/healthz").status == 200
    except OSError:
        return False


def test_handshakes_that_do_not_come_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio counts none of them, and gives each a minute."""
    certificate, _ = make_certificate(tmp_path)
    limits = ConnectionLimits(connections=8, header_seconds=1.0, body_seconds=1.0)
    monkeypatch.setattr(role, "_LIMITS", limits)
    config = write_config(filled(tmp_path), free_port(), certificate="c.pem", key="k.pem")
    assert config.page
    port, stop = config.page.port, threading.Event()
    thread = threading.Thread(target=role.page, args=(config, stop))
    thread.start()
    try:
        wait_until(lambda: answer_over_tls(port, certificate, "/healthz"), what="the page")
        silent = opened(port, b"", 40)
        assert answer_over_tls(port, certificate, "/healthz").startswith("HTTP/1.1 200")
        assert_ended(silent)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
