"""The worker around its assessor: three tries, then a refusal; nothing is lost on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cart_store import Store, damage_table, open_store, record

from deepcovid_edge.cart.config import CartConfig, CartSettings, Destination, ReceiveSettings
from deepcovid_edge.cart.page.health import assessor_works
from deepcovid_edge.cart.status import read_status
from deepcovid_edge.cart.store.images import ClaimedImage, Settled
from deepcovid_edge.cart.store.ledger import LedgerBusyError, LedgerDamagedError, move_aside
from deepcovid_edge.cart.store.rebuild import RECORD_NAME
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.cart.work import role
from deepcovid_edge.cart.work import worker as worker_module
from deepcovid_edge.cart.work.assessor import (
    AssessorCrashedError,
    AssessorFailedError,
    NotBuiltError,
    ServerAwayError,
    hash_unless_unreadable,
)
from deepcovid_edge.cart.work.role import work
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.files import locked
from deepcovid_edge.reasons import Reason

PACS = Destination("pacs", "PACS", "127.0.0.1")


class FakeAssessor:
    """Crashes on the images that it is told to, as a decoder that takes the process along."""

    crashes_on: ClassVar[set[int]] = set()
    raises: Exception | None = None
    hangs = False
    also_unread = False
    fails: str | None = None
    started = 0
    template: ClassVar[dict[str, Any]] = record(None)
    backend = "fake"
    asked: ClassVar[list[int]] = []
    """Images that any assessor was asked for, in order."""
    has: tuple[ClaimedImage, Reason | None] | None = None
    made = ""
    """Of the image that it was asked for last."""

    def __init__(
        self, _config: CartConfig, model: str, site: Path | None, waiting: Callable[[], None]
    ) -> None:
        for _ in range(100 if FakeAssessor.hangs else 0):
            time.sleep(0.1)
            waiting()
        if FakeAssessor.fails:
            raise AssessorFailedError(FakeAssessor.fails)
        self.model, self.site = model, site
        FakeAssessor.started += 1

    def assess(
        self,
        image: ClaimedImage,
        destinations: Mapping[str, Any],
        *,
        made: str,
        reason: Reason | None = None,
    ) -> Settled:
        self.ask(image, made=made, reason=reason)
        return self.answer(destinations)

    def ask(self, image: ClaimedImage, *, made: str, reason: Reason | None = None) -> None:
        assert made
        assert self.has is None, "one image at a time"
        self.has, self.made = (image, reason), made
        self.asked.append(image.image_id)

    def answer(self, destinations: Mapping[str, Any]) -> Settled:
        assert self.has
        (image, reason), self.has = self.has, None
        if self.raises and reason is None:
            raise self.raises
        if image.image_id in self.crashes_on and (reason is None or self.also_unread):
            raise AssessorCrashedError("the assessor ended with code -11")
        made = record(None if reason else "positive")
        return Settled({**made, "reason": reason and reason.code}, [], destinations)

    def not_assessed(self, image: ClaimedImage, reason: Reason) -> Settled:
        sha256, reason = hash_unless_unreadable(image.path, reason)
        return Settled({**self.template, "sha256": sha256, "reason": reason.code})

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(worker_module, "AssessorProcess", FakeAssessor)
    monkeypatch.setattr(worker_module, "_RESTART_SECONDS", (0.01,))
    usual = {"crashes_on": set(), "also_unread": False, "fails": None, "raises": None}
    for name, value in {**usual, "hangs": False}.items():
        monkeypatch.setattr(FakeAssessor, name, value)
    monkeypatch.setattr(FakeAssessor, "started", 0)
    monkeypatch.setattr(FakeAssessor, "asked", [])
    with open_store(tmp_path / "spool") as opened:
        yield opened


def worker_of(store: Store) -> Worker:
    settings = CartSettings(store.spool.folder)
    receive = ReceiveSettings(folders=(store.spool.folder.parent / "in",))
    config = CartConfig(Path("cart.toml"), settings, receive, destinations=(PACS,))
    return Worker(config, store.ledger, store.spool, threading.Event())


def worker_with(store: Store, images: int) -> Worker:
    """A worker that images wait for."""
    for number in range(images):
        store.take(number)
    return worker_of(store)


def assess_all(worker: Worker) -> None:
    for _ in range(20):
        worker._release()
        if worker._ready() is None or not worker.assess_next():
            return
    pytest.fail("images are assessed without an end")


def test_images_are_assessed_in_their_order_with_one_model_in_memory(store: Store) -> None:
    for number in range(3):
        store.take(number)
    assess_all(worker_of(store))
    assert store.states() == ["assessed"] * 3
    assert FakeAssessor.started == 1


@pytest.mark.parametrize("also_unread", [False, True])
def test_an_image_that_ends_every_assessor_is_refused_after_three_tries(
    store: Store, also_unread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAssessor, "crashes_on", {1})
    monkeypatch.setattr(FakeAssessor, "also_unread", also_unread)
    store.take(1)
    store.take(2)
    assess_all(worker_of(store))
    assert store.states() == ["not_assessed", "assessed"]
    row = store.ledger.row("SELECT * FROM image WHERE id = 1")
    assert row is not None
    assert (row["reason"], row["tries"]) == ("E_DECODE", 3)
    assert len([*(store.spool.folder / "quarantine").iterdir()]) == 1
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'quarantined'")


def test_an_image_whose_file_is_gone_holds_up_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAssessor, "crashes_on", {1})
    monkeypatch.setattr(FakeAssessor, "also_unread", True)
    worker = worker_with(store, 2)
    (image,) = store.ledger.rows("SELECT * FROM image WHERE id = 1")
    store.spool.image(image["content_sha256"], image["suffix"]).unlink()
    (store.spool.folder / "quarantine").rmdir()  # nor can it be kept aside
    assess_all(worker)
    assert store.states() == ["not_assessed", "assessed"]
    (result,) = store.ledger.rows("SELECT record FROM result WHERE image_id = 1")
    record = json.loads(result["record"])
    assert (record["reason"], record["sha256"]) == ("E_UNREADABLE", None)


def test_an_image_is_not_given_up_because_the_cart_was_ended_while_it_was_assessed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take(0)
    worker = worker_of(store)
    for _ in range(5):  # as after a SIGKILL of `cart work`
        assert worker.images.claim() is not None
        assert worker.images.release() == 1
    monkeypatch.setattr(FakeAssessor, "crashes_on", {1})
    assert worker._ready() is not None
    worker.assess_next()  # its assessor is killed once
    monkeypatch.setattr(FakeAssessor, "crashes_on", set())
    assess_all(worker)
    assert store.states() == ["assessed"]


def test_an_image_that_ends_the_whole_cart_each_time_is_given_up_in_the_end(store: Store) -> None:
    store.take(0)
    worker = worker_of(store)
    for _ in range(10):
        assert worker.images.claim() is not None
        worker.images.release()
    assess_all(worker)
    assert store.states() == ["not_assessed"]
    assert [row["code"] for row in store.ledger.rows("SELECT code FROM alert")] == ["quarantined"]


def test_the_record_lies_beside_the_objects_for_a_ledger_that_is_lost(store: Store) -> None:
    store.take()
    assess_all(worker_of(store))
    (kept,) = store.spool.folder.rglob(RECORD_NAME)
    values = json.loads(kept.read_text())
    assert values["record"]["decision"] == "positive"
    assert values["destinations"] == {"pacs": ["sr", "sc"]}


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAssessor, "fails", "no such model")
    store.take()
    worker = worker_of(store)
    assert worker._ready() is None
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'model_unverified'")
    assert store.states() == ["received"]
    worker._note_alive()
    store.ledger.clear_alert("assessor")  # a person has acknowledged it
    assert not assessor_works(store.ledger)
    monkeypatch.setattr(FakeAssessor, "fails", None)
    assess_all(worker)
    assert assessor_works(store.ledger)
    assert store.states() == ["assessed"]
    assert not store.ledger.row("SELECT 1 FROM alert")


def test_a_server_that_is_there_and_never_answers_for_an_image_is_not_asked_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAssessor, "raises", ServerAwayError("no answer in 120 s"))
    worker = worker_with(store, 1)
    for tries in range(1, 10):
        assert worker._ready() is not None
        assert worker.assess_next()
        rows = store.ledger.rows("SELECT state, tries FROM image")
        assert [tuple(row) for row in rows] == [("received", 0)], tries
    assess_all(worker)
    assert store.states() == ["not_assessed"]
    assert [row["code"] for row in store.ledger.rows("SELECT code FROM alert")] == ["quarantined"]


def test_a_result_whose_object_cannot_be_built_stays_and_is_told_of(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = Settled(record("positive"), [], {"pacs": ("sr", "sc")})
    error = NotBuiltError(settled, "objects not built: sr: KeyError")
    monkeypatch.setattr(FakeAssessor, "raises", error)
    assess_all(worker_with(store, 1))
    assert (store.states(), FakeAssessor.asked) == (["assessed"], [1])
    (alert,) = store.ledger.rows("SELECT key, detail FROM alert")
    assert alert["key"] == "quarantined 1"
    assert "KeyError" in alert["detail"]
    assert len([*(store.spool.folder / "quarantine").iterdir()]) == 1


def test_a_stop_does_not_wait_for_a_model_that_is_loaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeAssessor, "hangs", True)
    worker = worker_with(store, 1)
    threading.Timer(0.3, worker.stop.set).start()
    began = time.monotonic()
    worker.run()
    assert time.monotonic() - began < 5
    assert store.states() == ["received"]
    assert not store.ledger.rows("SELECT * FROM alert")


def test_a_full_disk_costs_an_image_no_try(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what the first try wrote left beside the objects of the next one."""
    store.take()
    worker = worker_of(store)
    assessor = worker._ready()
    assert isinstance(assessor, FakeAssessor)
    monkeypatch.setattr(worker_module, "now_utc", iter("123").__next__)

    def full(*_: object) -> None:
        raise SpoolFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(worker.spool, "store", full)
        with pytest.raises(SpoolFullError):
            worker.assess_next()
    row = store.ledger.row("SELECT * FROM image")
    assert row is not None
    assert (row["state"], row["tries"]) == ("received", 0)
    assess_all(worker)
    assert store.states() == ["assessed"]
    assert assessor.made == "1"


