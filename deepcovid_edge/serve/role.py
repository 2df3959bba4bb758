"""The process `serve`."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Mapping
from typing import Any

import uvloop

from deepcovid_edge.device.ports import check_free, listening_socket
from deepcovid_edge.device.process import write_no_core_file
from deepcovid_edge.device.service import beat_seconds, log, notify
from deepcovid_edge.device.tls import check_key
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.serve.app import Service, build_app
from deepcovid_edge.serve.assessors.pool import START_SECONDS, Assessors, end_tasks
from deepcovid_edge.serve.connections import limits_of, server_config
from deepcovid_edge.serve.keys import Callers
from deepcovid_edge.serve.quiet_server import QuietServer
from deepcovid_edge.serve.settings import ServeSettings

_LOOK_SECONDS = 0.2
_END_SECONDS = 15
"""For the last answers and the end of the model's processes."""


def serve(settings: ServeSettings, model: Mapping[str, Any], stop: threading.Event) -> None:
    """Serve until an event is set; requests that are under way are answered first.

    Args:
        settings: Of the server.
        model: Keywords of `Model`, plain values.
        stop: The event.

    Raises:
        NotThereError: The port cannot be listened on, or a certificate or the keys are not there.
        BackendUnavailableError: The model cannot be loaded.
    """
    write_no_core_file()  # the watchdog ends a process by a signal that may write one
    check_free("port", settings.host, settings.port)
    uvloop.run(_serve(settings, model, stop))
    log("serve stopped")


async def _serve(settings: ServeSettings, model: Mapping[str, Any], stop: threading.Event) -> None:
    callers = Callers(settings.keys)
    assessors = Assessors(model, settings)
    service = Service(settings, assessors, callers)
    config = server_config(build_app(service), settings, service.connections)
    try:
        check_key("key", settings.certificate, settings.key)
        config.load()
    except (OSError, ValueError) as error:  # `ssl.SSLError` is the former
        raise NotThereError(f"certificate: cannot be used: {error}") from error
    server = QuietServer(config, limits_of(settings), service.connections)
    watch = asyncio.create_task(_end_when_asked(server, service, stop))
    try:
        if await _started(assessors, stop):
            gc.freeze()  # what is there now stays
            with listening_socket("port", settings.host, settings.port) as port:
                await server.serve([port])
    finally:
        watch.cancel()
        await assessors.close()


async def _started(assessors: Assessors, stop: threading.Event) -> bool:
    """Start the processes that assess, unless the server is asked to end first."""
    notify(f"EXTEND_TIMEOUT_USEC={(START_SECONDS + _END_SECONDS) * 1e6:.0f}")
    start = asyncio.create_task(assessors.start())
    while not start.done():
        if stop.is_set():
            await end_tasks([start])
            return False
        await asyncio.wait([start], timeout=_LOOK_SECONDS)
    start.result()
    return True


async def _end_when_asked(server: QuietServer, service: Service, stop: threading.Event) -> None:
    """Tell systemd that the loop goes round, up to the last answer; end the server when asked."""
    looks, was_ready, looks_a_beat = 0, False, max(1, int(beat_seconds() / _LOOK_SECONDS))
    while True:
        if stop.is_set() and not server.should_exit:
            most = service.settings.answer_seconds + _END_SECONDS
            notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={most * 1e6:.0f}")
            server.should_exit = True
        if server.started and not (was_ready or server.should_exit):
            was_ready = True
            notify("READY=1")
            _, port = server.servers[0].sockets[0].getsockname()[:2]
            log(
                "serve",
                host=service.settings.host,
                port=port,
                tls=service.settings.certificate is not None,
                model=service.model,
                backend=service.assessors.known.facts["backend"],
                assessors=service.assessors.count,
            )
        if looks % looks_a_beat == 0:
            notify("WATCHDOG=1")
        looks += 1
        await asyncio.sleep(_LOOK_SECONDS)
