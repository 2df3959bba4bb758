"""Connections: none may take its time (slow loris) or much memory, and none keeps others out.

uvicorn has a limit on idle connections alone. Here a request's header must be there in time, and
where there are too many connections a new one ends the oldest that has sent no whole request. A
header has a largest size. So has everything else that is no body, such as the header lines behind a
body (trailers, RFC 9112, 7.1.2); nobody reads these. The time for a body is the application's,
which answers 408. A body that nobody wants any more, because its answer is given, is read and
forgotten for a while: a connection that is closed on bytes that were not read is reset, and the
caller may not see the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepcovid_edge.serve.listener import ConnectionCounts, ConnectionLimits, LimitedConnection
from deepcovid_edge.serve.quiet_server import quiet_config
from deepcovid_edge.serve.settings import ServeSettings

_MOST_HEADER, _MOST_HEADER_LINES = 64 << 10, 200
"""Bytes of names and values, and lines: each costs some 100 bytes beside its own."""
_MOST_OTHER = 1 << 20
"""Bytes that bring neither a part of a body nor the end of a header or of a request."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the usual pause of a caller: a new connection with TLS costs as much as an image."""
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 16 << 20
"""For the rest of a body whose answer is given."""
_LARGE_HEADER = f"header: expected at most {_MOST_HEADER >> 10} KiB and {_MOST_HEADER_LINES} lines"
_LARGE_OTHER = "request: got 1 MiB with no part of a body and no end of a header or of the request"
_UPGRADE = "request: Upgrade and CONNECT are not supported: send it without them"
_REFUSED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n"
)


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
    """Bytes of names and values; -1 behind a header."""
    _other = 0
    """Bytes since the last that brought something."""
    _refusal = ""
    """Why the request is refused, if that is known."""
    _is_refused = False
    _unwanted = 0
    """Bytes of a body since it was answered."""

    def connection_made(self, transport: Any) -> None:
        """A connection begins; its first request must arrive in time."""
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """A part of a request; a header without an end is one too many."""
        if self._is_refused:
            self._drop(data)
            return
        self._other += len(data)
        super().data_received(data)
        if self._is_refused:
            return
        if self._timer is None and self._is_open_ended:  # most headers come as a whole
            self._start_timer()
        if self._other > _MOST_OTHER:
            self.send_400_response(_LARGE_OTHER)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request; what follows is not parsed, but read and forgotten for a while."""
        content = json.dumps({"error": self._refusal or msg}).encode()
        head = _REFUSED % len(content)
        self._is_refused = True
        self._end()
        self.transport.write(head + content)
        if self._is_idle:
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._header = self._other = 0
        if self._timer is None:
            self.arrives = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of a header, or one behind a body, which is dropped."""
        if self._header < 0:
            return
        self._header += len(name) + len(value)
        if self._header > _MOST_HEADER or len(self.headers) >= _MOST_HEADER_LINES:
            self._refuse(_LARGE_HEADER)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its header is there. Behind one that asks for another protocol, no body is found."""
        self._header, self._other = -1, 0
        if self.parser.should_upgrade():
            self._refuse(_UPGRADE)
        self._end()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which nobody wants once it is answered."""
        self._other = 0
        self.cycle.body = self.cycle.body or b""  # type: ignore[assignment]  # not copied twice
        super().on_body(body)
        if self.cycle.response_complete:
            self._drop(body)

    def on_message_complete(self) -> None:
        """It is there as a whole; if it was answered before, the next one may come."""
        self._other = 0
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
    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        cycle: Any = self.cycle  # None where the first request has no address
        return cycle is None or bool(cycle.response_complete)

    @property
    def _is_open_ended(self) -> bool:
        """Whether no request is under way, and nothing ends the connection where none comes."""
        return self._is_idle and self.timeout_keep_alive_task is None

    def _refuse(self, sentence: str) -> NoReturn:
        """End the parser, which calls this; it says itself that there was an error."""
        self._refusal = sentence
        raise ValueError(sentence)

    def _drop(self, data: bytes) -> None:
        """Forget data that nobody wants."""
        self._unwanted += len(data)
        if self._unwanted > _LINGER_BYTES:
            self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _end(self) -> None:
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
    """How uvicorn serves an application."""
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
