"""The real judge in its process: killed, slow, without a model; another model while it works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_peers import wait_until
from cart_store import FOLDER, Store, open_store
from click.testing import CliRunner
from dicom_files import EXPLICIT
from whole_cart import phantom_film

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.work.judge import Judge, JudgeCrashedError, JudgeFailedError
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.errors import ModelFileError

pytest.importorskip("highdicom", reason="the cart needs extra cart")
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
    store.intake.take_file(phantom_film(number, EXPLICIT), name="f.dcm", arrival=FOLDER)


def judge_of(worker: Worker) -> Judge:
    judge = worker._ready()
    assert judge is not None
    return judge


def test_a_judge_that_is_killed_is_started_again_and_the_film_is_judged(
    worker: Worker, store: Store
) -> None:
    take(store, 1)
    os.killpg(judge_of(worker)._process.pid, signal.SIGKILL)
    assert worker.judge_next()  # a try, for nothing
    assert store.states() == ["received"]
    judge_of(worker)
    assert worker.judge_next()
    assert store.states() == ["judged"]
    assert len(store.ledger.rows("SELECT * FROM outbox")) == 2


def test_a_judge_that_hangs_is_ended_in_time(
    worker: Worker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, 2)
    judge = judge_of(worker)
    monkeypatch.setattr(judge, "_seconds", 1.0)
    process = judge._process.pid
    os.killpg(process, signal.SIGSTOP)
    assert worker.judge_next()
    assert not Path(f"/proc/{process}").exists()
    judge_of(worker)
    assert worker.judge_next()
    assert store.states() == ["judged"] * 2


def test_a_judge_ends_with_its_worker(config: CartConfig) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from deepcovid_edge.cart.config import read_config\n"
        "from deepcovid_edge.cart.work.judge import Judge\n"
        "judge = Judge(read_config(pathlib.Path(sys.argv[1])), 'squeezenet1_1', None)\n"
        "print(judge._process.pid, flush=True)\n"
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
    with pytest.raises(JudgeFailedError):
        Judge(config, str(broken), None)
    with pytest.raises(JudgeFailedError, match="no_such_model"):
        Judge(config, "no_such_model", None)


def test_an_answer_that_is_none_counts_as_a_crash(worker: Worker) -> None:
    judge = judge_of(worker)
    judge._rest = b"no answer\n"
    with pytest.raises(JudgeCrashedError, match="not an answer"):
        judge._answer(1.0)
    worker._end_judge()


def test_a_model_is_used_only_when_it_has_proved_itself(config: CartConfig, store: Store) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(command, ["model", *words])
        if done.exception:
            raise done.exception
        return done.output

    path = str(config.path)
    assert "squeezenet1_1 judges" in run("use", path, "squeezenet1_1")
    with pytest.raises(Exception, match="no_such_model"):
        run("use", path, "no_such_model")
    assert json.loads(str(store.ledger.get_meta("model")))["model"] == "squeezenet1_1"
    assert "squeezenet1_1 judges" in run("rollback", path)


def test_a_judge_whose_films_get_no_number_is_told(
    config: CartConfig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelFileError("self-test: a drawn film is not assessed: too dark")

    monkeypatch.setattr("deepcovid_edge.cart.work.judge_child.check_judge", refuse)
    from deepcovid_edge.cart.model_pointer import use_model

    before = store.ledger.get_meta("model")
    with pytest.raises(ModelFileError, match="self-test"):
        use_model(config, store.ledger, "squeezenet1_1", None)
    assert store.ledger.get_meta("model") == before
