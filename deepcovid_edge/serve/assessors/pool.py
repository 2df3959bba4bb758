"""The processes that assess, as the server sees them: a queue, and a child process at each core.

A process that ends, or gives no answer in time, is started again. The images that it had are tried
once more, each alone, after a synthetic image; one that ends a process again gets a record that
says so. So an image that no decoder survives costs its own request a few seconds, and others
nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deepcovid_edge.device.child_process import end, ending_with_this
from deepcovid_edge.device.process import cores
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import BackendUnavailableError, one_line
from deepcovid_edge.reasons import Reason
from deepcovid_edge.serve.assessors.frames import head_of, read
from deepcovid_edge.serve.protocol import ImageData
from deepcovid_edge.serve.settings import ServeSettings

START_SECONDS = 300.0
"""Longest time to load a model: an engine is built once, a large network takes minutes."""
_AGAIN_SECONDS = (0.0, 0.5, 2.0, 10.0, 60.0)
"""Before a process is started again, by how many starts have failed since the last that did not."""
_END_TRIES, _END_SECONDS = 5, 2.0
"""How often a task is cancelled, and what it may take to end its process."""
_GATHER_SECONDS = 0.002
"""Longest wait for callers that come back together. Images in groups take less of a core than
single ones, and a caller that has its answer often sends its next image within a millisecond."""
_SHARE_OF_OTHERS, _MOST_OF_OTHERS = 0.1, 1.0
"""Of the time for an image, for each more of its group, and for all of them."""
_LEAST_OF_A_TRY = 0.5
"""Of the time for an image: one whose second try has taken so long is not asked for again."""
_ADDRESS_SPACE = 6 << 30
"""Bytes beside the image files: libraries and model, and an image of the largest size as it is
decoded. As of a process of `screen` with one thread."""
_SEND_BYTES = 1 << 20
"""A group of usual images, which then goes out at once; the system may allow less."""
_MODULE = "deepcovid_edge.serve.assessors.child"


class AssessorEndedError(Exception):
    """Raised when a process has ended, or gave no answer in time.

    Attributes:
        was_asked: Whether it ended while it had images; else that is no image's fault.
    """

    def __init__(self, why: str, *, was_asked: bool = True) -> None:
        super().__init__(why)
        self.was_asked = was_asked


class Answer(NamedTuple):
    """What is answered for an image.

    Attributes:
        record: The record as JSON.
        result: Its decision, or its reason.
    """

    record: bytes
    result: str


@dataclass
class Job:
    """An image that waits for its record.

    Attributes:
        name: What its record calls it.
        image: The image file.
        answer: The answer, once it is there.
        is_alone: Whether it shares a process with no other: one of a group ended it.
        second_try: When it began, by the clock of the loop.
    """

    name: str
    image: ImageData
    answer: asyncio.Future[Answer]
    is_alone: bool = False
    second_try: float | None = None


@dataclass
class _Process:
    """A child and its socket."""

    child: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def has_ended(self) -> bool:
        """Whether it ended before it was asked, which is no image's fault."""
        return self.reader.at_eof() or self.child.poll() is not None

    async def close(self) -> None:
        self.writer.close()
        await asyncio.to_thread(end, self.child)


@dataclass(frozen=True)
class Known:
    """What a process says of its model when it has loaded it.

    Attributes:
        template: What every record has in common.
        facts: What clients check.
        on_cpu: Whether it uses a core, so that one for each is right.
        suits: Images that it takes best at once.
        image: The synthetic image.
        record: Its record.
    """

    template: Mapping[str, Any]
    facts: Mapping[str, Any]
    on_cpu: bool
    suits: int
    image: bytes
    record: Mapping[str, Any]

    def is_right(self, record: Mapping[str, Any]) -> bool:
        """Whether a record of the synthetic image is the known one; its times may differ."""
        return {**record, "timings_ms": None} == {**self.record, "timings_ms": None}


