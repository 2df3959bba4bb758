"""A TCP proxy on 127.0.0.1 that does to connections what bad networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Literal

HOST = "127.0.0.1"
_BLOCK = 4096


@dataclass(frozen=True)
class Fault:
    """What happens to one direction of a connection.

    Attributes:
        kind: `cut`: both directions end; `reset`: by RST; `half-close`: this one ends, the other
            goes on; `stall`: nothing more passes, both stay open; `delay`: each block waits.
        after: Bytes that pass before.
        to_server: Whether it concerns what the client sends.
        seconds: Of a delay.
    """

    kind: Literal["cut", "reset", "half-close", "stall", "delay"]
    after: int = 0
    to_server: bool = True
    seconds: float = 0.05


class TcpProxy:
    """Passes connections on to a port, each with the fault that is set when it begins.

    Args:
        target: Port to pass to.
    """

    def __init__(self, target: int) -> None:
        self.fault: Fault | None = None
        self.connections = 0
        self._target, self._open = target, list[socket.socket]()
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                far = socket.create_connection((HOST, self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for source, goal, to_server in ((near, far, True), (far, near, False)):
                fault = self.fault if self.fault and self.fault.to_server is to_server else None
                threading.Thread(target=self._pass, args=(source, goal, fault), daemon=True).start()

    def _pass(self, source: socket.socket, goal: socket.socket, fault: Fault | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                if fault and passed + len(block) > fault.after:
                    if fault.kind != "delay":
                        goal.sendall(block[: max(0, fault.after - passed)])
                        self._break(source, goal, fault.kind)
                        return
                    time.sleep(fault.seconds)
                goal.sendall(block)
                passed += len(block)
        with contextlib.suppress(OSError):
            goal.shutdown(socket.SHUT_WR)

    @staticmethod
    def _break(source: socket.socket, goal: socket.socket, kind: str) -> None:
        if kind == "stall":
            return
        if kind == "half-close":
            goal.shutdown(socket.SHUT_WR)
            return
        for one in (source, goal):
            if kind == "reset":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """End every connection, and take no more."""
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
