"""Groups of images for processes of a server: as large as its callers make them, and no wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from deepcovid_edge.serve.assessors import pool
from deepcovid_edge.serve.assessors.pool import Answer, Assessors, Job, Known
from deepcovid_edge.serve.assessors.readiness import Readiness
from deepcovid_edge.serve.settings import ServeSettings

IMAGE_SECONDS = 0.002


class _Process:
    async def close(self) -> None: ...


class Fake(Assessors):
    """Takes its time for images, and notes how many it had at once."""

    def __init__(self, count: int) -> None:
        super().__init__({}, ServeSettings(assessors=count))
        self.groups: list[int] = []

    async def _started(self) -> Any:
        self._known = Known({}, {}, on_cpu=True, suits=8, image=b"", record={"path": ""})
        return _Process()

    async def _assess(self, process: Any, jobs: Sequence[Job]) -> None:
        self.groups.append(len(jobs))
        await asyncio.sleep(IMAGE_SECONDS * len(jobs))
        for job in jobs:
            job.answer.set_result(Answer(b'{"path": ""}', "negative"))

    async def call(self, images: int) -> None:
        """A caller that sends its next image when it has its answer."""
        for _ in range(images):
            await self.assess("image", b"")


def served(count: int, *callers: Sequence[int]) -> Fake:
    """Processes that have served callers, each with its number of images, in several turns."""

    async def run() -> Fake:
        fake = Fake(count)
        await fake.start()
        try:
            for turn in callers:
                await asyncio.gather(*(fake.call(images) for images in turn))
        finally:
            await fake.close()
        return fake

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(("processes", "callers", "expected"), [(1, 8, 8), (2, 8, 4), (2, 24, 8)])
def test_callers_that_come_back_together_are_a_group(
    processes: int, callers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_GATHER_SECONDS", 2.0)  # whatever else the machine does
    groups = served(processes, [20] * callers).groups
    later = groups[len(groups) // 3 : -2 * processes]
    assert set(later) == {expected}
    assert sum(groups) == 20 * callers


@pytest.mark.parametrize(("processes", "callers"), [(1, 1), (2, 1), (2, 2), (4, 3)])
def test_where_each_has_a_process_nobody_waits_for_others(
    processes: int, callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_GATHER_SECONDS", 100.0)
    assert set(served(processes, [10] * callers).groups) == {1}


def test_callers_that_stay_away_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_GATHER_SECONDS", 1.0)
    began = time.monotonic()
    groups = served(1, [3] * 8, [40]).groups
    assert groups[-40:] == [1] * 40
    assert time.monotonic() - began < 1.0 + 40 * IMAGE_SECONDS + 5.0


def test_a_full_queue_makes_no_working_server_unready() -> None:
    """Its image goes before those that wait, which would take longer than a check may."""

    async def run() -> tuple[bool, int]:
        fake = Fake(1)
        await fake.start()
        waiting = [asyncio.create_task(fake.assess("image", b"")) for _ in range(200)]
        await asyncio.sleep(0)
        try:
            is_right = await Readiness(fake, 60).check()
            return is_right, sum(not one.done() for one in waiting)
        finally:
            await asyncio.gather(*waiting)
            await fake.close()

    is_right, still_waiting = asyncio.run(asyncio.wait_for(run(), 60))
    assert is_right
    assert still_waiting > 150
