"""The process `cart page`."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvicorn
from starlette.concurrency import run_in_threadpool

from deepcovid_edge.cart.config import CartConfig, PageSettings
from deepcovid_edge.cart.page.access import Access, Pin
from deepcovid_edge.cart.page.app import build_app
from deepcovid_edge.cart.page.context import Context
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.opening import open_store
from deepcovid_edge.device.ports import listening_socket
from deepcovid_edge.device.service import beat_seconds, log, notify
from deepcovid_edge.device.tls import check_key
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.serve.h11_connections import timed_connections
from deepcovid_edge.serve.listener import ConnectionCounts, ConnectionLimits
from deepcovid_edge.serve.quiet_server import QuietServer, quiet_config

_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 2
_LIMITS = ConnectionLimits(connections=64, header_seconds=10.0, body_seconds=60.0)
"""Beyond them the oldest connection that has sent no whole request makes room."""
_KEEP_ALIVE_SECONDS = 10


def page(config: CartConfig, stop: threading.Event) -> None:
    """Serve the page until an event is set; then end within 5 seconds.

    Raises:
        NotThereError: The port cannot be listened on, or a certificate or the PIN is not there.
        OutputError: Spool or ledger cannot be opened.
    """
    settings = config.page or PageSettings()
    pin = Pin.read(settings.pin_file) if settings.pin_file else None
    writing, spool = open_store(config.cart)
    with writing, Ledger(spool.folder, read_only=True) as reading:
        context = Context(config, settings, reading, writing, spool, Access(pin))
        with listening_socket("page.port", settings.host, settings.port) as port:
            asyncio.run(_serve(context, port, stop))
    log("page stopped")


async def _serve(context: Context, port: socket.socket, stop: threading.Event) -> None:
    settings = context.settings
    try:
        check_key("page.key", settings.certificate, settings.key)
        server = quiet_server(context, _LIMITS)
        server.config.load()
    except (OSError, ValueError) as error:  # `ssl.SSLError` is the former
        raise NotThereError(f"page.certificate: cannot be used: {error}") from error
    watch = asyncio.create_task(_end_when_asked(server, context, stop))
    log("page", host=settings.host, port=settings.port, tls=settings.certificate is not None)
    try:
        await server.serve([port])
    finally:
        watch.cancel()


def quiet_server(context: Context, limits: ConnectionLimits) -> QuietServer:
    """The server of a page."""
    counts = ConnectionCounts()
    config = quiet_config(
        build_app(context),
        context.settings.certificate,
        context.settings.key,
        http=timed_connections(limits, counts),
        loop="asyncio",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return QuietServer(config, limits, counts)


async def _end_when_asked(server: uvicorn.Server, context: Context, stop: threading.Event) -> None:
    """Tell systemd that loop and threads work; end the server with the role, or with its ledger."""
    looks, was_ready, looks_a_beat = 0, False, max(1, int(beat_seconds() / _LOOK_SECONDS))
    while not stop.is_set():
        if server.started and not was_ready:
            was_ready = True
            notify("READY=1")
        if looks % looks_a_beat == 0:
            # The threads of the handlers; while none is free the watchdog is not fed.
            replaced = await run_in_threadpool(context.reading.is_replaced)
            notify("WATCHDOG=1")
            if replaced:
                log("page ends", why="the ledger was made again")
                break
        looks += 1
        await asyncio.sleep(_LOOK_SECONDS)
    notify("STOPPING=1")
    context.changes.close()
    server.should_exit = True
