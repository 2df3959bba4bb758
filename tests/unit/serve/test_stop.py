"""What a server that starts or stops sees to: limits of the system, tasks that must end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from deepcovid_edge.serve import role
from deepcovid_edge.serve.assessors import pool
from deepcovid_edge.serve.assessors.pool import end_tasks
from deepcovid_edge.serve.connections import server_config
from deepcovid_edge.serve.listener import ConnectionCounts
from deepcovid_edge.serve.settings import ServeSettings

TESTS = Path(__file__).parents[2]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket at which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def states_of(systemd: socket.socket) -> list[str]:
    """The states that have come."""
    found: list[str] = []
    with suppress(BlockingIOError):
        while True:
            found += systemd.recv(4096).decode().splitlines()
    return found


def test_a_server_that_loads_its_model_ends_when_asked(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody writes into the pipe, so the model is never loaded."""
    os.mkfifo(tmp_path / "script")
    monkeypatch.setattr(pool, "_MODULE", "scripted_assessor")
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), known]))
    stop = threading.Event()
    asks = threading.Timer(1.0, stop.set)
    asks.start()
    began = time.monotonic()
    model = {"script": str(tmp_path / "script")}
    asyncio.run(asyncio.wait_for(role._serve(ServeSettings(port=0), model, stop), 60))
    asks.join()
    assert time.monotonic() - began < 20
    states = states_of(systemd)
    assert "EXTEND_TIMEOUT_USEC=315000000" in states, "systemd waits for as long as it may take"
    assert "STOPPING=1" in states
    assert "READY=1" not in states


@pytest.mark.parametrize(("waits", "least", "most"), [("", 1, 1), ("1200000", 3, 8)])
def test_a_short_watchdog_hears_of_the_server_in_time(
    systemd: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    waits: str,
    least: int,
    most: int,
) -> None:
    """Every 5 s by default, and thrice within 1.2 s where systemd waits no longer."""
    monkeypatch.setenv("WATCHDOG_USEC", waits)
    server = cast(Any, SimpleNamespace(started=False, should_exit=False))

    async def run() -> None:
        watch = role._end_when_asked(server, cast(Any, None), threading.Event())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(watch, 1.5)

    asyncio.run(run())
    assert least <= states_of(systemd).count("WATCHDOG=1") <= most


@pytest.mark.parametrize("turns", range(6))
def test_a_task_ends_though_its_cancellation_was_lost(turns: int) -> None:
    """One that waits again and again, cancelled some turns of the loop after its result came."""

    async def run() -> bool:
        come = asyncio.get_running_loop().create_future()

        async def waiting() -> None:
            await asyncio.wait_for(asyncio.shield(come), 60)
            await asyncio.sleep(60)

        task = asyncio.create_task(waiting())
        await asyncio.sleep(0.01)
        come.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        await end_tasks([task])
        return task.done()

    began = time.monotonic()
    assert asyncio.run(run())
    assert time.monotonic() - began < 20


def test_the_grace_is_as_long_as_an_answer_may_take() -> None:
    settings = ServeSettings(answer_seconds=130.5)
    config = server_config(None, settings, ConnectionCounts())
    assert config.timeout_graceful_shutdown == 131


def test_files_may_be_open_as_many_as_connections_need() -> None:
    program = (
        "import json, resource\n"
        "from deepcovid_edge.serve.listener import allow_open_files\n"
        "kind, found = resource.RLIMIT_NOFILE, []\n"
        "resource.setrlimit(kind, (100, 600))\n"
        "for connections in (200, 1000, 10):\n"
        "    allow_open_files(connections)\n"
        "    found.append(resource.getrlimit(kind))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == [[456, 600], [600, 600], [600, 600]]
