"""An image that a decoder never ends with: it gets a reason, and its caller no error for ever."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from deepcovid_edge.serve.assessors.pool import Answer, AssessorEndedError, Assessors, Job, Known
from deepcovid_edge.serve.settings import ServeSettings

HANGS = b"it takes for ever"


class _Process:
    has_ended = False

    async def close(self) -> None: ...


class Hanging(Assessors):
    """One process, which takes a while to start again, and hangs at an image.

    Args:
        restart: Seconds until it is there again.
    """

    def __init__(self, restart: float) -> None:
        settings = ServeSettings(assessors=1, image_seconds=0.8, answer_seconds=3.2)
        super().__init__({}, settings)
        self._restart = restart

    async def _started(self) -> Any:
        if self._known:
            await asyncio.sleep(self._restart)
        self._known = Known({}, {}, on_cpu=True, suits=8, image=b"", record={"path": "a"})
        return _Process()

    async def _answers(self, process: Any, jobs: Sequence[Job]) -> list[Answer]:
        if any(job.image == HANGS for job in jobs):
            await asyncio.sleep(self.settings.image_seconds)
            raise AssessorEndedError("no answer")
        return [Answer(b"{}", "negative") for _ in jobs]


def answer_of(restart: float) -> Answer:
    """The answer for an image at which a process hangs."""

    async def run() -> Answer:
        hanging = Hanging(restart)
        await hanging.start()
        try:
            return await hanging.assess("a.png", HANGS)
        finally:
            await hanging.close()

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("restart", [0.0, 1.8], ids=["in time", "in the second try"])
def test_it_gets_a_reason_before_its_caller_is_sent_away(restart: float) -> None:
    """With a slow start the time ends in the second try, and all of it would begin again."""
    answer = answer_of(restart)
    record = json.loads(answer.record)
    assert answer.result == record["reason"] == "E_DECODE"
    assert record["sha256"] == hashlib.sha256(HANGS).hexdigest()


@pytest.mark.parametrize("restart", [2.3, 5.0], ids=["hardly begun", "not begun"])
def test_an_image_that_had_no_second_try_is_not_blamed(restart: float) -> None:
    with pytest.raises(asyncio.TimeoutError):
        answer_of(restart)


def test_both_tries_of_the_largest_group_and_a_restart_fit_into_the_time_for_an_answer() -> None:
    settings = ServeSettings()
    seconds: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        jobs = [Job("a", b"", loop.create_future()) for _ in range(64)]
        hanging = Hanging(0.0)

        async def noted(asked: Any, limit: float) -> list[Answer]:
            asked.close()
            seconds.append(limit / hanging.settings.image_seconds)
            raise asyncio.TimeoutError

        for group in (jobs[:1], jobs[:8], jobs):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(asyncio, "wait_for", noted)
                with pytest.raises(AssessorEndedError):
                    await Assessors._answers(hanging, None, group)  # type: ignore[arg-type]

    asyncio.run(run())
    assert seconds == pytest.approx([1.0, 1.7, 2.0])
    tries = (max(seconds) + seconds[0]) * settings.image_seconds
    assert tries + settings.image_seconds <= settings.answer_seconds
