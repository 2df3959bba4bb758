"""The real assessor in its process: killed, slow, without a model; another model while it works."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_peers import wait_until
from cart_store import FOLDER, Store, open_store
from click.testing import CliRunner
from dicom_files import EXPLICIT
from whole_cart import phantom_image

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old
from deepcovid_edge.cart.work.assessor import (
    AssessorCrashedError,
    AssessorFailedError,
    AssessorProcess,
)
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.errors import DeepCovidEdgeError, ModelFileError, UsageError
from deepcovid_edge.models import shipped_models

pytest.importorskip("highdicom", reason="the cart needs extra cart")
_ASSESSES = re.compile(r"squeezenet1_1(-int8-cpu)? assesses")
"""The variant is the fastest on this processor."""
TEXT = """
[cart]
spool = "spool"
floor_mib = 1
floor_share = 0.0
ballast_mib = 0
[receive]
folders = ["incoming"]
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CartConfig:
    path = tmp_path_factory.mktemp("cart") / "cart.toml"
    path.write_text(TEXT)
    return read_config(path)


@pytest.fixture(scope="module")
def store(config: CartConfig) -> Iterator[Store]:
    with open_store(config.cart.spool) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(config: CartConfig, store: Store) -> Iterator[Worker]:
    with Worker(config, store.ledger, store.spool, threading.Event()) as made:
        yield made


def take(store: Store, number: int) -> None:
    store.intake.take_file(phantom_image(number, EXPLICIT), name="f.dcm", arrival=FOLDER)


def assessor_of(worker: Worker) -> AssessorProcess:
    assessor = worker._ready()
    assert assessor is not None
    return assessor


def test_an_assessor_that_is_killed_is_started_again_and_the_image_is_assessed(
    worker: Worker, store: Store
) -> None:
    take(store, 1)
    os.killpg(assessor_of(worker)._process.pid, signal.SIGKILL)
    assert worker.assess_next()  # a try, for nothing
    assert store.states() == ["received"]
    assessor_of(worker)
    assert worker.assess_next()
    assert store.states() == ["assessed"]
    assert len(store.ledger.rows("SELECT * FROM outbox")) == 2


@pytest.mark.parametrize("reason", [None, "E_VIEW"])
def test_an_image_that_comes_again_after_it_was_deleted_has_objects_of_the_same_bytes(
    worker: Worker, store: Store, reason: str | None
) -> None:
    view = "LL" if reason else "PA"
    image = phantom_image(40 + bool(reason), EXPLICIT, opacities=9, ViewPosition=view)
    hashes = []
    for _ in range(2):
        taken = store.intake.take_file(image, name="f.dcm", arrival=FOLDER)
        assessor_of(worker)
        assert worker.assess_next()
        rows = store.ledger.rows(
            "SELECT object.* FROM object JOIN result ON result.id = result_id WHERE image_id = ?",
            taken.image_id,
        )
        assert store.ledger.row(
            "SELECT 1 FROM image WHERE id = ? AND reason IS ?", taken.image_id, reason
        )
        hashes.append({row["sop_uid"]: row["sha256"] for row in rows})
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'sent'")
        delete_old(store.ledger, store.spool, RetentionSettings(0, 0))
        assert store.states()[taken.image_id - 1] == "expired"
        assert not (store.spool.folder / rows[0]["path"]).exists()
    assert len(hashes[0]) == (1 if reason else 2)
    assert hashes[0] == hashes[1]