def kinds_of(store: Store, kind: str) -> list[int]:
    """The images of the events of a kind."""
    rows = store.ledger.rows("SELECT image_id FROM event WHERE kind = ? ORDER BY id", kind)
    return [row["image_id"] for row in rows]


def test_the_next_image_is_in_work_while_a_result_is_written(store: Store) -> None:
    worker = worker_with(store, 3)
    assert worker._ready() is not None
    assert worker.assess_next()
    assert (store.states(), FakeAssessor.asked) == (["assessed", "assessing", "received"], [1, 2])
    assess_all(worker)
    assert FakeAssessor.asked == kinds_of(store, "assessed") == [1, 2, 3]


def test_an_image_that_was_tried_before_is_in_work_alone(store: Store) -> None:
    """It may be what ended the cart: the result before it must be written by then."""
    worker = worker_with(store, 3)
    with store.ledger.transaction() as now:
        now.execute("UPDATE image SET tries = 1 WHERE id = 2")
    assert worker._ready() is not None
    worker.assess_next()
    assert (store.states()[1], FakeAssessor.asked) == ("received", [1])
    assess_all(worker)
    assert kinds_of(store, "assessed") == [1, 2, 3]


def test_a_result_that_cannot_be_written_costs_the_next_image_no_try(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_with(store, 2)
    assert worker._ready() is not None

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(worker.spool, "store", broken)
        assert worker.assess_next()
    rows = store.ledger.rows("SELECT state, tries FROM image ORDER BY id")
    assert [tuple(row) for row in rows] == [("received", 1), ("received", 0)]
    assess_all(worker)
    assert kinds_of(store, "assessed") == [1, 2]


@pytest.mark.parametrize(
    "error", [LedgerBusyError("busy"), AssessorCrashedError("the assessor ended with code -9")]
)
def test_what_fails_with_the_next_image_is_not_the_last_one_s_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    worker = worker_with(store, 2)
    assert worker._ready() is not None
    assert worker._assessor is not None
    ask = worker._assessor.ask

    def fail(image: ClaimedImage, *, made: str, reason: Reason | None = None) -> None:
        if image.image_id == 2:
            raise error
        ask(image, made=made, reason=reason)

    with monkeypatch.context() as patched:
        patched.setattr(worker._assessor, "ask", fail)
        assert worker.assess_next()
    assert store.states() == ["assessed", "assessing"]
    worker._release()
    rows = store.ledger.rows("SELECT state, tries FROM image ORDER BY id")
    assert [tuple(row) for row in rows] == [("assessed", 1), ("received", 0)]
    assess_all(worker)
    assert kinds_of(store, "assessed") == [1, 2]


def test_no_image_takes_the_room_that_a_result_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_with(store, 3)
    keep = worker.spool.store
    fails = iter([True, True])

    def store_once(*given: Any, **named: Any) -> Any:
        if next(fails, False):
            raise SpoolFullError("full")
        return keep(*given, **named)

    monkeypatch.setattr(worker.spool, "store", store_once)

    def stop_when_done() -> None:
        if not worker.images.waiting():
            worker.stop.set()

    worker._settled = stop_when_done
    worker.run()
    assert FakeAssessor.asked[:5] == [1, 2, 1, 1, 2]
    assert kinds_of(store, "assessed") == [1, 2, 3]


def test_what_is_in_work_when_the_ledger_is_busy_is_assessed_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_with(store, 3)
    noted = iter(range(100))

    def note() -> None:
        number = next(noted)
        if number == 1:  # the second image is in work by now
            raise LedgerBusyError("busy")
        if number == 9:
            worker.stop.set()

    monkeypatch.setattr(worker, "_note_alive", note)
    worker.run()
    assert kinds_of(store, "assessed") == [1, 2, 3]
    assert store.states() == ["assessed"] * 3


def test_a_stop_waits_for_what_is_in_work(store: Store) -> None:
    worker = worker_with(store, 2)
    worker._settled = worker.stop.set
    worker.run()
    assert store.states() == ["assessed"] * 2


def test_another_model_waits_for_what_is_in_work(store: Store) -> None:
    worker = worker_with(store, 3)
    assert worker._ready() is not None
    worker.assess_next()
    store.ledger.set_meta("model", json.dumps({"model": "other", "site": None}))
    assess_all(worker)
    assert store.states() == ["assessed"] * 3
    assert FakeAssessor.asked == [1, 2, 3]
    assert FakeAssessor.started == 2


def test_another_model_assesses_from_the_next_image_on(store: Store) -> None:
    store.take(1)
    worker = worker_of(store)
    assess_all(worker)
    store.ledger.set_meta("model", json.dumps({"model": "other", "site": None}))
    store.take(2)
    assess_all(worker)
    assert worker._assessor is not None
    assert worker._assessor.model == "other"
    assert FakeAssessor.started == 2


def test_the_status_shows_the_variant_that_runs(store: Store) -> None:
    worker = worker_of(store)

    def running() -> object:
        return read_status(worker.config, store.ledger).as_dict()["running"]

    assert running() is None
    worker._ready()
    variant = {"name": "squeezenet1_1-int8-cpu", "variant": "int8-cpu"}
    assert running() == {**variant, "backend": "onnxruntime-cpu"}
    store.ledger.set_meta("model", json.dumps({"model": "other", "site": None}))
    assert running() is None, "the other model has not run"


def test_it_ends_when_another_role_has_made_the_ledger_again(store: Store) -> None:
    store.take()
    move_aside(store.spool.folder, "damaged")
    worker_of(store).run()
    assert store.states() == ["received"]


def test_it_ends_when_another_thread_finds_the_ledger_damaged(store: Store) -> None:
    store.take()
    damage_table(store.spool.folder, "arrival")
    with pytest.raises(LedgerDamagedError):
        store.ledger.rows("SELECT * FROM arrival")
    worker_of(store).run()
    assert store.states() == ["received"]


def test_one_that_waits_for_another_ends_when_it_is_to_stop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, waits = threading.Event(), threading.Event()

    def log(event: str, **_: object) -> None:
        if event == "waiting":
            waits.set()

    monkeypatch.setattr(role, "log", log)
    config = worker_of(store).config
    with locked(store.spool.folder, "work"):
        waiting = threading.Thread(target=work, args=(config, stop), daemon=True)
        waiting.start()
        assert waits.wait(10)
        waiting.join(0.3)
        assert waiting.is_alive()
        stop.set()
        waiting.join(5)
        assert not waiting.is_alive()
    assert FakeAssessor.started == 0
