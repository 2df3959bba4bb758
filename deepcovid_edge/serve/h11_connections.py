"""Connections of a service without httptools: as those of `serve`, none may take its time.

The time for a body is the application's.
"""

from __future__ import annotations

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deepcovid_edge.serve.listener import ConnectionCounts, ConnectionLimits, LimitedConnection


class TimedConnection(LimitedConnection, H11Protocol):
    """A connection whose requests must arrive in time, and whose answers must be read."""

    def connection_made(self, transport: Any) -> None:
        """A connection begins; its first request must arrive in time."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """It is answered; the next one may come, after what is left of its body."""
        super().on_response_complete()
        self._watch()

    @property
    def arrives(self) -> bool:  # type: ignore[override]
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


def timed_connections(limits: ConnectionLimits, counts: ConnectionCounts) -> type[TimedConnection]:
    """The class of a server's connections."""
    return type("Connection", (TimedConnection,), {"limits": limits, "counts": counts})
