"""Connections of a service without httptools: as those of `serve`, none may take its time.

The time for a body is the application's.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deepcovid_edge.serve.listener import ConnectionCounts, ConnectionLimits, make_room

_NUMBERS = itertools.count()


class TimedConnection(H11Protocol):
    """A connection whose requests must arrive in time, and whose answers must be read."""

    limits: ConnectionLimits
    counts: ConnectionCounts
    """Set in a class of each server's own: uvicorn makes its connections itself."""
    number = 0
    """Connections that began earlier have lower ones."""
    _timer: asyncio.TimerHandle | None = None
    """While a header arrives, or what is left of a body whose answer is given."""
    _reading: asyncio.TimerHandle | None = None
    """While the caller reads nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection begins; its first request must arrive in time."""
        self.number = next(_NUMBERS)
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.limits.connections:
            make_room(self, self.connections, self.counts)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        for timer in (self._timer, self._reading):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """It is answered; the next one may come, after what is left of its body."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The caller reads too slowly."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.body_seconds, self._too_slow)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._reading:
            self._reading.cancel()
        super().resume_writing()

    @property
    def arrives(self) -> bool:
        """Whether no whole request is there."""
        return self._is_idle or self.cycle.more_body

    @property
    def _is_idle(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _watch(self) -> None:
        """Start the time of what arrives, once for each header and each rest of a body."""
        has_rest = self.conn.their_state is h11.SEND_BODY
        if not self._is_idle or (self.timeout_keep_alive_task and not has_rest):
            if self._timer:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            seconds = self.limits.body_seconds if has_rest else self.limits.header_seconds
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self.counts.too_slow += 1
        self.transport.abort()


def timed_connections(limits: ConnectionLimits, counts: ConnectionCounts) -> type[TimedConnection]:
    """The class of a server's connections.

    Args:
        limits: For each.
        counts: Counted here.
    """
    return type("Connection", (TimedConnection,), {"limits": limits, "counts": counts})
