"""What connections may cost, and who makes room for whom.

asyncio accepts a connection over TLS before anybody counts it, and waits a minute for its
handshake. Here a handshake has its time, and where there are too many a new one ends the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PAUSE_SECONDS = 0.1
"""Before a connection is accepted again, after the operating system gave none."""
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
_OTHER_FILES = 256
"""Beside those of connections: the model's processes, the ledger, files that are read."""
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may cost.

    Attributes:
        connections: Most of them. With TLS as many more may be in their handshake.
        header_seconds: Longest time of a handshake, and then until a request's header is there.
        body_seconds: Longest time until a caller goes on to read its answer.
    """

    connections: int
    header_seconds: float
    body_seconds: float


@dataclass
class ConnectionCounts:
    """What was ended, and why.

    Attributes:
        too_slow: Connections that were not shaken hands with, written or read in time.
        pushed_out: Connections without a whole request that made room for a new one.
    """

    too_slow: int = 0
    pushed_out: int = 0


class LimitedConnection(asyncio.Protocol):
    """A connection with limits, to stand before a class of uvicorn, whatever parser that has.

    Its caller must read its answers in time. Where there are too many connections, a new one ends
    the oldest that has sent no whole request; where all have, itself.
    """

    limits: ConnectionLimits
    counts: ConnectionCounts
    """Set in a class of each server's own: uvicorn makes its connections itself."""
    connections: set[Any]
    transport: Any
    loop: asyncio.AbstractEventLoop
    """Of uvicorn."""
    arrives: bool
    """Whether no whole request is there."""
    number = 0
    """Connections that began earlier have lower ones."""
    _timer: asyncio.TimerHandle | None = None
    """While a header arrives, or what is left of a body whose answer is given."""
    _reading: asyncio.TimerHandle | None = None
    """While the caller reads nothing."""

    def connection_made(self, transport: Any) -> None:
        """A connection begins."""
        self.number = next(_NUMBERS)
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        for timer in (self._timer, self._reading):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller reads too slowly."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.body_seconds, self._too_slow)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._reading:
            self._reading.cancel()
        super().resume_writing()

    def _make_room(self) -> None:
        others = [it for it in self.connections if it is not self and it.arrives]
        self.counts.pushed_out += 1
        oldest = min(others, key=lambda it: it.number, default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()

    def _too_slow(self) -> None:
        self.counts.too_slow += 1
        self.transport.abort()


def allow_open_files(connections: int) -> None:
    """Raise what this process may have open, as far as it may, to what connections need.

    Args:
        connections: Most of them, those included that wait to be accepted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class TlsListener:
    """Accepts connections and shakes hands with them; to uvicorn it is a server of asyncio."""

    def __init__(
        self,
        port: socket.socket,
        tls: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        limits: ConnectionLimits,
        counts: ConnectionCounts,
    ) -> None:
        self._port = port.dup()  # uvicorn closes the other while this one is waited at
        self._port.setblocking(False)
        self._tls, self._connection = tls, connection
        self._limits, self._counts = limits, counts
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """The oldest is the first."""
        self._task = asyncio.create_task(self._accept())

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """What listens."""
        return (self._port,)

    def close(self) -> None:
        """Accept no more, and end the handshakes."""
        for task in (self._task, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for what `close` ended."""
        await asyncio.gather(self._task, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._port:
            while True:
                try:
                    peer, _ = await loop.sock_accept(self._port)
                except OSError as error:
                    await self._free_a_file(error)
                    continue
                if len(self._handshakes) >= self._limits.connections:
                    self._end_oldest()
                task = loop.create_task(self._shake_hands(peer))
                self._handshakes[task] = None
                task.add_done_callback(lambda ended: self._handshakes.pop(ended, None))
                await asyncio.sleep(0)  # many that wait to be accepted keep nothing else waiting

    async def _shake_hands(self, peer: socket.socket) -> None:
        seconds = self._limits.header_seconds
        with contextlib.suppress(OSError):  # it is none of TLS, or has gone
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._connection, peer, ssl=self._tls, ssl_handshake_timeout=seconds
                )
            except ConnectionAbortedError:
                self._counts.too_slow += 1

    async def _free_a_file(self, error: OSError) -> None:
        """Go on after a connection was not accepted: the peer has gone, or too much is open."""
        oldest = self._end_oldest() if error.errno in _TOO_MANY_OPEN else None
        if oldest is None:
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            await asyncio.wait([oldest], timeout=_PAUSE_SECONDS)

    def _end_oldest(self) -> asyncio.Task[None] | None:
        oldest = next(iter(self._handshakes), None)
        if oldest is not None:
            self._counts.pushed_out += 1
            del self._handshakes[oldest]
            oldest.cancel()
        return oldest
