"""When an image counts as committed, and what becomes of a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from pydicom.dataset import Dataset

from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.cart.receive import commitment
from deepcovid_edge.cart.receive.commitment import (
    CLASS_CONFLICT,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_OBJECT,
    PROCESSING_FAILURE,
    SUCCESS,
    Commitments,
)
from deepcovid_edge.cart.store.ledger import Ledger

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
CONSOLE = Peer("CONSOLE", "10.0.0.1", 11113)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Reports that a peer took, instead of a peer."""
    reports: list[tuple[Any, ...]] = []

    def taken(_self: Commitments, *report: Any) -> bool:
        reports.append(report)
        return True

    monkeypatch.setattr(Commitments, "_report", taken)
    return reports


@pytest.fixture
def asked(ledger: Ledger, tmp_path: Path) -> Commitments:
    settings = ReceiveSettings(commitment=True)
    config = CartConfig(tmp_path / "cart.toml", CartSettings(tmp_path), settings, (CONSOLE,))
    return Commitments(config, ledger)


def ask(commitments: Commitments, *wanted: tuple[str, str], action: int = 1, **more: Any) -> int:
    information = Dataset()
    information.TransactionUID = more.get("transaction", "1.2.99")
    items = []
    for sop_class, sop_uid in wanted:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
        items.append(item)
    information.ReferencedSOPSequence = items
    event = SimpleNamespace(
        request=SimpleNamespace(ActionTypeID=action),
        action_information=information,
        assoc=SimpleNamespace(requestor=SimpleNamespace(address="::ffff:10.0.0.1")),
    )
    return commitments.ask(event, more.get("peer", CONSOLE))


def add_image(ledger: Ledger, uid: str, state: str, *outbox: str) -> None:
    with ledger.transaction() as now:
        (image,) = now.execute(
            "INSERT INTO image (content_sha256, suffix, sop_uid, sop_class, bytes, source,"
            " received_utc, boot_id, clock_ok, state) VALUES"
            " (?, '.dcm', ?, ?, 1, 'ae', '', '', 1, ?) RETURNING id",
            (f"{uid} {state}", uid, CR, state),
        ).fetchone()
        (result,) = now.execute(
            "INSERT INTO result (image_id, model_sha256, record, made_utc)"
            " VALUES (?, '', '{}', '') RETURNING id",
            (image,),
        ).fetchone()
        for number, each in enumerate(outbox):
            (made,) = now.execute(
                "INSERT INTO object (result_id, kind, sop_class, sop_uid, path, sha256)"
                " VALUES (?, 'sr', '', ?, '', '') RETURNING id",
                (result, f"{uid}.{number}"),
            ).fetchone()
            now.execute(
                "INSERT INTO outbox (object_id, destination, state, changed_utc)"
                " VALUES (?, 'pacs', ?, '')",
                (made, each),
            )


@pytest.mark.parametrize(
    ("state", "outbox", "is_committed"),
    [
        ("received", (), False),
        ("assessing", (), False),
        ("assessed", ("queued",), False),
        ("assessed", ("sent", "sending"), False),
        ("assessed", ("sent", "parked"), False),
        ("assessed", ("sent", "committed"), True),
        ("not_assessed", ("sent",), True),
        ("expired", ("committed",), True),
        ("assessed", (), True),
    ],
)
def test_committed_is_assessed_and_sent_everywhere(
    ledger: Ledger,
    asked: Commitments,
    told: list[tuple[Any, ...]],
    state: str,
    outbox: tuple[str, ...],
    is_committed: bool,
) -> None:
    add_image(ledger, "1.2.3", state, *outbox)
    assert ask(asked, (CR, "1.2.3")) == SUCCESS
    assert asked.tell_due() == is_committed
    if is_committed:
        assert told == [(("10.0.0.1", 11113, "CONSOLE"), "1.2.99", [(CR, "1.2.3")], [])]
        assert asked.tell_due() == 0, "told once"


@pytest.mark.parametrize(
    ("outbox", "reason", "has_destinations", "is_committed"),
    [
        ((), None, True, False),
        ((), "E_UNREADABLE", True, False),
        ((), "E_UNREADABLE", False, False),
        (("sent",), "E_UNREADABLE", True, False),
        (("sent",), "E_VIEW", True, True),
        ((), None, False, True),
    ],
)
def test_an_image_that_was_not_read_or_has_no_answer_fails(
    ledger: Ledger,
    asked: Commitments,
    told: list[tuple[Any, ...]],
    outbox: tuple[str, ...],
    reason: str | None,
    has_destinations: bool,
    is_committed: bool,
) -> None:
    if has_destinations:
        goal = Destination("pacs", "PACS", "10.0.0.2")
        asked = Commitments(replace(asked._config, destinations=(goal,)), ledger)
    add_image(ledger, "1.2.3", "not_assessed", *outbox)
    with ledger.transaction() as now:
        now.execute("UPDATE image SET reason = ?", (reason,))
    ask(asked, (CR, "1.2.3"))
    assert asked.tell_due() == 1
    _, _, kept, failed = told[0]
    assert kept == ([(CR, "1.2.3")] if is_committed else [])
    assert failed == ([] if is_committed else [((CR, "1.2.3"), PROCESSING_FAILURE)])


