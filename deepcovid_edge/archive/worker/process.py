"""A child process that reads and classifies images, as its parent sees it.

Every format is decoded in that process, whose memory is limited, and whose images are watched. An
image that crashes it, or is not read within its time, costs the process and not the run: it is
tried once more alone, and then it gets a reason instead of a result.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcovid_edge.archive.images.addresses import is_remote
from deepcovid_edge.archive.images.image_list import ListedImage
from deepcovid_edge.archive.shards import ScreenedImage
from deepcovid_edge.archive.stamp import facts_of
from deepcovid_edge.archive.worker.journal import Journal
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.device.child_process import end, ending_with_this
from deepcovid_edge.errors import DeepCovidEdgeError, NotAssessedError, OutputError, of_kind
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.reasons import Reason

START_SECONDS = 300.0
"""Longest time to load a model: an engine is built once, a large network takes minutes."""
_BLOCK = 1 << 20
_LOOK_SECONDS = 0.5
_MOST_DEATHS = 5
"""Ends of the child with neither a record nor a cause between them: it is not the images then."""


@dataclass(frozen=True)
class WorkerLimits:
    """What reading images may take.

    Attributes:
        image_seconds: Longest time for reading one image, and for a batch of the network.
        base_bytes: Address space of a child with its libraries and its model, bytes.
        thread_bytes: More of it for each thread: an image of the largest size, and its copies.
    """

    image_seconds: float = 120.0
    base_bytes: int = 4 << 30
    thread_bytes: int = 2 << 30

    def memory(self, threads: int) -> int:
        """Address space of a child, bytes."""
        return self.base_bytes + threads * self.thread_bytes


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker runs.

    Attributes:
        model: Keywords of `Model`.
        threads: Of the child.
        is_limited: Whether its memory is limited; drivers of GPUs reserve more than there is.
        limits: What reading images may take.
        folder: Folder in which relative paths begin.
    """

    model: Mapping[str, Any]
    threads: int
    is_limited: bool = True
    folder: str = "."
    limits: WorkerLimits = field(default_factory=WorkerLimits)


class WorkerFailedError(OutputError):
    """Raised when the model cannot be loaded or has changed, or the child ends whatever it gets."""


class _WorkerDiedError(DeepCovidEdgeError):
    """Raised when the child ended, or was ended."""


