"""A child process that reads and classifies images, as its parent sees it.

Every format is decoded in that process, whose memory is limited, and whose images are watched. An
image that crashes it, or is not read within its time, costs the process and not the run: it is
tried once more alone, and then it gets a reason instead of a result.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
from deepcovid_edge.files import Closing
from deepcovid_edge.imaging.files import read_bytes
from deepcovid_edge.pipeline.duplicates import Duplicates
from deepcovid_edge.reasons import Reason

START_SECONDS = 300.0
"""Longest time to load a model: an engine is built once, a large network takes minutes."""
_BLOCK = 1 << 20
"""Bytes of answers that wait while a shard is written; some 2,000 records."""
_REQUESTS = 2
"""Requests that a child has at once: that whose records are waited for, and the next."""
_LOOK_SECONDS = 0.5
_MOST_DEATHS = 5
"""Ends of the child with neither a record nor a cause between them: it is not the images then."""


_BASE_BYTES = 4 << 30
"""Address space of a child with its libraries and its model."""
_THREAD_BYTES = 2 << 30
"""More of it for each thread: an image of the largest size, and its copies."""
IMAGE_SECONDS = 120.0


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker runs.

    Attributes:
        model: Keywords of `Model`.
        threads: Of the child.
        is_limited: Whether its memory is limited; drivers of GPUs reserve more than there is.
        folder: Folder in which relative paths begin.
        image_seconds: Longest time for reading one image, and for a batch of the network.
    """

    model: Mapping[str, Any]
    threads: int
    is_limited: bool = True
    folder: str = "."
    image_seconds: float = IMAGE_SECONDS


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

    Raises:
        DeepCovidEdgeError: The model cannot be loaded, see `Model`.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.deaths = 0
        self._fruitless = 0
        self._numbered = 0
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

    def assess_each(
        self,
        requests: Iterable[Sequence[ListedImage]],
        progress: Callable[[int], object] = lambda _: None,
    ) -> Generator[list[ScreenedImage]]:
        """The records of each request's images, in their order; the next request is begun by then.

        Args:
            requests: Images each; one is taken ahead.
            progress: Called with the number of records since the last call.

        Raises:
            WorkerFailedError: The child ends whatever it is given, or loads another model now.
            DeepCovidEdgeError: The model met an error that is of no image.
        """
        coming, begun = iter(requests), deque[_Request]()
        try:
            while True:
                try:
                    yield from self._assessed(coming, begun, progress)
                    return
                except _WorkerDiedError as error:
                    self._end_child()
                    for number in self._suspects(str(error)):
                        self._settle_alone(begun, number, progress)
        except BaseException:  # no later request may get the answers of these
            self._end_child()
            raise

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

    def _assessed(
        self,
        coming: Iterator[Sequence[ListedImage]],
        begun: deque[_Request],
        progress: Callable[[int], object],
    ) -> Iterator[list[ScreenedImage]]:
        """What `assess_each` gives, as long as the child lives.

        Args:
            coming: Requests that nothing is known of yet.
            begun: Those that the child has, or had.
            progress: As there.
        """
        child = self._started()
        for request in begun:
            child.ask(request.left())
        while True:
            while len(begun) < _REQUESTS and (images := next(coming, None)) is not None:
                begun.append(_Request(images, self._numbered))
                self._numbered += len(images)
                child.ask(begun[-1].left())
            if not begun:
                return
            while not begun[0].is_done:
                rows = child.rows()
                for row in rows:
                    (request,) = (one for one in begun if row[0] in one)
                    request.add(row[0], self._screened(request.image(row[0]), row), row[-1])
                self._fruitless = 0
                progress(len(rows))
            yield begun.popleft().records()

    def _settle_alone(
        self, begun: Iterable[_Request], number: int, progress: Callable[[int], object]
    ) -> None:
        """Find the record of an image that may have ended the child, with no other image in it."""
        for request in begun:
            if number in request and number not in request.found:
                request.add(number, *self._alone(request.image(number), number))
                progress(1)

    def _alone(self, image: ListedImage, number: int) -> tuple[ScreenedImage, str]:
        """The record of an image, and its UID, from a child that has no other image."""
        try:
            child = self._started()
            child.ask({number: image.path}, workers=1)
            (row,) = child.rows()
            self._fruitless = 0
            return self._screened(image, row), row[-1]
        except _WorkerDiedError as error:
            self._end_child()
            self._suspects(str(error), alone=True)
            return self._without_result(image, str(error)), ""

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
        _, sha256, reason, message, warnings, shares, timings, uid_hash, month, device, _ = row
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
        return ScreenedImage(record, image.id, uid_hash, month or image.month, _clean(device))

    def _without_result(self, image: ListedImage, why: str) -> ScreenedImage:
        sha256 = None
        if not is_remote(image.path):
            with suppress(DeepCovidEdgeError):
                sha256 = read_bytes(Path(self.settings.folder, image.path)).sha256
        error = NotAssessedError(Reason.DECODE, why)
        record = Prediction(image.path, self.facts, sha256, error.reason.code, str(error))
        return ScreenedImage(record, image.id, None, image.month)


