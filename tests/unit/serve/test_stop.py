"""What a server that starts or stops sees to: limits of the system, tasks that must end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from deepcovid_edge.serve.assessors.pool import end_tasks
from deepcovid_edge.serve.connections import server_config
from deepcovid_edge.serve.listener import ConnectionCounts
from deepcovid_edge.serve.settings import ServeSettings


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
    settings = ServeSettings(answer_seconds=70.5)
    config = server_config(None, settings, ConnectionCounts())
    assert config.timeout_graceful_shutdown == 71


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
