"""A real `deepcovid-edge serve` on 127.0.0.1, and requests to it as curl and sockets make them."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cart_peers import HOST, Server, wait_until

MODEL = "squeezenet1_1"
INFER = f"/v2/models/{MODEL}/infer"
RAW = {"Inference-Header-Content-Length": "0"}


class RunningServer(Server):
    """A server in a process of its own, on a port that it finds itself.

    Args:
        folder: For its log.
        options: Of the command line.
        name: Of its log.
        environment: Beside that of this process.
    """

    def __init__(
        self,
        folder: Path,
        *options: object,
        name: str = "serve",
        environment: dict[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "deepcovid_edge", "serve", "--port", 0, *options]
        env = {**os.environ, **(environment or {})}
        super().__init__(command, folder / f"{name}.log", lambda: self.events("serve"), env=env)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log of that name; others are none of JSON."""
        found = []
        for line in self.said().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.events("serve")[0]["port"])

    def assessors(self) -> list[int]:
        """Process ids of the processes that assess."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == self.process.pid:
                        found.append(int(folder.name))
        return sorted(found)

    def kill_assessors(self) -> None:
        """End the processes that assess, as a decoder's crash does."""
        for pid in self.assessors():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        seconds: float = 60,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def record(self, image: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The record of an image, which must have one."""
        status, _, body = self.ask("POST", INFER, image, {**RAW, **(headers or {})})
        assert status == 200, body
        return record_in(body)

    def metric(self, name: str) -> float:
        """A metric's value; 0 where it has none yet."""
        _, _, body = self.ask("GET", "/metrics")
        for line in body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    def wait_for_metric(self, name: str, least: float) -> None:
        """Wait until a metric has grown so far."""
        wait_until(lambda: self.metric(name) >= least, what=name)

    def connect(self) -> socket.socket:
        """A connection without a request."""
        return socket.create_connection((HOST, self.port), 20)


class ChangingProxy:
    """Passes requests on, with the bytes of their images changed on the way.

    Args:
        port: Of the server.
        change: Makes other bytes of an image, as many.
    """

    def __init__(self, port: int, change: Callable[[bytes], bytes]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                head = int(self.headers.get("inference-header-content-length") or 0)
                if body:
                    image = head + 4  # after its length
                    body = body[:image] + change(body[image:])
                server = http.client.HTTPConnection(HOST, port, timeout=60)
                server.request(self.command, self.path, body or None, dict(self.headers))
                answer = server.getresponse()
                content = answer.read()
                server.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _pass_on

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> ChangingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def record_in(body: bytes) -> dict[str, Any]:
    """The record in an answer that is JSON."""
    record: dict[str, Any] = json.loads(json.loads(body)["outputs"][0]["data"][0])
    return record


def as_json(image: bytes, **more: Any) -> bytes:
    """A request that is all JSON."""
    data = base64.b64encode(image).decode()
    tensor = {"name": "film", "datatype": "BYTES", "shape": [1], "data": [data]}
    return json.dumps({"inputs": [tensor], **more}).encode()


def essence(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its name and its times."""
    return {key: value for key, value in record.items() if key not in ("path", "timings_ms")}