def test_an_assessor_that_does_nothing_is_not_waited_for_so_long(
    worker: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its time is over; the wait feeds the watchdog all the while."""
    monkeypatch.setattr("deepcovid_edge.cart.work.assessor._STALL_SECONDS", 1.5)
    take(store, 20)
    assessor = assessor_of(worker)
    beats: list[float] = []
    monkeypatch.setattr(assessor, "_waiting", lambda: beats.append(time.monotonic()))
    began = time.monotonic()
    os.killpg(assessor._process.pid, signal.SIGSTOP)
    assert worker.assess_next()
    assert time.monotonic() - began < 30
    assert len(beats) >= 2
    (event,) = store.ledger.rows(
        "SELECT * FROM event WHERE kind = 'given back' ORDER BY id DESC LIMIT 1"
    )
    assert "made no progress" in json.loads(event["detail"])["why"]
    assessor_of(worker)
    assert worker.assess_next()
    assert store.states()[-1] == "assessed"


def test_an_assessor_that_hangs_is_ended_in_time(
    worker: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, 2)
    assessor = assessor_of(worker)
    monkeypatch.setattr(assessor, "_seconds", 1.0)
    process = assessor._process.pid
    os.killpg(process, signal.SIGSTOP)
    assert worker.assess_next()
    assert not Path(f"/proc/{process}").exists()
    assessor_of(worker)
    assert worker.assess_next()
    assert store.states()[-1] == "assessed"


@pytest.mark.parametrize("fault", ["gone", "unreadable"])
def test_an_image_that_cannot_be_read_any_more_is_not_assessed_and_the_next_one_is(
    worker: Worker, store: Store, fault: str
) -> None:
    number = 30 + 2 * (fault == "gone")
    take(store, number)
    take(store, number + 1)
    row = store.ledger.row("SELECT * FROM image WHERE state = 'received' ORDER BY id")
    assert row is not None
    path = store.spool.image(row["content_sha256"], row["suffix"])
    path.unlink()
    if fault == "unreadable":
        path.mkdir()  # read(2) fails, as on a broken disk
    for _ in range(2):
        assessor_of(worker)
        assert worker.assess_next()
    assert store.states()[-2:] == ["not_assessed", "assessed"]
    (result,) = store.ledger.rows("SELECT record FROM result WHERE image_id = ?", row["id"])
    record = json.loads(result["record"])
    assert (record["reason"], record["sha256"]) == ("E_UNREADABLE", None)
    assert store.ledger.row("SELECT 1 FROM alert WHERE key = ?", f"file {row['id']}")
    assert not store.ledger.row("SELECT 1 FROM alert WHERE key = ?", f"quarantined {row['id']}")


def test_an_assessor_ends_with_its_worker(config: CartConfig) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from deepcovid_edge.cart.config import read_config\n"
        "from deepcovid_edge.cart.work.assessor import AssessorProcess\n"
        "config = read_config(pathlib.Path(sys.argv[1]))\n"
        "assessor = AssessorProcess(config, 'squeezenet1_1', None)\n"
        "print(assessor._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, config.path], capture_output=True, text=True, timeout=240
    )
    pid = done.stdout.split()[-1]
    state = Path(f"/proc/{pid}/stat")
    wait_until(lambda: not state.exists() or state.read_text().split()[2] == "Z", 20.0)


def test_a_model_that_is_none_is_named(config: CartConfig, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(AssessorFailedError):
        AssessorProcess(config, str(broken), None)
    with pytest.raises(AssessorFailedError, match="no_such_model"):
        AssessorProcess(config, "no_such_model", None)


def test_an_answer_that_is_none_counts_as_a_crash(worker: Worker) -> None:
    assessor = assessor_of(worker)
    assessor._rest = b"no answer\n"
    with pytest.raises(AssessorCrashedError, match="not an answer"):
        assessor._answer(1.0)
    worker._end_assessor()


def test_a_model_is_used_only_when_it_has_proved_itself(config: CartConfig, store: Store) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(command, ["model", *words])
        if done.exception:
            raise done.exception
        return done.output

    path = str(config.path)
    assert _ASSESSES.search(run("use", path, "squeezenet1_1"))
    with pytest.raises(Exception, match="no_such_model"):
        run("use", path, "no_such_model")
    assert json.loads(str(store.ledger.get_meta("model")))["model"] == "squeezenet1_1"
    with pytest.raises(UsageError, match="there was none before this one"):
        run("rollback", path)


def test_a_model_that_was_not_verified_and_a_site_file_of_another_one_are_refused(
    config: CartConfig, store: Store, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="a model that was not verified is made with extra export")
    from campaigns.model_switch import wrong_models

    from deepcovid_edge.cart.model_pointer import use_model

    before = store.ledger.get_meta("model")
    wrong = wrong_models(tmp_path, shipped_models()["squeezenet1_1"])
    for step, message in (("unverified", "is not verified"), ("site of another", "is for squeeze")):
        model, _, *site = wrong[step] + [""] * (len(wrong[step]) == 1)
        with pytest.raises(DeepCovidEdgeError, match=message):
            use_model(config, store.ledger, model, Path(site[0]) if site else None)
        assert store.ledger.get_meta("model") == before


def test_an_assessor_whose_images_get_no_number_is_told(
    config: CartConfig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelFileError("self-test: a synthetic image is not assessed: too dark")

    monkeypatch.setattr("deepcovid_edge.cart.work.assessor_child.check_assessor", refuse)
    from deepcovid_edge.cart.model_pointer import use_model

    before = store.ledger.get_meta("model")
    with pytest.raises(ModelFileError, match="self-test"):
        use_model(config, store.ledger, "squeezenet1_1", None)
    assert store.ledger.get_meta("model") == before