class _Request:
    """Images that are asked for together, and their records so far.

    Args:
        images: The images.
        first: Number of the first one, among all images of a worker.
    """

    def __init__(self, images: Sequence[ListedImage], first: int) -> None:
        self._images, self._numbers = images, range(first, first + len(images))
        self.found: dict[int, ScreenedImage] = {}
        self._uids: dict[int, str] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def image(self, number: int) -> ListedImage:
        """The image of a number."""
        return self._images[number - self._numbers.start]

    def add(self, number: int, image: ScreenedImage, uid: str) -> None:
        """Keep the record of an image, and the UID by which duplicates are found."""
        self.found[number], self._uids[number] = image, uid

    @property
    def is_done(self) -> bool:
        """Whether every image has its record."""
        return len(self.found) == len(self._numbers)

    def left(self) -> dict[int, str]:
        """Number -> path of each image without a record."""
        return {
            number: image.path
            for number, image in zip(self._numbers, self._images, strict=True)
            if number not in self.found
        }

    def records(self) -> list[ScreenedImage]:
        """The records, in the order of the images, with duplicates among them settled.

        That is done here: a child that took the place of another one knows only what was left.
        """
        duplicates = Duplicates()

        def settled(number: int) -> ScreenedImage:
            image = self.found[number]
            record = duplicates.warned(image.record, self._uids[number])
            return replace(image, record=duplicates.settled(record))

        return [settled(number) for number in self._numbers]


class _Child:
    """The child process; it may begin a request before it has answered the one before."""

    def __init__(self, settings: WorkerSettings, journal: Journal) -> None:
        self._image_seconds, self._journal = settings.image_seconds, journal
        path = json.dumps([os.path.abspath(place or ".") for place in sys.path])  # noqa: PTH100
        self._process = subprocess.Popen(
            ending_with_this([sys.executable, "-c", _PROGRAM, path, str(journal.handle)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(journal.handle,),
            start_new_session=True,
            cwd=settings.folder,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        os.set_blocking(self._process.stdin.fileno(), False)
        with suppress(OSError):  # more than this user may have; the child waits sooner then
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _BLOCK)
        self._rest = b""
        most = _BASE_BYTES + settings.threads * _THREAD_BYTES
        memory = most if settings.is_limited else None
        try:
            self._send({"model": {**settings.model, "workers": settings.threads}, "memory": memory})
            self.ready = self._answer(START_SECONDS)
        except _WorkerDiedError as error:
            self.close()
            raise WorkerFailedError(f"model: could not be loaded: {error}") from error
        except BaseException:
            self.close()
            raise

    def ask(self, paths: Mapping[int, str], workers: int | None = None) -> None:
        """Have images assessed behind those that were asked for before.

        Args:
            paths: Number of each -> its path.
            workers: Threads for them; None for as many as the child has.

        Raises:
            _WorkerDiedError: The child ended, or an image took too long.
        """
        if paths:
            numbers = [*paths]
            self._send({"paths": [*paths.values()], "numbers": numbers, "workers": workers})

    def rows(self) -> list[list[Any]]:
        """The next records, as the values of `worker.child`.

        Raises:
            _WorkerDiedError: The child ended, or an image took too long.
            DeepCovidEdgeError: The model met an error.
        """
        rows: list[list[Any]] = self._answer(None)["rows"]
        return rows

    def close(self) -> None:
        """End it."""
        end(self._process)

    def _send(self, values: Mapping[str, Any]) -> None:
        """Send a line; one that the child does not take is waited for as an answer is."""
        assert self._process.stdin
        handle = self._process.stdin.fileno()
        left = memoryview(json.dumps(values).encode() + b"\n")
        began = time.monotonic()
        try:
            while left:
                if select.select([], [handle], [], _LOOK_SECONDS)[1]:
                    left = left[os.write(handle, left) :]
                    began = time.monotonic()
                else:
                    self._check_time(time.monotonic() - began, None)
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
        limit = self._image_seconds
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
