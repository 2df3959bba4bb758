"""What a process says of its model when it starts, and starts again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from scripted_assessor import ENDS

from deepcovid_edge.errors import BackendUnavailableError
from deepcovid_edge.serve.assessors import pool
from deepcovid_edge.serve.assessors.pool import Assessors
from deepcovid_edge.serve.settings import ServeSettings

TESTS = Path(__file__).parents[2]
KNOWN: dict[str, Any] = {
    "template": {"limits": {"threshold": 0.5}},
    "facts": {"model_sha256": "ab" * 32},
    "on_cpu": True,
    "suits": 8,
}


class Script:
    """What the processes say, which a test may change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.assessors = Assessors({"script": str(path)}, ServeSettings(assessors=1))

    def write(self, *lines: object) -> None:
        """The parts of a process's first frame: texts, or values as JSON."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self._path.write_text("\n".join(texts))

    def write_known(self, **changed: object) -> None:
        """A first frame as it should be, with other facts."""
        self.write({**KNOWN, **changed}, "image", {"path": "synthetic.png"})

    def run(self, steps: Callable[[], Awaitable[None]]) -> None:
        """Run steps after the start of the processes."""

        async def all_steps() -> None:
            await self.assessors.start()
            try:
                await steps()
            finally:
                await self.assessors.close()

        asyncio.run(asyncio.wait_for(all_steps(), 30))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(pool, "_MODULE", "scripted_assessor")
    monkeypatch.setattr(pool, "_AGAIN_SECONDS", (0.0, 0.05))
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), known]))
    return Script(tmp_path / "script")


BROKEN: list[list[object]] = [
    [],
    ["no JSON"],
    ["7"],
    [{}],
    [KNOWN],
    [{**KNOWN, "more": 1}, "image", {}],
    [KNOWN, "image", "no JSON"],
]


@pytest.mark.parametrize("lines", BROKEN, ids=str)
def test_a_process_that_does_not_say_what_it_must_cannot_start(
    script: Script, lines: list[object]
) -> None:
    async def nothing() -> None: ...

    script.write(*lines)
    with pytest.raises(BackendUnavailableError, match="assessor: it cannot start"):
        script.run(nothing)


def test_a_worker_goes_on_after_a_start_that_failed(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(pool, "log", lambda event, **_: events.append(event))

    async def steps() -> None:
        script.write("no JSON")
        lost = asyncio.create_task(script.assessors.assess("a", ENDS))
        while events.count("assessor cannot start") < 2:
            await asyncio.sleep(0.05)
        assert not lost.done()
        script.write_known()
        assert (await script.assessors.assess("b", b"image")).result == "negative"
        lost.cancel()

    script.write_known()
    script.run(steps)


def test_a_process_with_another_probability_is_not_used_and_the_first_one_stays_the_norm(
    script: Script,
) -> None:
    """Times alone may differ."""
    record = {"path": "synthetic.png", "probability": 0.7, "timings_ms": {"read": 1.0}}

    async def steps() -> None:
        script.write(KNOWN, "image", {**record, "probability": 0.4})
        with pytest.raises(BackendUnavailableError, match="synthetic image has another record"):
            await script.assessors._started()
        assert script.assessors.known.record == record
        script.write(KNOWN, "image", {**record, "timings_ms": {"read": 2.0}})
        await (await script.assessors._started()).close()
        assert script.assessors.known.record == record

    script.write(KNOWN, "image", record)
    script.run(steps)


@pytest.mark.parametrize(
    "changed",
    [{"facts": {"model_sha256": "cd" * 32}}, {"template": {"limits": {"threshold": 0.6}}}],
    ids=["model", "threshold"],
)
def test_a_process_with_another_model_or_threshold_is_not_used(
    script: Script, changed: dict[str, Any]
) -> None:
    async def steps() -> None:
        script.write_known(**changed)
        with pytest.raises(BackendUnavailableError, match="has changed since the server started"):
            await script.assessors._started()
        known = script.assessors.known
        assert (known.facts, known.template) == (KNOWN["facts"], KNOWN["template"])

    script.write_known()
    script.run(steps)
