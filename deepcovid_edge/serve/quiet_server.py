"""uvicorn as every service here runs it; the cart's page does too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from deepcovid_edge.device.service import log_fault


class ListensAt(Protocol):
    """Settings that say where a service listens, and with which certificate."""

    @property
    def host(self) -> str:
        """Address."""

    @property
    def port(self) -> int:
        """Port."""

    @property
    def certificate(self) -> Path | None:
        """Certificate; None for no TLS."""

    @property
    def key(self) -> Path | None:
        """Its key."""


class _FaultsTold:
    """Logs what an application raises without its message, and keeps it from the server's log.

    Starlette raises a fault again after it was answered with 500.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            log_fault("request failed", error)


def quiet_config(app: ASGIApp, place: ListensAt, **more: Any) -> uvicorn.Config:
    """How uvicorn serves an application: no log of its own, no header that says what runs here.

    Args:
        app: The application (ASGI 3).
        place: Where it listens.
        more: Further settings of uvicorn.
    """
    return uvicorn.Config(
        _FaultsTold(app),
        host=place.host,
        port=place.port,
        ssl_certfile=place.certificate,
        ssl_keyfile=place.key,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever is at the other end of the connection is who calls
        **more,
    )


class QuietServer(uvicorn.Server):
    """A server whose signals are those of its process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