class ImageWorker(Closing):
    """Reads and classifies images in a child process. The thread that makes it must stay.

    Attributes:
        facts: What every record has in common.
        ood: `reject` or `warn`.
        deaths: How often the child ended before its time.

    Args:
        settings: The model and its limits.

    Raises:
        DeepCovidEdgeError: The model cannot be loaded, see `Model`.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.deaths = 0
        self._fruitless = 0
        self._journal = Journal()
        self._child: _Child | None = None
        self._first_ready: Mapping[str, Any] | None = None
        try:
            ready = self._started().ready
        except BaseException:
            self.close()
            raise
        self.facts: RunFacts = facts_of(ready["ready"])
        self.ood = str(ready["ood"])

    def assess(
        self, images: Sequence[ListedImage], progress: Callable[[int], object] = lambda _: None
    ) -> list[ScreenedImage]:
        """The records of images, in their order.

        Args:
            images: The images.
            progress: Called with the number of records since the last call.

        Raises:
            WorkerFailedError: The child ends whatever it is given, or loads another model now.
            DeepCovidEdgeError: The model met an error that is of no image.
        """
        found: dict[int, ScreenedImage] = {}
        while left := [number for number in range(len(images)) if number not in found]:
            try:
                for screened in self._asked(images, left):
                    found.update(screened)
                    progress(len(screened))
                    self._fruitless = 0
            except _WorkerDiedError as error:
                for number in self._suspects(str(error)):
                    if number not in found:
                        found[number] = self._alone(images, number)
                        progress(1)
        return [found[number] for number in range(len(images))]

    def close(self) -> None:
        """End the child."""
        self._end_child()
        self._journal.close()

    def _end_child(self) -> None:
        if self._child:
            self._child.close()
            self._child = None

    def _started(self) -> _Child:
        if self._child is None:
            self._journal.clear()
            self._child = _Child(self.settings, self._journal)
            self._check_model(self._child.ready)
        return self._child

    def _check_model(self, ready: Mapping[str, Any]) -> None:
        """Check that a child has loaded the model of the children before it."""
        if self._first_ready not in (None, ready):
            raise WorkerFailedError(
                "model: has changed since the run began: put the first one back, and the same "
                "command goes on; or take another folder for the new one"
            )
        self._first_ready = ready

    def _asked(
        self, images: Sequence[ListedImage], numbers: Sequence[int], workers: int | None = None
    ) -> Iterator[dict[int, ScreenedImage]]:
        paths = [images[number].path for number in numbers]
        request = {"paths": paths, "numbers": [*numbers], "workers": workers}
        try:
            for answer in self._started().answers(request):
                yield {row[0]: self._screened(images[row[0]], row) for row in answer["rows"]}
        except BaseException:  # no later request may get the answers of this one
            self._end_child()
            raise

    def _alone(self, images: Sequence[ListedImage], number: int) -> ScreenedImage:
        """The record of an image that may have ended the child: tried once more, with no other."""
        try:
            (screened,) = self._asked(images, [number], 1)
            self._fruitless = 0
            return screened[number]
        except _WorkerDiedError as error:
            self._suspects(str(error), alone=True)
            return self._without_result(images[number], str(error))

    def _suspects(self, why: str, *, alone: bool = False) -> list[int]:
        """The images that the child was reading when it ended.

        Args:
            why: It ended.
            alone: It had one image only. If it was reading it, the cause is found: that is as
                good as a record.

        Raises:
            WorkerFailedError: It has ended too often.
        """
        suspects = [one.number for one in self._journal.under_way()]
        self.deaths += 1
        self._fruitless = 0 if alone and suspects else self._fruitless + 1
        if self._fruitless >= _MOST_DEATHS:
            raise WorkerFailedError(
                f"worker: {why}, {self._fruitless} times without a record: check the model, the "
                "memory and the driver; the same command goes on"
            )
        return suspects

    def _screened(self, image: ListedImage, row: Sequence[Any]) -> ScreenedImage:
        _, sha256, reason, message, warnings, shares, timings, uid, month, device = row
        record = Prediction(
            image.path,
            self.facts,
            sha256,
            reason,
            message and _clean(message),
            tuple(warnings),
            dict(zip(self.facts.classes, shares, strict=True)) if shares else None,
            timings,
        )
        return ScreenedImage(record, image.id, uid, month or image.month, _clean(device))

    def _without_result(self, image: ListedImage, why: str) -> ScreenedImage:
        sha256 = None
        if not is_remote(image.path):
            with suppress(DeepCovidEdgeError):
                sha256 = file_sha256(Path(image.path))
        error = NotAssessedError(Reason.DECODE, why)
        record = Prediction(image.path, self.facts, sha256, error.reason.code, str(error))
        return ScreenedImage(record, image.id, None, image.month)


class _Child:
    """The child process, which answers one request after another."""

    def __init__(self, settings: WorkerSettings, journal: Journal) -> None:
        self._limits, self._journal = settings.limits, journal
        path = json.dumps([os.path.abspath(place or ".") for place in sys.path])  # noqa: PTH100
        self._process = subprocess.Popen(
            ending_with_this([sys.executable, "-c", _PROGRAM, path, str(journal.handle)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(journal.handle,),
            start_new_session=True,
            cwd=settings.folder,
        )
        self._rest = b""
        memory = settings.limits.memory(settings.threads) if settings.is_limited else None
        try:
            self._send({"model": {**settings.model, "workers": settings.threads}, "memory": memory})
            self.ready = self._answer(START_SECONDS)
        except _WorkerDiedError as error:
            self.close()
            raise WorkerFailedError(f"model: could not be loaded: {error}") from error
        except BaseException:
            self.close()
            raise

    def answers(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Ask, and pass on the answers up to the last.

        Raises:
            _WorkerDiedError: The child ended, or an image took too long.
            DeepCovidEdgeError: The model met an error.
        """
        self._send(request)
        while "done" not in (answer := self._answer(None)):
            yield answer

    def close(self) -> None:
        """End it."""
        end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a request that nobody reads any more
                stream.close()  # type: ignore[union-attr]

    def _send(self, values: Mapping[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _WorkerDiedError(self._end_in_words()) from error

    def _answer(self, seconds: float | None) -> dict[str, Any]:
        """The next answer, unless it is an error, which is raised."""
        answer = self._line(seconds)
        if "failed" in answer:
            why = str(answer["why"])
            raise of_kind(answer["failed"], why) or WorkerFailedError(f"model: {why}")
        return answer

    def _line(self, seconds: float | None) -> dict[str, Any]:
        """The next line; without a time it is waited for as long as no image takes too long."""
        assert self._process.stdout
        handle = self._process.stdout.fileno()
        started = time.monotonic()
        while b"\n" not in self._rest:
            if select.select([handle], [], [], _LOOK_SECONDS)[0]:
                block = os.read(handle, _BLOCK)
                if not block:
                    raise _WorkerDiedError(self._end_in_words())
                self._rest += block
                continue
            self._check_time(time.monotonic() - started, seconds)
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _check_time(self, waited: float, seconds: float | None) -> None:
        if seconds is not None:
            if waited > seconds:
                raise _WorkerDiedError(f"no answer in {seconds:g} s")
            return
        limit = self._limits.image_seconds
        slow = any(one.seconds > limit for one in self._journal.under_way())
        if slow or waited > 2 * limit:  # the network may hang too
            raise _WorkerDiedError(f"took longer than {limit:g} s")

    def _end_in_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return f"the decoder died ({self._process.wait(5)})"
        return "the decoder answers no more"


_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); del sys.argv[1]; "
    "from deepcovid_edge.archive.worker.child import main; main()"
)


def _clean(text: str) -> str:
    """Text that Parquet holds: names may have bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()
