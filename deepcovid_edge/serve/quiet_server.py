"""uvicorn as every service here runs it; the cart's page does too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import uvicorn


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


def quiet_config(app: Any, place: ListensAt, **more: Any) -> uvicorn.Config:
    """How uvicorn serves an application: no log of its own, no header that says what runs here.

    Args:
        app: The application (ASGI 3).
        place: Where it listens.
        more: Further settings of uvicorn.
    """
    return uvicorn.Config(
        app,
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
