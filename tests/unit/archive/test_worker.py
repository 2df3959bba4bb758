"""The worker's process as its parent sees it: whatever it dies of, the run goes on or says why.

The child here is a real process with a real journal, but without a model: an image's path says what
it does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cart_peers import wait_until

pytest.importorskip("pyarrow", reason="workers need extra archive")

from deepcovid_edge.archive.images.image_list import ListedImage
from deepcovid_edge.archive.shards import ScreenedImage
from deepcovid_edge.archive.stamp import plain_facts
from deepcovid_edge.archive.worker import child, process
from deepcovid_edge.archive.worker.process import ImageWorker, WorkerFailedError, WorkerSettings
from deepcovid_edge.cli.exit_codes import ExitCode, exit_code
from deepcovid_edge.decision.record import RunFacts
from deepcovid_edge.errors import DeepCovidEdgeError, ServerMismatchError

FACTS = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("normal", "covid"), "covid", 0.5)
CHILD = """
import json, os, signal, sys
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
        if path == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        with journal.reading(number):
            if path == "in the decoder":
                os._exit(3)
        content, uid, share = path.split() if path[0].isdigit() else ("0", "", 0.5)
        shares = [1 - float(share), float(share)]
        row = [number, content * 64, None, None, [], shares, {}, None, "", "", uid]
        answer({"rows": [row]})
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


def assessed(
    worker: ImageWorker,
    images: Sequence[ListedImage],
    progress: Callable[[int], object] = lambda _: None,
) -> list[ScreenedImage]:
    """The records of one request."""
    (found,) = worker.assess_each([images], progress)
    return found


def reasons(worker: ImageWorker, *paths: str) -> list[Any]:
    """The reason of each image, or None for one with a result."""
    images = [ListedImage(path, number, "") for number, path in enumerate(paths)]
    return [screened.record.reason for screened in assessed(worker, images)]


def test_any_number_of_neighbours_that_crash_their_reader_cost_themselves_alone(
    worker: ImageWorker,
) -> None:
    found = reasons(worker, "a", *["in the decoder"] * 7, "b")
    assert found == [None, *["E_DECODE"] * 7, None]
    assert worker.deaths == 14


def test_an_image_that_crashes_its_reader_has_the_hash_of_the_file_in_the_run_s_folder(
    worker: ImageWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, folder = tmp_path / "here", tmp_path / "folder"
    for place in (here, folder):
        place.mkdir()
        (place / "in the decoder").write_bytes(place.name.encode())
    monkeypatch.chdir(here)
    with ImageWorker(replace(worker.settings, folder=str(folder))) as made:
        (found,) = assessed(made, [ListedImage("in the decoder", 0, "")])
    assert found.record.reason == "E_DECODE"
    assert found.record.sha256 == hashlib.sha256(b"folder").hexdigest()


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
        assessed(worker, images, stop)
    assert [one.record.path for one in assessed(worker, images[1:])] == ["b", "c"]


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


def each(worker: ImageWorker, *requests: Sequence[str]) -> list[list[str | None]]:
    """The reasons of each request's images."""
    images = ([ListedImage(path, 0, "") for path in paths] for paths in requests)
    return [[one.record.reason for one in found] for found in worker.assess_each(images)]


def test_the_next_images_are_in_work_before_the_first_are_written(worker: ImageWorker) -> None:
    taken: list[str] = []

    def requests() -> Iterator[list[ListedImage]]:
        for name in "abcd":
            taken.append(name)
            yield [ListedImage(name, 0, "")]

    with closing(worker.assess_each(requests())) as assessed:
        for number, found in enumerate(assessed):
            assert [one.record.path for one in found] == ["abcd"[number]]
            assert taken == [*"abcd"][: number + 2]


def test_a_child_that_dies_costs_neither_request_an_image(worker: ImageWorker) -> None:
    bad = "in the decoder"
    assert each(worker, ["a", bad], [bad, "b"], [], ["c", bad, "d"]) == [
        *([None, "E_DECODE"], ["E_DECODE", None], []),
        [None, "E_DECODE", None],
    ]
    assert worker.deaths == 6


def test_a_child_that_takes_no_request_is_not_waited_for_for_ever(
    worker: ImageWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(worker.settings, image_seconds=0.2)
    with ImageWorker(settings) as made, pytest.raises(WorkerFailedError, match="took longer"):
        each(made, ["stops"], ["x" * 1000] * 1000)


@pytest.mark.parametrize("end", ["", '{"paths": ['], ids=["ended", "broken"])
def test_a_child_ends_where_no_further_request_can_be_read(end: str) -> None:
    requests = child._Requests(io.StringIO('{"number": 1}\n' + end))
    assert requests.wait() == {"number": 1}
    wait_until(lambda: not requests._came.empty(), 10)
    assert requests.at_once() is None
    assert requests.wait() is None


def settled(worker: ImageWorker, *requests: Sequence[str]) -> list[list[tuple[bool, float]]]:
    """Of each request's images, whether it has `W_DUP_UID`, and its probability."""
    images = ([ListedImage(path, 0, "") for path in paths] for paths in requests)
    return [
        [("W_DUP_UID" in one.record.warnings, one.record.probability or 0.0) for one in found]
        for found in worker.assess_each(images)
    ]


@pytest.mark.parametrize("between", [[], ["in the decoder"], ["in the decoder"] * 3])
def test_duplicates_of_a_shard_do_not_depend_on_a_child_that_dies(
    worker: ImageWorker, between: list[str]
) -> None:
    """The paths say content, UID and probability."""
    paths = ["1 1.2 0.25", *between, "2 1.2 0.75", "1 1.3 0.5", "3 1.4 0.125"]
    (found,) = settled(worker, paths)
    assert [one for one in found if one[1]] == [
        (False, 0.25),
        (True, 0.75),
        (False, 0.25),
        (False, 0.125),
    ]


def test_an_image_comes_for_the_first_time_in_each_shard(worker: ImageWorker) -> None:
    """A shard is the same whichever were assessed before it by the same process."""
    found = settled(worker, ["1 1.2 0.25", "2 1.2 0.5"], [], ["3 1.2 0.75", "1 1.5 0.875"])
    assert found == [[(False, 0.25), (True, 0.5)], [], [(False, 0.75), (False, 0.875)]]
