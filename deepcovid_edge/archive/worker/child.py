"""The process that reads and classifies images: whatever one of them does, it ends this alone.

Its argument is the file descriptor of a `Journal`. The first line on standard input are its
settings; every further one is a request. Lines are JSON in both directions. Its first answer says
that the model is loaded, or why it is not; every further one has records. A request that has come
by the time that the images of the one before are begun is begun at once, so that no core waits.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TextIO, cast

from deepcovid_edge.archive.images.addresses import (
    NumberedPath,
    RemoteImage,
    close_stores,
    is_remote,
)
from deepcovid_edge.archive.stamp import plain_facts
from deepcovid_edge.archive.worker.journal import Journal
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.device.process import limit_address_space, set_up, write_no_core_file
from deepcovid_edge.errors import DeepCovidEdgeError, one_line
from deepcovid_edge.imaging.files import ImageSource
from deepcovid_edge.imaging.radiograph import DicomFacts
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.duplicates import Duplicates, uid_number
from deepcovid_edge.pipeline.pipeline import predict_groups
from deepcovid_edge.pipeline.reader import ImageReader, PreparedImage, Reading


@dataclass(frozen=True)
class Header:
    """What the DICOM header of an image states.

    Attributes:
        facts: What is kept of it.
        uid: The UID by which duplicates are found; empty without model input.
    """

    facts: DicomFacts
    uid: str


@dataclass(frozen=True)
class JournalledReader(ImageReader):
    """Reads images, notes which one it reads, and keeps what their headers state.

    Attributes:
        journal: Where it notes.
        headers: Number of an image -> what its DICOM header states.
    """

    journal: Journal | None = None
    headers: dict[int, Header] = field(default_factory=dict)

    def read(self, source: ImageSource) -> PreparedImage:
        """Read and prepare an image."""
        assert self.journal
        number = cast("RemoteImage | NumberedPath", source).number
        with self.journal.reading(number):
            image = super().read(source)
        if image.dicom is not None:
            self.headers[number] = Header(image.dicom, image.uid)
        return image


def main() -> None:
    """Answer requests until standard input ends."""
    set_up()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C does
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    write_no_core_file()
    settings = json.loads(sys.stdin.readline())
    if settings["memory"] is not None:
        limit_address_space(settings["memory"])
    try:
        with Model(**settings["model"]) as model:
            _answer(answers, {"ready": plain_facts(model.facts), "ood": model.settings.ood})
            _serve(model, Journal(int(sys.argv[1])), answers)
    except (DeepCovidEdgeError, OSError, MemoryError) as error:
        _answer(answers, {"failed": type(error).__name__, "why": str(error) or one_line(error)})
        sys.exit(1)
    finally:
        close_stores()


class _Requests:
    """Requests in their order. A thread of its own takes them, so that sending one never waits."""

    def __init__(self, stream: TextIO) -> None:
        self._came = queue.SimpleQueue[Mapping[str, Any] | None]()
        threading.Thread(target=self._take, args=(stream,), daemon=True).start()

    def _take(self, stream: TextIO) -> None:
        # Where memory lacks, or the parent has ended in the middle of a line, the child ends.
        with suppress(MemoryError, ValueError):
            for line in stream:
                self._came.put(json.loads(line))
        self._came.put(None)

    def wait(self) -> Mapping[str, Any] | None:
        """The next one; None behind the last."""
        return self._came.get()

    def at_once(self) -> Mapping[str, Any] | None:
        """The next one if it has come."""
        if self._came.empty():
            return None
        if (request := self._came.get()) is None:
            self._came.put(None)
        return request


class _OfTheParent(Duplicates):
    """Leaves duplicates to the parent: it has all images of a shard, this process may not."""

    def warned(self, record: Prediction, uid: str) -> Prediction:
        """The record as it is."""
        return record

    def settled(self, record: Prediction) -> Prediction:
        """The record as it is."""
        return record


def _serve(model: Model, journal: Journal, answers: TextIO) -> None:
    requests = _Requests(sys.stdin)
    while (request := requests.wait()) is not None:
        for rows in _rows(model, journal, request, requests):
            _answer(answers, {"rows": rows})


def _rows(
    model: Model, journal: Journal, request: Mapping[str, Any], requests: _Requests
) -> Iterator[list[list[Any]]]:
    """The records of images, as values, in groups that are ready together.

    Args:
        model: The model.
        journal: Where it is noted which image is read.
        request: The first request.
        requests: Where the next ones are, which are begun with it if they have come.
    """
    usual = model.reader()
    reader = JournalledReader(usual.spec, keeps_facts=True, sends=usual.sends, journal=journal)
    numbers = deque[int]()

    def sources() -> Iterator[ImageSource]:
        current: Mapping[str, Any] | None = request
        while current is not None:
            for path, number in zip(current["paths"], current["numbers"], strict=True):
                numbers.append(number)
                yield _source(path, number)
            current = None if request["workers"] else requests.at_once()

    reading = Reading(sources(), reader)
    settings = model.settings
    if request["workers"]:
        settings = replace(settings, workers=request["workers"])
    unsettled = _OfTheParent()
    groups = predict_groups(reading, model.backend, model.facts, settings, duplicates=unsettled)
    with closing(groups):
        for records in groups:
            own = [numbers.popleft() for _ in records]
            yield [
                _row(number, record, reader.headers.pop(number, None))
                for number, record in zip(own, records, strict=True)
            ]


def _source(path: str, number: int) -> ImageSource:
    if is_remote(path):
        return cast("ImageSource", RemoteImage(path, number))
    return NumberedPath.of(path, number)


def _row(number: int, record: Prediction, header: Header | None) -> list[Any]:
    facts = header.facts if header else None
    return [
        number,
        record.sha256,
        record.reason,
        record.message,
        record.warnings,
        record.probabilities and [*record.probabilities.values()],
        record.timings_ms,
        uid_number(facts.sop_instance_uid) if facts and facts.sop_instance_uid else None,
        facts.month if facts else "",
        facts.device if facts else "",
        header.uid if header else "",
    ]


def _answer(stream: TextIO, values: dict[str, Any]) -> None:
    stream.write(json.dumps(values) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
