"""Real DICOM peers for tests of the cart: DCMTK's programs and Orthanc, on 127.0.0.1.

Orthanc 1.10 and DCMTK's `storescp` listen on every address of the machine. They run in a network
namespace that has a loopback alone (`Enclosed`), and its ports are passed on from 127.0.0.1 here;
that needs CAP_SYS_ADMIN. Every server is ended by its own process id, and every wait has a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from namespaces import can_enclose

Made = TypeVar("Made")
HOST = "127.0.0.1"
ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
needs_dcmtk = pytest.mark.skipif(
    shutil.which("storescu") is None, reason="DCMTK is not installed: apt-get install dcmtk"
)
needs_enclosure = pytest.mark.skipif(
    not can_enclose(), reason="a network namespace needs CAP_SYS_ADMIN and iproute2"
)
needs_orthanc = pytest.mark.skipif(
    not (ORTHANC and can_enclose()),
    reason="no Orthanc (apt-get install orthanc), or no network namespace (CAP_SYS_ADMIN)",
)
LONGEST_WAIT = 30.0
_CLONE_NEWNET = 0x40000000
_BLOCK = 1 << 16


def free_port() -> int:
    """A free port of 127.0.0.1 that nothing else takes.

    It lies below those of clients (Linux: 32768) and above those of Ray's workers (10002 to 19999).
    """
    while True:
        port = secrets.choice(range(20_000, 30_000))
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def is_listening(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def wait_until(
    is_so: Callable[[], object],
    seconds: float = LONGEST_WAIT,
    *,
    what: str = "",
    step: float = 0.02,
) -> None:
    """Wait until something is so; fail the test if that takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {what or is_so}")
        time.sleep(step)


class Server:
    """A server in a process of its own; its output goes into a file.

    Args:
        command: The program and its arguments.
        log: Where its output goes.
        ready: Whether it can be used.
    """

    def __init__(
        self, command: Sequence[object], log: Path, ready: Callable[[], object], **options: Any
    ) -> None:
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                **options,
            )
        self._ready = ready

    def wait_ready(self) -> None:
        """Wait until it can be used."""
        wait_until(lambda: self._has_ended() or self._ready(), what=f"{self.process.args!r}")
        if self._has_ended():
            pytest.fail(f"{self.process.args!r} ended: {self.said()[-2000:]}")

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text("utf-8", "replace")

    def freeze(self) -> None:
        """Stop it without ending it: connections stay open, nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(LONGEST_WAIT)

    def stop(self, seconds: float = 10.0) -> int:
        """End it by SIGTERM, or by SIGKILL if it does not; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def close(self) -> None:
        """End it, if it has not ended."""
        if not self._has_ended():
            self.stop()

    def __enter__(self) -> Any:
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Enclosed(Server):
    """A server in a network namespace whose only address is 127.0.0.1.

    Args:
        command: The program and its arguments.
        log: Where its output goes.
        ports: Ports that it listens on; they are reached under the same number here.
        calls: Ports of this side that it reaches under the same number of its own 127.0.0.1.
        ready: Whether it can be used; else that the first port takes a connection.
    """

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        ports: Sequence[int],
        calls: Sequence[int] = (),
        ready: Callable[[], object] | None = None,
    ) -> None:
        up = 'ip link set lo up && exec "$@"'
        super().__init__(
            ["unshare", "-n", "sh", "-c", up, "sh", *command],
            log,
            ready or (lambda: self._answers(ports[0])),
        )
        self._relays: list[Relay] = []
        self._ports, self.calls = ports, calls

    def _answers(self, port: int) -> bool:
        try:
            self._connect_inside(port).close()
        except OSError:
            return False
        return True

    def wait_ready(self) -> None:
        """Wait until it can be used."""
        wait_until(lambda: self._has_ended() or self._is_enclosed(), what="a network namespace")
        if not self._has_ended():
            for port in self._ports:
                listener = socket.create_server((HOST, port))
                self._relays.append(
                    Relay(listener, lambda port=port: self._connect_inside(port))  # type: ignore[misc]
                )
            for port in self.calls:
                listener = self._inside(lambda port=port: socket.create_server((HOST, port)))  # type: ignore[misc]
                self._relays.append(
                    Relay(
                        listener,
                        lambda port=port: socket.create_connection((HOST, port), 5),  # type: ignore[misc]
                    )
                )
        super().wait_ready()

    def _is_enclosed(self) -> bool:
        def place(pid: object) -> str:
            return os.readlink(f"/proc/{pid}/ns/net")  # noqa: PTH115 - it names no file

        with contextlib.suppress(OSError):
            if place(self.process.pid) != place("self"):
                return self._inside(_loopback_is_up)
        return False

    def _connect_inside(self, port: int) -> socket.socket:
        return self._inside(lambda: socket.create_connection((HOST, port), 5))

    def _inside(self, make: Callable[[], Made]) -> Made:
        """Make a socket in the namespace: setns(2) moves the thread that calls it alone."""
        found: list[Made | OSError] = []

        def enter() -> None:
            try:
                with Path(f"/proc/{self.process.pid}/ns/net").open() as place:
                    if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                found.append(make())
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(LONGEST_WAIT)
        (value,) = found
        if isinstance(value, OSError):
            raise value
        return value

    def kill(self) -> None:
        """End it without a word; its ports refuse connections."""
        super().kill()
        self._close_relays()

    def close(self) -> None:
        """End it, and pass nothing on any more."""
        super().close()
        self._close_relays()

    def _close_relays(self) -> None:
        for relay in self._relays:
            relay.close()
        self._relays = []


