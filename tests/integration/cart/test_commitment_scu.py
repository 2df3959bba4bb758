"""Storage commitment that the cart asks for: kept, lost, unanswered, on either association."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cart_outbox import (
    COMMITMENT,
    SHORT,
    WAITS,
    Scripted,
    alerts,
    all_states,
    config_for,
    fill,
    scripted,
)
from cart_peers import HOST, Orthanc, free_port, needs_orthanc, wait_until
from cart_store import Store
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from receiving_cart import ReceivingCart

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send import commitment as commitment_module
from deepcovid_edge.cart.send.commitment import CommitmentUser, settle_event
from deepcovid_edge.cart.send.outbox import Outbox
from deepcovid_edge.cart.store.deliveries import Deliveries

INSTANCE = "1.2.840.10008.1.20.1.1"


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """It asks about storage commitment again soon, too."""
    monkeypatch.setattr(commitment_module, "BACKOFF_SECONDS", WAITS)
    return store


def information(question: Any, lost: set[str]) -> Dataset:
    said = Dataset()
    said.TransactionUID = question.TransactionUID
    kept, failed = [], []
    for item in question.ReferencedSOPSequence:
        if item.ReferencedSOPInstanceUID in lost:
            item.FailureReason = 0x0112
            failed.append(item)
        else:
            kept.append(item)
    if kept:
        said.ReferencedSOPSequence = kept
    if failed:
        said.FailedSOPSequence = failed
    return said


class Archive:
    """What an archive is asked to keep, and what it answers."""

    def __init__(self) -> None:
        self.questions: list[Any] = []
        self.lost: set[str] = set()
        self.answers, self.status = True, 0x0000
        self.answered: int | None = None

    def asked(self, event: Any) -> tuple[int, None]:
        assert event.request.ActionTypeID == 1
        assert event.request.RequestedSOPInstanceUID == INSTANCE
        question = event.action_information
        self.questions.append(question)
        if self.answers and self.status == 0:
            threading.Timer(0.1, self._report, (event.assoc, question)).start()
        return self.status, None

    def _report(self, association: Any, question: Any) -> None:
        said = information(question, self.lost)
        kind = 2 if "FailedSOPSequence" in said else 1
        status, _ = association.send_n_event_report(said, kind, COMMITMENT, INSTANCE)
        self.answered = status.get("Status")

    @property
    def uids(self) -> list[list[str]]:
        return [
            [str(item.ReferencedSOPInstanceUID) for item in one.ReferencedSOPSequence]
            for one in self.questions
        ]


@contextmanager
def archive() -> Iterator[tuple[Archive, Scripted]]:
    found = Archive()
    handlers = [(evt.EVT_N_ACTION, found.asked)]
    with scripted(handlers=handlers, more=[COMMITMENT]) as pacs:
        yield found, pacs


@contextmanager
def sending(store: Store, port: int, title: str = "PACS") -> Iterator[None]:
    goal = Destination("pacs", title, "127.0.0.1", port, commitment=True)
    config = config_for(store, goal)
    outbox = Outbox(config, store.ledger, store.spool, timeouts=SHORT, waits=WAITS)
    outbox.start()
    try:
        yield
    finally:
        outbox.stop()


def test_an_answer_on_the_same_association_makes_it_committed(store: Store) -> None:
    made = fill(store, 2)
    with archive() as (found, pacs), sending(store, pacs.port):
        wait_until(lambda: all_states(store) == {"committed"}, 10)
        assert sorted(uid for uids in found.uids for uid in uids) == sorted(made)
        assert len({str(one.TransactionUID) for one in found.questions}) == len(found.questions)
        wait_until(lambda: found.answered == 0, 5)
        assert len(pacs.arrived) == len(made)


def test_what_was_lost_goes_out_again_ever_more_slowly_and_is_told(store: Store) -> None:
    made = fill(store, 2)
    with archive() as (found, pacs), sending(store, pacs.port):
        found.lost = {min(made)}
        wait_until(lambda: alerts(store) == {"commitment:pacs": "destination_fails"}, 20)
        assert pacs.uids.count(min(made)) >= 2
        assert all(pacs.uids.count(uid) == 1 for uid in made if uid != min(made))
        assert len({data for uid, data in pacs.arrived if uid == min(made)}) == 1
        found.lost = set()
        wait_until(lambda: all_states(store) == {"committed"}, 20)
        wait_until(lambda: alerts(store) == {}, 10)


def test_without_an_answer_it_is_asked_again_after_a_day(store: Store) -> None:
    made = fill(store)
    with archive() as (found, pacs), sending(store, pacs.port):
        found.answers = False
        wait_until(lambda: len(found.questions) == 1, 10)
        time.sleep(1.5)
        assert len(found.questions) == 1
        assert all_states(store) == {"sent"}
        first = str(found.questions[0].TransactionUID)
        store.ledger.rows("UPDATE commitment SET next_try = ?", time.time() - 1)
        wait_until(lambda: len(found.questions) == 2, 10)
        assert sorted(found.uids[1]) == sorted(made)
        assert str(found.questions[1].TransactionUID) != first
        assert alerts(store) == {"commitment:pacs": "destination_fails"}
        late = settle_event(
            Deliveries(store.ledger, store.spool), 1, information(found.questions[0], set())
        )
        assert (late, all_states(store)) == (0, {"sent"})  # it answers a question given up


def test_one_that_refuses_the_question_is_asked_later_and_told(store: Store) -> None:
    fill(store)
    with archive() as (found, pacs), sending(store, pacs.port):
        found.status = 0x0110
        wait_until(lambda: alerts(store) == {"commitment:pacs": "destination_fails"}, 10)
        assert len(found.questions) < 10
        found.status = 0
        wait_until(lambda: all_states(store) == {"committed"}, 10)


def test_a_class_that_is_not_offered_is_told_and_nothing_is_lost(store: Store) -> None:
    fill(store)
    with scripted() as pacs, sending(store, pacs.port):
        wait_until(lambda: "commitment:pacs" in alerts(store), 10)
        assert all_states(store) == {"sent"}


def test_answers_are_taken_for_questions_that_were_asked_alone(store: Store) -> None:
    fill(store)
    queue = Deliveries(store.ledger, store.spool)
    said = Dataset()
    assert settle_event(queue, 1, said) == 0x0115
    said.TransactionUID = "2.25.5"
    assert settle_event(queue, 1, said) == 0x0115
    assert settle_event(queue, 9, said) == 0x0113
    assert all_states(store) == {"queued"}


def test_what_is_in_both_lists_or_in_none_is_not_kept(store: Store) -> None:
    made = sorted(fill(store, 2))
    with archive() as (found, pacs), sending(store, pacs.port):
        found.answers = False
        wait_until(lambda: len(found.questions) == 1, 10)
    said = information(found.questions[0], {made[0]})
    said.ReferencedSOPSequence = [*said.ReferencedSOPSequence[:-1], said.FailedSOPSequence[0]]
    queue = Deliveries(store.ledger, store.spool)
    assert settle_event(queue, 2, said) == 0
    assert settle_event(queue, 1, said) == 0  # a second time changes nothing
    states = {
        row["sop_uid"]: row["state"]
        for row in store.ledger.rows(
            "SELECT sop_uid, state FROM outbox JOIN object ON id = object_id"
        )
    }
    assert sorted(states.values()) == ["committed", "committed", "queued", "queued"]
    assert states[made[0]] == "queued"


def test_one_that_is_away_when_it_is_to_be_asked_is_said_to_be_silent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    queue = Deliveries(store.ledger, store.spool)
    for delivery in queue.due("pacs"):
        queue.sent(delivery, "0x0000")
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port(), commitment=True)
    user = CommitmentUser(goal, "CART", queue, SHORT)
    for _ in range(commitment_module.FAILURES_UNTIL_ALERT):
        user._wait_until = 0.0
        user.ask(threading.Event())
    assert alerts(store) == {"commitment:pacs": "destination_silent"}


def test_a_clock_that_jumped_forward_and_back_asks_again(store: Store) -> None:
    fill(store)
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port(), commitment=True)
    queue = Deliveries(store.ledger, store.spool)
    user = CommitmentUser(goal, "CART", queue, SHORT)
    user._note("2.25.77", [])
    far = datetime.now(timezone.utc) + timedelta(days=400)
    store.ledger.rows("UPDATE commitment SET next_try = ?", far.timestamp())
    user.ask(threading.Event())
    row = store.ledger.row("SELECT state FROM commitment")
    assert row is not None
    assert row["state"] == "given up"


def test_a_cart_that_only_watches_a_folder_takes_the_answer_of_its_destination(
    tmp_path: Path,
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    pacs = {"name": "pacs", "ae_title": "PACS", "host": HOST, "commitment": True}
    cart = ReceivingCart(
        tmp_path / "cart", peers=(), receive={"folders": [incoming]}, destinations=[pacs]
    )
    entity, said = AE("PACS"), Dataset()
    entity.add_requested_context(COMMITMENT)
    said.TransactionUID = "2.25.5"
    roles: list[Any] = [build_role(COMMITMENT, scp_role=True)]
    with cart:
        association = entity.associate(HOST, cart.port, ae_title="CART", ext_neg=roles)
        assert association.is_established
        status, _ = association.send_n_event_report(said, 1, COMMITMENT, INSTANCE)
        association.release()
        assert cart.stop() == 0
    assert status.Status == 0x0115, "the cart has asked for no such transaction"


@needs_orthanc
def test_orthanc_answers_on_an_association_of_its_own(store: Store, tmp_path: Path) -> None:
    fill(store, 2)
    queue = Deliveries(store.ledger, store.spool)

    def taken(event: Any) -> tuple[int, None]:
        return settle_event(queue, event.request.EventTypeID, event.event_information), None

    cart = AE("CART")
    cart.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    server = cart.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, taken)]
    )
    assert server is not None
    assert server.socket is not None
    port = server.socket.getsockname()[1]
    try:
        with (
            Orthanc(tmp_path / "orthanc", peers={"cart": ("CART", port)}) as orthanc,
            sending(store, orthanc.port, "ORTHANC"),
        ):
            wait_until(lambda: all_states(store) == {"committed"}, 20)
    finally:
        server.shutdown()