def test_images_that_are_not_known_fail_at_once(
    ledger: Ledger, asked: Commitments, told: list[tuple[Any, ...]]
) -> None:
    add_image(ledger, "1.2.3", "assessed")
    ask(asked, (CR, "1.2.3"), (CR, "1.2.4"), (DX, "1.2.3"))
    assert asked.tell_due() == 1
    _, _, kept, failed = told[0]
    assert kept == [(CR, "1.2.3")]
    assert failed == [((CR, "1.2.4"), NO_SUCH_OBJECT), ((DX, "1.2.3"), CLASS_CONFLICT)]


def test_two_images_with_one_uid_must_both_be_done(
    ledger: Ledger, asked: Commitments, told: list[tuple[Any, ...]]
) -> None:
    add_image(ledger, "1.2.3", "assessed")
    add_image(ledger, "1.2.3", "received")
    ask(asked, (CR, "1.2.3"))
    assert asked.tell_due() == 0
    assert not told


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"action": 2}, NO_SUCH_ACTION),
        ({"transaction": ""}, INVALID_ARGUMENT),
        ({"peer": Peer("CONSOLE", "10.0.0.1")}, PROCESSING_FAILURE),
    ],
)
def test_requests_that_cannot_be_kept_are_refused(
    ledger: Ledger, asked: Commitments, request_: dict[str, Any], status: int
) -> None:
    assert ask(asked, (CR, "1.2.3"), **request_) == status
    assert ask(asked) == INVALID_ARGUMENT, "no image at all"
    assert not ledger.rows("SELECT * FROM commitment")


def test_a_report_that_nobody_takes_is_tried_again_after_a_restart(
    ledger: Ledger,
    asked: Commitments,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(Commitments, "_report", lambda *_: next(answers))
    now = [1000.0]
    monkeypatch.setattr(commitment, "now_seconds", lambda: now[0])
    ask(asked, (CR, "1.2.4"))
    assert asked.tell_due() == 0
    assert asked.tell_due() == 0, "not before its time"
    again = Commitments(asked._config, ledger)
    now[0] += 13
    assert again.tell_due() == 1


def test_a_clock_that_went_back_holds_up_no_report(
    asked: Commitments, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(Commitments, "_report", lambda *_: next(answers))
    now = [2_000_000_000.0]
    monkeypatch.setattr(commitment, "now_seconds", lambda: now[0])
    ask(asked, (CR, "1.2.4"))
    assert asked.tell_due() == 0
    now[0] -= 20 * 365 * 86400
    assert asked.tell_due() == 1


def test_a_peer_whose_title_holds_the_separator_is_told(
    asked: Commitments, told: list[tuple[Any, ...]]
) -> None:
    peer = replace(CONSOLE, ae_title="CR@ROOM2")
    asked = Commitments(replace(asked._config, peers=(peer,)), asked._ledger)
    assert ask(asked, (CR, "1.2.4"), peer=peer) == SUCCESS
    assert asked.tell_due() == 1
    assert told[0][0] == ("10.0.0.1", 11113, "CR@ROOM2")


def test_the_same_request_again_is_answered_again(
    asked: Commitments, told: list[tuple[Any, ...]]
) -> None:
    for _ in range(2):
        assert ask(asked, (CR, "1.2.4")) == SUCCESS
        assert asked.tell_due() == 1
    assert len(told) == 2


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_transaction_uid_that_is_used_again_during_its_report_is_a_new_request(
    asked: Commitments, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    reports = list[Any]()

    def report(_self: Commitments, _peer: Any, _uid: str, _kept: Any, failed: Any) -> bool:
        reports.append(failed)
        if len(reports) == 1:
            ask(asked, (CR, "1.2.5"))
        return is_taken

    monkeypatch.setattr(Commitments, "_report", report)
    ask(asked, (CR, "1.2.4"))
    for _ in range(2):
        assert asked.tell_due() == is_taken
    assert reports == [[((CR, uid), NO_SUCH_OBJECT)] for uid in ("1.2.4", "1.2.5")]


def test_a_transaction_uid_that_a_console_uses_again_is_a_new_request(
    asked: Commitments, ledger: Ledger, told: list[tuple[Any, ...]]
) -> None:
    add_image(ledger, "1.2.4", "assessed", "sent")
    add_image(ledger, "1.2.5", "received")
    ask(asked, (CR, "1.2.4"))
    assert asked.tell_due() == 1
    ask(asked, (CR, "1.2.5"))
    (row,) = ledger.rows("SELECT tries FROM commitment")
    assert row["tries"] == 0
    assert asked.tell_due() == 0, "it is not assessed yet"
    ask(asked, (CR, "1.2.6"))
    assert asked.tell_due() == 1
    assert told[-1][-1] == [((CR, "1.2.6"), NO_SUCH_OBJECT)]