def _loopback_is_up() -> bool:
    with socket.socket() as probe:
        try:
            probe.connect((HOST, 1))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return True


class Relay:
    """Passes TCP connections on.

    Args:
        listener: The listening socket; closed with this.
        connect: Makes the connection to pass to.
    """

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        self._listener, self._connect = listener, connect
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True, name="relay")
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._connect()
            except OSError:
                near.close()
                continue
            pair = _Pair(near, far, self._forget)
            with self._lock:
                self._pairs.add(pair)
            pair.start()

    def _forget(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)

    def close(self) -> None:
        """Close the listener and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LONGEST_WAIT)
        self._listener.close()
        with self._lock:
            left = list(self._pairs)
        for pair in left:
            pair.end()


class _Pair:
    """A connection and the one that it is passed to; both are closed when both directions end."""

    def __init__(
        self, near: socket.socket, far: socket.socket, ended: Callable[[_Pair], None]
    ) -> None:
        self._sockets = near, far
        self._ended = ended
        self._running = 2
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._pass, args=way, daemon=True, name="relay")
            for way in ((near, far), (far, near))
        ]

    def start(self) -> None:
        for one in self._sockets:
            one.settimeout(None)
        for thread in self._threads:
            thread.start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                target.sendall(block)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            self._running -= 1
            if self._running:
                return
        for one in self._sockets:
            one.close()
        self._ended(self)

    def end(self) -> None:
        """Cut both connections."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LONGEST_WAIT)


class Orthanc(Enclosed):
    """An Orthanc with an empty archive, as a PACS or as a console.

    Args:
        folder: For its files; a new one.
        ae_title: Its AE title.
        peers: Name in Orthanc -> AE title and port of 127.0.0.1 here, for whom it accepts.
        options: More of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ORTHANC",
        peers: dict[str, tuple[str, int]] | None = None,
        **options: object,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port, self.ae_title = free_port(), free_port(), ae_title
        peers = peers or {}
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": True,  # nobody else is in its namespace
            "AuthenticationEnabled": False,
            "DicomModalities": {name: [title, HOST, port] for name, (title, port) in peers.items()},
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "Plugins": [],
            **options,
        }
        path = folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        calls = sorted({port for _, port in peers.values()})
        super().__init__(
            [ORTHANC, path],
            folder / "orthanc.log",
            [self.port, self.http_port],
            calls,
            self._is_up,
        )

    def _is_up(self) -> bool:
        try:
            self.get("/system")
        except (OSError, ValueError):
            return False
        return is_listening(self.port)

    def get(self, path: str) -> Any:
        """The answer to a GET, as JSON where it is that, else as bytes."""
        return self._ask(path, None, "GET")

    def post(self, path: str, body: object) -> Any:
        """The answer to a POST of JSON, or of bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(path, data, "POST")

    def delete(self, path: str) -> Any:
        """The answer to a DELETE."""
        return self._ask(path, None, "DELETE")

    def _ask(self, path: str, data: bytes | None, method: str) -> Any:
        request = urllib.request.Request(
            f"http://{HOST}:{self.http_port}{path}", data, method=method
        )
        with urllib.request.urlopen(request, timeout=LONGEST_WAIT) as answer:
            body = answer.read()
            is_json = "json" in answer.headers.get("Content-Type", "")
        return json.loads(body) if is_json else body

    def find(self, level: str = "Instance", **query: str) -> list[Any]:
        """What it has, by keyword; expanded, with `MainDicomTags`."""
        found = self.post("/tools/find", {"Level": level, "Query": query, "Expand": True})
        return list(found)


def dcmtk(
    program: str, *arguments: object, seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run one of DCMTK's programs; stdout and stderr are one."""
    return subprocess.run(
        [program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
    )


def storescu(
    port: int,
    *files: object,
    calling: str = "CONSOLE",
    called: str = "CART",
    options: Sequence[object] = (),
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Send files to 127.0.0.1 by DCMTK; its answer, with statuses, is in `stdout`."""
    titles = ("-aet", calling, "-aec", called)
    return dcmtk("storescu", "-v", *titles, *options, HOST, port, *files, seconds=seconds)


def echoscu(
    port: int, *, calling: str = "CONSOLE", called: str = "CART", options: Sequence[object] = ()
) -> subprocess.CompletedProcess[str]:
    """Send a C-ECHO to 127.0.0.1 by DCMTK."""
    return dcmtk("echoscu", "-v", "-aet", calling, "-aec", called, *options, HOST, port)


@contextlib.contextmanager
def storescp(
    folder: Path, *options: object, ae_title: str = "PACS"
) -> Iterator[tuple[Enclosed, int]]:
    """DCMTK's receiver; files land in the folder. Yields the server and its port."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = ["storescp", "-v", "-aet", ae_title, "-od", folder, *options, port]
    with Enclosed(command, folder.parent / f"storescp-{port}.log", [port]) as server:
        yield server, port
