"""The page when it stops: what is still under way is answered, and nothing is told as a fault."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cart_page import Answer, filled, served
from cart_peers import HOST, wait_until

from deepcovid_edge.cart.page import health, role

HALF = (
    "POST /upload HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
    "Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: 1000\r\n\r\n--edge\r\n"
)


def test_what_is_under_way_when_the_page_stops_is_answered_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A slow disk, and a form that does not arrive: both outlast the grace."""
    monkeypatch.setattr(role, "_GRACE_SECONDS", 1)
    asked, goes_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> list[str]:
        asked.set()
        goes_on.wait(20)
        return []

    monkeypatch.setattr(health, "obstacles", slow)
    answers: list[Answer] = []
    with served(filled(tmp_path)) as page:
        port = page.reader.port
        caller = threading.Thread(target=lambda: answers.append(page.reader.get("/readyz")))
        caller.start()
        assert asked.wait(10)
        with socket.create_connection((HOST, port), 20) as peer:
            peer.sendall(HALF.format(host=HOST, port=port).encode())
            time.sleep(0.3)  # its header is read
            page.stop.set()
            half = b"".join(iter(lambda: peer.recv(4096), b""))
        caller.join(20)
        goes_on.set()
        wait_until(lambda: not page.thread.is_alive(), 10, what="the end of the page")
    (ready,) = answers
    assert ready.status == 503
    assert ready.text == "The page stops. Reload it in a moment."
    assert ready.headers["retry-after"] == "5"
    assert ready.headers["x-content-type-options"] == "nosniff"
    assert half.startswith(b"HTTP/1.1 503 ")
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert not [line for line in told if line.get("kind") == "CancelledError"], told
