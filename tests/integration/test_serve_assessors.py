"""Processes that assess: one that dies or hangs costs no other image anything."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from deadly_assessor import ENDS, HANGS

from deepcovid_edge.errors import BackendUnavailableError
from deepcovid_edge.serve.assessors import pool
from deepcovid_edge.serve.assessors.pool import Assessors
from deepcovid_edge.serve.assessors.readiness import Readiness
from deepcovid_edge.serve.settings import ServeSettings

TESTS = Path(__file__).parents[1]


@pytest.fixture
def _deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_MODULE", "deadly_assessor")
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), known]))


async def records_of(assessors: Assessors, images: list[bytes]) -> list[dict[str, Any]]:
    found = await asyncio.gather(*(assessors.assess(str(at), it) for at, it in enumerate(images)))
    return [json.loads(answer.record) for answer in found]


@pytest.mark.usefixtures("_deadly")
def test_an_image_that_ends_a_process_gets_a_reason_and_others_their_record() -> None:
    async def run() -> None:
        assessors = Assessors({}, ServeSettings(assessors=1, group=8))
        await assessors.start()
        try:
            good = assessors.known.image
            found = await records_of(assessors, [good, good + ENDS, good])
            assert assessors.restarts == 2
            assert await Readiness(assessors, 60).check()
        finally:
            await assessors.close()
        expected = assessors.known.record
        for record in (found[0], found[2]):
            assert record["decision"] == expected["decision"]
            assert record["probability"] == expected["probability"]
        assert found[1]["status"] == "not_assessed"
        assert (found[1]["reason"], found[1]["probability"]) == ("E_DECODE", None)
        assert found[1]["sha256"] == hashlib.sha256(good + ENDS).hexdigest()
        assert found[1].keys() == expected.keys()

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.usefixtures("_deadly")
def test_an_image_that_takes_for_ever_is_ended() -> None:
    async def run() -> None:
        assessors = Assessors({}, ServeSettings(assessors=1, image_seconds=8.0))
        await assessors.start()
        try:
            good = assessors.known.image
            found = await records_of(assessors, [good + HANGS, good])
        finally:
            await assessors.close()
        assert [record["reason"] for record in found] == ["E_DECODE", None]

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_said_at_the_start() -> None:
    async def run() -> None:
        assessors = Assessors({"threshold": 7}, ServeSettings())
        with pytest.raises(BackendUnavailableError, match="threshold: got 7"):
            await assessors.start()

    asyncio.run(run())


def test_processes_that_end_while_idle_are_no_image_s_fault() -> None:
    """All of them at once, as when the system ends processes for want of memory."""

    async def run() -> None:
        assessors = Assessors({}, ServeSettings(assessors=2))
        await assessors.start()
        try:
            while len(pids := children()) < 2:
                await asyncio.sleep(0.05)
            (good,) = await records_of(assessors, [assessors.known.image])
            await asyncio.sleep(0.2)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            found = await records_of(assessors, [assessors.known.image] * 3)
        finally:
            await assessors.close()
        assert [one["probability"] for one in found] == [good["probability"]] * 3

    asyncio.run(run())


def test_a_process_may_write_no_core_file_and_takes_no_more_memory_than_it_may() -> None:
    """A core file would hold the pixels of a patient's image."""

    async def run() -> str:
        assessors = Assessors({}, ServeSettings(assessors=1, memory_mib=512))
        await assessors.start()
        try:
            (pid,) = children()
            return Path(f"/proc/{pid}/limits").read_text()
        finally:
            await assessors.close()

    limits = {line[:26].strip(): line[26:47].strip() for line in asyncio.run(run()).splitlines()}
    assert limits["Max core file size"] == "0"
    assert int(limits["Max address space"]) <= (6 << 30) + (512 << 20)


def children() -> list[int]:
    """Process ids of the assessors of this process."""
    listed = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "assessors.child"], capture_output=True, text=True
    )
    return [int(line) for line in listed.stdout.split()]
