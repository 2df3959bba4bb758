"""`serve` when it ends, and before a handshake: whom it answers, whom it keeps out."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from cart_peers import HOST
from own_certificate import make_certificate
from serving import INFER, RAW, RunningServer

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom, save_phantom

HALF = (
    f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
    "Content-Length: 1000\r\n\r\nabc"
).encode()


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    save_phantom(draw_phantom(3), tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def send_each(server: RunningServer, number: signal.Signals) -> None:
    """To each process that assesses and has begun its program: until then the server waits."""
    for pid in server.assessors():
        with suppress(OSError):
            if b"assessors.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)


@contextmanager
def stopped_assessors(server: RunningServer) -> Iterator[None]:
    """The processes that assess do nothing, nor do those that are started for them."""
    over = threading.Event()

    def stop_each() -> None:
        while not over.wait(0.02):
            send_each(server, signal.SIGSTOP)

    send_each(server, signal.SIGSTOP)
    stops = in_thread(stop_each)
    try:
        yield
    finally:
        over.set()
        stops.join()
        send_each(server, signal.SIGCONT)


@pytest.mark.parametrize(
    ("limits", "half"),
    [
        (("--answer-seconds", 20, "--image-seconds", 5, "--header-seconds", 1), b""),
        (
            ("--answer-seconds", 2, "--image-seconds", 0.5, "--header-seconds", 60),
            b"HTTP/1.1 503",
        ),
    ],
    ids=["goes on", "never"],
)
def test_what_is_under_way_is_answered_when_the_server_stops(
    tmp_path: Path, good: bytes, limits: tuple[object, ...], half: bytes
) -> None:
    """The one process does nothing; half a body waits too, and is not answered with 500."""
    found: list[tuple[int, bytes]] = []
    options = ("--assessors", 1, "--check-seconds", 60)
    with RunningServer(tmp_path, *options, *limits) as server:
        with stopped_assessors(server):
            caller = in_thread(lambda: found.append(server.ask("POST", INFER, good, RAW)[::2]))
            with server.connect() as peer:
                peer.sendall(HALF)
                server.wait_for_metric("serve_waiting", 1)
                server.process.terminate()
                answer = b"".join(iter(lambda: peer.recv(1000), b""))
        caller.join(60)
        assert server.process.wait(30) == 0
        assert answer[:12] == half
        assert found[0][0] == (503 if half else 200)
        assert "error" in json.loads(found[0][1]) or not half
        for line in server.said().splitlines():
            json.loads(line)
        assert server.events("serve stopped")


def test_handshakes_that_do_not_come_keep_nobody_out(tmp_path: Path) -> None:
    certificate, private = make_certificate(tmp_path)
    options = ("--certificate", certificate, "--key", private, "--assessors", 1)
    limits = ("--connections", 8, "--header-seconds", 1)
    with RunningServer(tmp_path, *options, *limits) as server:
        silent = [server.connect() for _ in range(40)]
        context = ssl.create_default_context(cafile=str(certificate))
        with context.wrap_socket(server.connect(), server_hostname=HOST) as stream:
            stream.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stream.recv(12) == b"HTTP/1.1 200"
        for peer in silent:  # each has a time of 20 s, a third of asyncio's for a handshake
            with suppress(ConnectionError):
                assert not peer.recv(10)
            peer.close()
        last: socket.socket = server.connect()
        assert server.stop() == 0
        last.close()