@dataclass
class Assessors:
    """Processes that assess.

    Attributes:
        model: Keywords of `Model` that JSON can hold.
        settings: Of the server.
        restarts: How often a process was started again.
    """

    model: Mapping[str, Any]
    settings: ServeSettings
    restarts: int = 0
    _jobs: deque[Job] = field(default_factory=deque)
    _some: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _known: Known | None = None
    _working: int = 0
    """Images that processes have."""
    _most: int = 0
    """Images that were here at once lately, waiting or with a process: about as many callers."""
    _gathering: list[tuple[int, asyncio.Future[bool]]] = field(default_factory=list)
    """How many images are waited for, each by a process that has none."""

    @property
    def known(self) -> Known:
        """What is known of the model, after `start`."""
        assert self._known, "not started"
        return self._known

    @property
    def count(self) -> int:
        """How many processes there are."""
        if self.settings.assessors:
            return self.settings.assessors
        return cores() if self.known.on_cpu else 1

    async def start(self) -> None:
        """Start the processes.

        Raises:
            BackendUnavailableError: The first cannot load the model.
        """
        first = await self._started()
        count = self.count
        self._tasks = [
            asyncio.create_task(self._work(first if number == 0 else None))
            for number in range(count)
        ]
        await asyncio.sleep(0)  # a task that has not begun does not end its process

    async def close(self) -> None:
        """End the processes."""
        await end_tasks(self._tasks)

    async def assess(self, name: str, image: ImageData, *, is_next: bool = False) -> Answer:
        """The record of an image.

        Args:
            name: What the record calls it.
            image: The image file.
            is_next: Whether it goes before the images that wait.

        Raises:
            TimeoutError: There is none in `answer_seconds` (`asyncio.TimeoutError`).
        """
        loop = asyncio.get_running_loop()
        job = Job(name, image, loop.create_future())
        timer = loop.call_later(self.settings.answer_seconds, self._too_late, job)
        if is_next:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)
        self._arrived()
        try:
            return await job.answer
        finally:
            timer.cancel()

    async def _work(self, process: _Process | None) -> None:
        failures = 0
        try:
            while True:
                if process is None:
                    process = await self._again(failures)
                    failures = 0 if process else failures + 1
                    continue
                jobs = await self._next()
                self._working += len(jobs)
                try:
                    await self._assess(process, jobs)
                except AssessorEndedError as error:
                    log("assessor ended", why=str(error), images=len(jobs))
                    self.restarts += 1
                    self._take_back(jobs, are_suspect=error.was_asked)
                    await process.close()
                    process = None
                finally:
                    self._working -= len(jobs)
        finally:
            if process:
                await process.close()

    def _arrived(self) -> None:
        """Wake who waits for images."""
        waiting = len(self._jobs)
        self._most = max(self._most, waiting + self._working)
        self._some.set()
        for wanted, enough in self._gathering:
            if waiting >= wanted and not enough.done():
                enough.set_result(True)

    async def _gather(self) -> None:
        """Wait a moment for the images of callers that come back together."""
        wanted = min(self._share, self._most - self._working)
        if len(self._jobs) >= wanted:
            return
        loop = asyncio.get_running_loop()
        enough = loop.create_future()
        timer = loop.call_later(_GATHER_SECONDS, _give_up, enough)
        self._gathering.append((wanted, enough))
        try:
            if not await enough:  # some stay away
                self._most = len(self._jobs) + self._working
        finally:
            timer.cancel()
            self._gathering.remove((wanted, enough))

    @property
    def _share(self) -> int:
        """Images for a process: its part of those of all callers, up to the most it takes."""
        most = self.settings.group or self.known.suits
        return max(1, min(most, -(-self._most // max(1, len(self._tasks)))))

    async def _again(self, failures: int) -> _Process | None:
        await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
        try:
            return await self._started()
        except (BackendUnavailableError, OSError) as error:
            log("assessor cannot start", why=one_line(error))
            return None

    async def _next(self) -> list[Job]:
        """The next images of the queue: this process's share of what is here."""
        has_gathered = False
        while True:
            while self._jobs and self._jobs[0].answer.done():  # nobody waits any more
                self._jobs.popleft()
            if not self._jobs:
                has_gathered = False
                self._some.clear()
                await self._some.wait()
            elif has_gathered or self._jobs[0].is_alone:
                break
            else:
                await self._gather()
                has_gathered = True
        jobs = [self._jobs.popleft()]
        share = self._share
        while not jobs[0].is_alone and len(jobs) < share and self._jobs:
            if self._jobs[0].is_alone:
                break
            job = self._jobs.popleft()
            if not job.answer.done():
                jobs.append(job)
        return jobs

    async def _assess(self, process: _Process, jobs: Sequence[Job]) -> None:
        if process.has_ended:
            raise AssessorEndedError("it ended before it was asked", was_asked=False)
        if jobs[0].is_alone:  # it is suspected: others may have been ended with its process
            await self._check(process)
            jobs[0].second_try = asyncio.get_running_loop().time()
        answers = await self._answers(process, jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)

    async def _check(self, process: _Process) -> None:
        """Have a process assess the synthetic image, so that its end is no accident later."""
        known = self.known
        job = Job(str(known.record["path"]), known.image, asyncio.Future())
        try:
            await self._answers(process, [job])
        except AssessorEndedError as error:
            raise AssessorEndedError(str(error), was_asked=False) from error

    async def _answers(self, process: _Process, jobs: Sequence[Job]) -> list[Answer]:
        # One image of a group may take the whole time; those beside it are not to wait for long.
        others = min(_MOST_OF_OTHERS, _SHARE_OF_OTHERS * (len(jobs) - 1))
        seconds = self.settings.image_seconds * (1 + others)
        try:
            return await asyncio.wait_for(_asked(process, jobs), seconds)
        except asyncio.TimeoutError:
            raise AssessorEndedError(f"no answer in {seconds:g} s") from None
        except (OSError, EOFError, ValueError):
            code = await asyncio.to_thread(_code_of, process.child)
            raise AssessorEndedError(f"it ended with code {code}") from None

    def _take_back(self, jobs: Sequence[Job], *, are_suspect: bool) -> None:
        """What becomes of the images of a process that has ended."""
        for job in reversed(jobs):
            if job.answer.done():
                continue
            if job.is_alone and are_suspect:
                job.answer.set_result(self._ends_every_process(job))
            else:
                job.is_alone = job.is_alone or are_suspect
                self._jobs.appendleft(job)
                self._some.set()

    def _too_late(self, job: Job) -> None:
        """End the wait for a record: with a reason after a long second try, else with an error.

        Whoever gets the error asks again, and all of it begins again. So an image that has nearly
        had its second try is answered.
        """
        if job.answer.done():
            return
        least = _LEAST_OF_A_TRY * self.settings.image_seconds
        now = asyncio.get_running_loop().time()
        if job.second_try is not None and now - job.second_try >= least:
            job.answer.set_result(self._ends_every_process(job))
        else:
            job.answer.set_exception(asyncio.TimeoutError())

    def _ends_every_process(self, job: Job) -> Answer:
        import hashlib

        record = {
            **self.known.template,
            "path": job.name,
            "sha256": hashlib.sha256(job.image).hexdigest(),
            "reason": Reason.DECODE.code,
            "message": Reason.DECODE.sentence,
        }
        return Answer(json.dumps(record).encode(), Reason.DECODE.code)

    async def _started(self) -> _Process:
        """A process that has loaded the model.

        Raises:
            BackendUnavailableError: It cannot, or what it loaded is not what the first one did.
        """
        ours, its = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        with its:
            most = _ADDRESS_SPACE + (self.settings.memory_mib << 20)
            words = [str(its.fileno()), json.dumps(self.model), str(most)]
            command = [sys.executable, "-m", _MODULE, *words]
            child = subprocess.Popen(
                ending_with_this(command),
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        process = _Process(child, *await asyncio.open_connection(sock=ours))
        try:
            frame = await asyncio.wait_for(read(process.reader), START_SECONDS)
            self._known = self._checked(frame)
        except BaseException as error:
            await process.close()
            if isinstance(error, BackendUnavailableError) or not isinstance(error, Exception):
                raise
            raise BackendUnavailableError(f"assessor: it cannot start: {error!r}") from error
        return process

    def _checked(self, frame: Sequence[bytes]) -> Known:
        """What the first process said, if this process says the same in its first frame.

        Raises:
            BackendUnavailableError: The process cannot load the model, loaded another one, or does
                not give the record of the synthetic image that the first one gave.
        """
        values = json.loads(frame[0])
        if "failed" in values:
            raise BackendUnavailableError(values["failed"])
        known = Known(**values, image=frame[1], record=json.loads(frame[2]))
        first = self._known or known
        if (known.facts, known.template) != (first.facts, first.template):
            raise BackendUnavailableError(
                "assessor: the model, or how it decides, has changed since the server started: "
                "start the server again"
            )
        if not first.is_right(known.record):
            raise BackendUnavailableError(
                "assessor: the synthetic image has another record than when the server started: "
                "check memory and driver, and start the server again"
            )
        return first


async def end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end, for a while.

    `asyncio.wait_for` loses a cancellation that comes with its result, up to Python 3.11
    (python/cpython#86296), so a task may have to be cancelled again.

    Args:
        tasks: Each runs until it is cancelled.
    """
    open_ones = set(tasks)
    for _ in range(_END_TRIES):
        for task in open_ones:
            task.cancel()
        if open_ones:
            _, open_ones = await asyncio.wait(open_ones, timeout=_END_SECONDS)


def _give_up(enough: asyncio.Future[bool]) -> None:
    if not enough.done():
        enough.set_result(False)


async def _asked(process: _Process, jobs: Sequence[Job]) -> list[Answer]:
    parts = [part for job in jobs for part in (job.name.encode(), job.image)]
    process.writer.writelines((head_of(parts), *parts))
    await process.writer.drain()
    found = await read(process.reader)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [Answer(record, result.decode()) for record, result in pairs]


def _code_of(child: subprocess.Popen[bytes], seconds: float = 5.0) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
