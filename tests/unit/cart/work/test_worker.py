"""The worker around its judge: three tries, then a refusal; nothing is lost on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cart_store import Store, open_store, record

from deepcovid_edge.cart.config import CartConfig, Destination, JudgeSettings, ReceiveSettings
from deepcovid_edge.cart.store.films import ClaimedFilm, Settled
from deepcovid_edge.cart.store.rebuild import RECORD_NAME
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.cart.work import worker as worker_module
from deepcovid_edge.cart.work.judge import JudgeCrashedError, JudgeFailedError
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.reasons import Reason

PACS = Destination("pacs", "PACS", "127.0.0.1")


class FakeJudge:
    """Crashes on the films that it is told to, as a decoder that takes the process along."""

    crashes_on: ClassVar[set[int]] = set()
    also_unread = False
    fails: str | None = None
    started = 0
    template: ClassVar[dict[str, Any]] = {**record("negative"), "decision": None, "warnings": []}
    backend = "fake"

    def __init__(self, _config: CartConfig, model: str, site: Path | None) -> None:
        if FakeJudge.fails:
            raise JudgeFailedError(FakeJudge.fails)
        self.model, self.site = model, site
        FakeJudge.started += 1

    def judge(
        self, film: ClaimedFilm, destinations: Mapping[str, Any], *, refuse: Reason | None = None
    ) -> Settled:
        if film.film_id in self.crashes_on and (refuse is None or self.also_unread):
            raise JudgeCrashedError("the judge ended with code -11")
        made = record(None if refuse else "positive")
        return Settled({**made, "reason": refuse and refuse.code}, [], destinations)

    def refusal(self, _film: ClaimedFilm, reason: Reason) -> Settled:
        return Settled({**self.template, "reason": reason.code})

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(worker_module, "Judge", FakeJudge)
    monkeypatch.setattr(worker_module, "_RESTART_SECONDS", (0.01,))
    for name, value in {"crashes_on": set(), "also_unread": False, "fails": None}.items():
        monkeypatch.setattr(FakeJudge, name, value)
    monkeypatch.setattr(FakeJudge, "started", 0)
    with open_store(tmp_path / "spool") as opened:
        yield opened


def worker_of(store: Store) -> Worker:
    settings = JudgeSettings(store.spool.folder)
    receive = ReceiveSettings(folders=(store.spool.folder,))
    config = CartConfig(Path("cart.toml"), settings, receive, destinations=(PACS,))
    return Worker(config, store.ledger, store.spool, threading.Event())


def judge_all(worker: Worker) -> None:
    for _ in range(20):
        if worker._ready() is None or not worker.judge_next():
            return
    pytest.fail("films are judged without an end")


def test_films_are_judged_in_their_order_with_one_model_in_memory(store: Store) -> None:
    for number in range(3):
        store.take(number)
    judge_all(worker_of(store))
    assert store.states() == ["judged"] * 3
    assert FakeJudge.started == 1


@pytest.mark.parametrize("also_unread", [False, True])
def test_a_film_that_ends_every_judge_is_refused_after_three_tries(
    store: Store, also_unread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeJudge, "crashes_on", {1})
    monkeypatch.setattr(FakeJudge, "also_unread", also_unread)
    store.take(1)
    store.take(2)
    judge_all(worker_of(store))
    assert store.states() == ["refused", "judged"]
    row = store.ledger.row("SELECT * FROM film WHERE id = 1")
    assert row is not None
    assert (row["reason"], row["tries"]) == ("E_DECODE", 3)
    assert len([*(store.spool.folder / "quarantine").iterdir()]) == 1
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'quarantined'")


def test_the_record_lies_beside_the_objects_for_a_ledger_that_is_lost(store: Store) -> None:
    store.take()
    judge_all(worker_of(store))
    (kept,) = store.spool.folder.rglob(RECORD_NAME)
    values = json.loads(kept.read_text())
    assert values["record"]["decision"] == "positive"
    assert values["destinations"] == {"pacs": ["sr", "sc"]}


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeJudge, "fails", "no such model")
    store.take()
    worker = worker_of(store)
    assert worker._ready() is None
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'model_unverified'")
    assert store.states() == ["received"]
    monkeypatch.setattr(FakeJudge, "fails", None)
    judge_all(worker)
    assert store.states() == ["judged"]
    assert not store.ledger.row("SELECT 1 FROM alert")


def test_a_full_disk_costs_a_film_no_try(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.take()
    worker = worker_of(store)
    worker._ready()

    def full(*_: object) -> None:
        raise SpoolFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(worker.spool, "store", full)
        with pytest.raises(SpoolFullError):
            worker.judge_next()
    row = store.ledger.row("SELECT * FROM film")
    assert row is not None
    assert (row["state"], row["tries"]) == ("received", 0)
    judge_all(worker)
    assert store.states() == ["judged"]


def test_another_model_judges_from_the_next_film_on(store: Store) -> None:
    store.take(1)
    worker = worker_of(store)
    judge_all(worker)
    store.ledger.set_meta("model", json.dumps({"model": "other", "site": None}))
    store.take(2)
    judge_all(worker)
    assert worker._judge is not None
    assert worker._judge.model == "other"
    assert FakeJudge.started == 2
