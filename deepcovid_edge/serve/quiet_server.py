"""uvicorn as every service here runs it; the cart's page does too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from deepcovid_edge.device.service import log, log_fault
from deepcovid_edge.serve.listener import (
    ConnectionCounts,
    ConnectionLimits,
    TlsListener,
    allow_open_files,
)

_LAST_SECONDS = 1.0
"""For the answers of requests that the end of the grace has ended."""


class _FaultsTold:
    """Logs what an application raises without its message, and keeps it from the server's log.

    Starlette raises a fault again after it was answered with 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log_fault("request failed", error)


class _AsLines(logging.Handler):
    """Writes the warnings of libraries as lines of the service's own log, without values."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        raised = record.exc_info[0] if record.exc_info else None
        says = record.getMessage().partition("\n")[0]
        log("server", says=says, kind=raised.__name__ if raised else None)


_LINES = _AsLines(logging.WARNING)


def quiet_config(
    app: ASGIApp, certificate: Path | None, key: Path | None, **more: Any
) -> uvicorn.Config:
    """How uvicorn serves an application: no log of its own, no header that says what runs here.

    Args:
        app: The application (ASGI 3).
        certificate: Of TLS; None for none.
        key: Its key.
        more: Further settings of uvicorn.
    """
    for library in ("uvicorn.error", "asyncio"):
        logging.getLogger(library).addHandler(_LINES)
    return uvicorn.Config(
        _FaultsTold(app),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever is at the other end of the connection is who calls
        **more,
    )


class QuietServer(uvicorn.Server):
    """A server whose signals are those of its process, and whose handshakes are bounded."""

    def __init__(
        self, config: uvicorn.Config, limits: ConnectionLimits, counts: ConnectionCounts
    ) -> None:
        super().__init__(config)
        self._limits, self._counts = limits, counts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; over TLS with the limits for handshakes, which uvicorn cannot pass on."""
        allow_open_files(2 * self._limits.connections + self.config.backlog)
        ports = sockets or []
        tls = self.config.ssl
        await super().startup([] if tls else ports)
        if tls and self.started:
            self.servers: list[Any] = [
                TlsListener(port, tls, self._connection, self._limits, self._counts)
                for port in ports
            ]
            for port in ports:
                port.listen(self.config.backlog)

    def _connection(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; requests that are ended with the grace have a moment for their answer."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=_LAST_SECONDS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
