"""The process that reads and classifies images: whatever one of them does, it ends this alone.

Its argument is the file descriptor of a `Journal`. The first line on standard input are its
settings; every further one is a request. Lines are JSON in both directions. Its first answer says
that the model is loaded, or why it is not.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
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
from deepcovid_edge.device.process import set_up
from deepcovid_edge.errors import DeepCovidEdgeError, one_line
from deepcovid_edge.imaging.files import ImageSource
from deepcovid_edge.imaging.radiograph import DicomFacts
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.duplicates import Duplicates, uid_number
from deepcovid_edge.pipeline.pipeline import predict_groups
from deepcovid_edge.pipeline.reader import ImageReader, PreparedImage, Reading


@dataclass(frozen=True)
class JournalledReader(ImageReader):
    """Reads images, notes which one it reads, and keeps what their headers state.

    Attributes:
        journal: Where it notes.
        facts: Number of an image -> what its DICOM header states.
    """

    journal: Journal | None = None
    facts: dict[int, DicomFacts] = field(default_factory=dict)

    def read(self, source: ImageSource) -> PreparedImage:
        """Read and prepare an image."""
        assert self.journal
        number = cast("RemoteImage | NumberedPath", source).number
        with self.journal.reading(number):
            image = super().read(source)
        if image.dicom is not None:
            self.facts[number] = image.dicom
        return image


def main() -> None:
    """Answer requests until standard input ends."""
    set_up()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C does
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = json.loads(sys.stdin.readline())
    _limit_memory(settings["memory"])
    try:
        with Model(**settings["model"]) as model:
            _answer(answers, {"ready": plain_facts(model.facts), "ood": model.settings.ood})
            _serve(model, Journal(int(sys.argv[1])), answers)
    except (DeepCovidEdgeError, OSError, MemoryError) as error:
        _answer(answers, {"failed": type(error).__name__, "why": str(error) or one_line(error)})
        sys.exit(1)
    finally:
        close_stores()


def _limit_memory(size: int | None) -> None:
    if size is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _serve(model: Model, journal: Journal, answers: TextIO) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        rows = _rows(model, journal, request["paths"], request["numbers"], request["workers"])
        for group in rows:
            _answer(answers, {"rows": group})
        _answer(answers, {"done": True})


def _rows(
    model: Model,
    journal: Journal,
    paths: Sequence[str],
    numbers: Sequence[int],
    workers: int | None,
) -> Iterator[list[list[Any]]]:
    """The records of images, as values, in groups that are ready together."""
    usual = model.reader()
    reader = JournalledReader(usual.spec, keeps_facts=True, sends=usual.sends, journal=journal)
    reading = Reading(_sources(paths, numbers), reader)
    settings = replace(model.settings, workers=workers) if workers else model.settings
    groups = predict_groups(reading, model.backend, model.facts, settings, duplicates=Duplicates())
    done = iter(numbers)
    with closing(groups):
        for records in groups:
            own = list(islice(done, len(records)))
            yield [
                _row(number, record, reader.facts.pop(number, None))
                for number, record in zip(own, records, strict=True)
            ]


def _sources(paths: Sequence[str], numbers: Sequence[int]) -> Iterator[ImageSource]:
    for path, number in zip(paths, numbers, strict=True):
        if is_remote(path):
            yield cast("ImageSource", RemoteImage(path, number))
        else:
            yield NumberedPath.of(path, number)


def _row(number: int, record: Prediction, facts: DicomFacts | None) -> list[Any]:
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
    ]


def _answer(stream: TextIO, values: dict[str, Any]) -> None:
    stream.write(json.dumps(values) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
