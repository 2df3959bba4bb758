"""Connections: none may take its time (slow loris), and none keeps others out.

uvicorn has a limit on idle connections alone. Here a request's header must be there in time, and
where there are too many connections a new one ends the oldest that has sent no whole request. The
time for a body is the application's, which answers 408. A body that nobody wants any more, because
its answer is given, is read and forgotten for a while: a connection that is closed on bytes that
were not read is reset, and the caller may not see the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepcovid_edge.serve.listener import ConnectionCounts, ConnectionLimits, LimitedConnection
from deepcovid_edge.serve.quiet_server import quiet_config
from deepcovid_edge.serve.settings import ServeSettings

_MOST_HEADER = 1 << 20
"""Bytes of a header, with what came of the body in the same block."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the usual pause of a caller: a new connection with TLS costs as much as an image."""
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 16 << 20
"""For the rest of a body whose answer is given."""


class JoinedWrites:
    """A transport that sends the head of an answer with its body: one packet, one record of TLS.

    uvicorn writes them one after the other.

    Args:
        transport: What sends.
        loop: Its loop: what is alone at its next turn is sent alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._first = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes, with those that were written before them."""
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        elif data:
            self._first = data
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Send what is written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        first, self._first = self._first, b""
        if first and not self._transport.is_closing():
            self._transport.write(first)


class GuardedConnection(LimitedConnection, HttpToolsProtocol):
    """A connection whose requests must arrive in time."""

    arrives = True
    _header = 0
    """Bytes since a header began; -1 outside of one."""
    _unwanted = 0
    """Bytes of a body since it was answered."""

    def connection_made(self, transport: Any) -> None:
        """A connection begins; its first request must arrive in time."""
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)
        self._header = 0
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """A part of a request; a header without an end is one too many."""
        if self._header >= 0:
            self._header += len(data)
        super().data_received(data)
        if self._timer is None and self._is_open_ended:  # most headers come as a whole
            self._start_timer()
        if self._header > _MOST_HEADER:
            self.send_400_response("Header too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._timer is None:
            self.arrives, self._header = True, 0

    def on_headers_complete(self) -> None:
        """Its header is there."""
        self._end()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which nobody wants once it is answered."""
        self.cycle.body = self.cycle.body or b""  # type: ignore[assignment]  # not copied twice
        super().on_body(body)
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > _LINGER_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        """It is there as a whole; if it was answered before, the next one may come."""
        if self.cycle.response_complete:
            self._end()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.arrives = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered; the next one may come, after what is left of its body."""
        self.arrives = True
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._end()
            self._unwanted = 0
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """The server stops: what is there is answered, what is not there must come soon."""
        super().shutdown()
        if self.arrives and not self.transport.is_closing():
            self._end()
            self._timer = self.loop.call_later(self.limits.header_seconds, self._never_came)

    @property
    def _is_open_ended(self) -> bool:
        """Whether no request is under way, and nothing ends the connection where none comes."""
        cycle: Any = self.cycle  # None where the first request has no address
        is_idle = cycle is None or cycle.response_complete
        return is_idle and self.timeout_keep_alive_task is None

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _end(self) -> None:
        self._header = -1
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _never_came(self) -> None:
        if self.arrives:
            self.transport.close()


def limits_of(settings: ServeSettings) -> ConnectionLimits:
    """The limits for a server's connections."""
    return ConnectionLimits(settings.connections, settings.header_seconds, settings.body_seconds)


def server_config(app: Any, settings: ServeSettings, counts: ConnectionCounts) -> uvicorn.Config:
    """How uvicorn serves an application.

    Args:
        app: The application (ASGI 3).
        settings: TLS and limits.
        counts: Counts connections that are ended.
    """
    of_this_server = {"limits": limits_of(settings), "counts": counts}
    return quiet_config(
        app,
        settings.certificate,
        settings.key,
        http=type("Connection", (GuardedConnection,), of_this_server),
        loop="auto",
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.answer_seconds),
        backlog=1024,
    )
