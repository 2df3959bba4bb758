"""The worker's process as its parent sees it: whatever it dies of, the run goes on or says why.

The child here is a real process with a real journal, but without a model: an image's path says what
it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="workers need extra archive")

from deepcovid_edge.archive.images.image_list import ListedImage
from deepcovid_edge.archive.stamp import plain_facts
from deepcovid_edge.archive.worker import process
from deepcovid_edge.archive.worker.process import ImageWorker, WorkerFailedError, WorkerSettings
from deepcovid_edge.cli.exit_codes import ExitCode, exit_code
from deepcovid_edge.decision.record import RunFacts
from deepcovid_edge.errors import DeepCovidEdgeError, ServerMismatchError

FACTS = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("normal", "covid"), "covid", 0.5)
CHILD = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from deepcovid_edge.archive.worker.journal import Journal
journal = Journal(int(sys.argv[2]))
settings = json.loads(sys.stdin.readline())
def answer(values):
    print(json.dumps(values), flush=True)
with open(settings["model"]["model"]) as stream:
    answer(json.load(stream))
for line in sys.stdin:
    request = json.loads(line)
    for number, path in zip(request["numbers"], request["paths"]):
        if path == "in the network":
            os._exit(3)
        if path.startswith("error"):
            answer({"failed": path.split()[1], "why": "said so"})
            sys.exit(1)
        with journal.reading(number):
            if path == "in the decoder":
                os._exit(3)
        answer({"rows": [[number, "0" * 64, None, None, [], [0.5, 0.5], {}, None, "", ""]]})
"""


def state(model: Path, facts: RunFacts, ood: str = "reject") -> None:
    """Have the next children load a model with these facts."""
    model.write_text(json.dumps({"ready": plain_facts(facts), "ood": ood}))


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageWorker]:
    monkeypatch.setattr(process, "_PROGRAM", CHILD)
    state(tmp_path / "model", FACTS)
    with ImageWorker(WorkerSettings({"model": str(tmp_path / "model")}, 1)) as made:
        yield made


def reasons(worker: ImageWorker, *paths: str) -> list[Any]:
    """The reason of each image, or None for one with a result."""
    images = [ListedImage(path, number, "") for number, path in enumerate(paths)]
    return [screened.record.reason for screened in worker.assess(images)]


def test_any_number_of_neighbours_that_crash_their_reader_cost_themselves_alone(
    worker: ImageWorker,
) -> None:
    found = reasons(worker, "a", *["in the decoder"] * 7, "b")
    assert found == [None, *["E_DECODE"] * 7, None]
    assert worker.deaths == 14


def test_a_child_that_ends_while_it_reads_no_image_ends_the_run(worker: ImageWorker) -> None:
    with pytest.raises(WorkerFailedError, match="5 times without a record"):
        reasons(worker, "a", "in the network", "b")


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("ServerMismatchError", ServerMismatchError, ExitCode.MISMATCH),
        ("MemoryError", WorkerFailedError, ExitCode.ERROR),
        ("OSError", WorkerFailedError, ExitCode.ERROR),
    ],
)
def test_an_error_of_the_model_ends_the_run_as_what_it_is(
    worker: ImageWorker, name: str, kind: type[DeepCovidEdgeError], code: ExitCode
) -> None:
    with pytest.raises(kind, match="said so") as raised:
        reasons(worker, "a", f"error {name}", "b")
    assert exit_code(raised.value) == code
    assert reasons(worker, "a", "b") == [None, None], "a worker of a cluster gets further shards"
    assert worker.deaths == 0


def test_answers_that_nobody_took_are_not_those_of_the_next_images(worker: ImageWorker) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    images = [ListedImage(name, number, "") for number, name in enumerate("abc")]
    with pytest.raises(KeyboardInterrupt):
        worker.assess(images, stop)
    assert [one.record.path for one in worker.assess(images[1:])] == ["b", "c"]


@pytest.mark.parametrize(
    ("facts", "ood"),
    [
        (replace(FACTS, model_sha256="cd" * 32), "reject"),
        (replace(FACTS, threshold=0.4), "reject"),
        (FACTS, "warn"),
    ],
)
def test_another_model_in_the_place_of_the_first_ends_the_run(
    worker: ImageWorker, facts: RunFacts, ood: str
) -> None:
    state(Path(worker.settings.model["model"]), facts, ood)
    assert reasons(worker, "a", "b") == [None, None], "the first is loaded"
    with pytest.raises(WorkerFailedError, match="has changed since the run began"):
        reasons(worker, "a", "in the decoder", "b")
    state(Path(worker.settings.model["model"]), FACTS)
    assert reasons(worker, "a", "in the decoder", "b") == [None, "E_DECODE", None]
