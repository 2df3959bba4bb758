"""Deletion never takes what a destination lacks; a lost ledger comes back from the files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from cart_store import DESTINATIONS, FOLDER, Store, make_image, open_store, record
from dicom_files import DX, EXPLICIT, dataset, written
from PIL import Image

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.page.images import find_image
from deepcovid_edge.cart.store import opening
from deepcovid_edge.cart.store.clock import is_plausible
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.intake import Arrival
from deepcovid_edge.cart.store.ledger import LEDGER_NAME, move_aside
from deepcovid_edge.cart.store.rebuild import note_unknown
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT, file_meta_end

UNREADABLE = "E_UNREADABLE"
AE = Arrival("ae", "127.0.0.1", "CONSOLE")


def send_all(store: Store, image_id: int) -> None:
    outbox = Deliveries(store.ledger, store.spool)
    for delivery in outbox.due("pacs"):
        if delivery.image_id == image_id:
            outbox.sent(delivery, "0x0000")


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def files_of(store: Store, folder: str) -> int:
    return sum(path.is_file() for path in (store.spool.folder / folder).rglob("*"))


def test_nothing_is_deleted_before_every_destination_has_it(store: Store) -> None:
    for number in range(3):
        store.take(number)
    store.assess()
    store.assess()
    send_all(store, 1)
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1
    assert store.states() == ["expired", "assessed", "received"]
    assert files_of(store, "images") == 2
    assert files_of(store, "results") == 2
    assert [row["image_id"] for row in store.ledger.rows("SELECT image_id FROM who")] == [2, 3]


def expire(store: Store, image_id: int) -> None:
    """As retention does, once everything is sent."""
    send_all(store, image_id)
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1


def test_nothing_of_an_expired_image_is_sent_or_asked_about_again(store: Store) -> None:
    store.take()
    store.assess()
    expire(store, 1)
    outbox = Deliveries(store.ledger, store.spool)
    assert outbox.resend(1) == 0
    assert outbox.uncommitted("pacs") == []
    with store.ledger.transaction() as now:
        now.execute("UPDATE outbox SET state = 'queued'")
    assert outbox.due("pacs") == []


def test_nothing_of_an_expired_image_goes_to_a_new_destination(store: Store) -> None:
    store.take()
    store.assess()
    expire(store, 1)
    assert Deliveries(store.ledger, store.spool).resend(1, named={"new": ("sr", "sc")}) == 0
    assert not store.ledger.rows("SELECT 1 FROM outbox WHERE destination = 'new'")


def test_an_expired_image_that_is_taken_again_is_stored_and_assessed_anew(store: Store) -> None:
    store.take(PatientName="Anna")
    store.assess()
    expire(store, 1)
    again = store.take(PatientName="Anna")
    assert (again.image_id, again.is_new) == (1, False)
    assert store.states() == ["received"]
    assert files_of(store, "images") == 1
    assert store.ledger.row("SELECT 1 FROM who WHERE image_id = 1 AND name = 'Anna'")
    claimed = store.assess()
    assert (claimed.image_id, claimed.tries) == (1, 1)
    assert len(store.ledger.rows("SELECT * FROM object")) == 2
    outbox = Deliveries(store.ledger, store.spool)
    assert outbox.due("pacs") == [], "it was sent before"
    assert outbox.resend(1) == 2
    assert all(
        hashlib.sha256(one.path.read_bytes()).hexdigest() == one.sha256
        for one in outbox.due("pacs")
    )


def test_another_answer_takes_the_place_of_one_whose_files_were_deleted(store: Store) -> None:
    """As after an update of the program, which refuses the image now."""
    store.take()
    store.assess(decision="positive")
    expire(store, 1)
    store.take()
    claimed = store.images.claim()
    assert claimed is not None
    made, refused = "2026-12-01T10:00:00.000+00:00", {**record(None), "reason": "E_AGE"}
    built = store.built(replace(claimed, image_id=99), "sr")  # of another UID
    store.images.settle(claimed, Settled(refused, [built], DESTINATIONS, made))
    (result,) = store.ledger.rows("SELECT * FROM result")
    assert (result["decision"], result["made_utc"]) == (None, made)
    assert json.loads(result["record"])["reason"] == "E_AGE"
    outbox = Deliveries(store.ledger, store.spool)
    assert [one.sop_uid for one in outbox.due("pacs")] == [built.sop_uid]
    assert outbox.resend(1) == 1, "the objects of before have no files any more"
    shown = find_image(store.ledger, store.spool, 1)
    assert shown is not None
    assert (shown.row.kind, shown.row.reason, shown.score) == ("not_assessed", "E_AGE", None)


def test_an_image_that_is_assessed_again_shows_no_score_meanwhile(store: Store) -> None:
    store.take()
    store.assess(decision="positive")
    expire(store, 1)
    store.take()
    shown = find_image(store.ledger, store.spool, 1)
    assert shown is not None
    assert (shown.row.kind, shown.score, shown.bar, shown.limits) == ("waiting", None, None, {})


def test_an_image_that_is_taken_again_while_it_expires_keeps_its_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take()
    store.assess()
    send_all(store, 1)
    event = store.ledger.event

    def expire_and_take(what: str, image_id: int | None = None, **detail: object) -> None:
        event(what, image_id, **detail)
        if what == "expired":
            store.ledger._connection.execute("COMMIT")
            store.ledger._connection.execute("BEGIN IMMEDIATE")
            store.take()

    monkeypatch.setattr(store.ledger, "event", expire_and_take)
    delete_old(store.ledger, store.spool, RetentionSettings(0, 0))
    assert store.states() == ["received"]
    assert files_of(store, "images") == 1


@pytest.mark.parametrize("loss", ["gone", "unreadable"])
def test_an_image_whose_file_was_lost_is_stored_when_it_comes_again(
    store: Store, loss: str
) -> None:
    store.take()
    (kept,) = (store.spool.folder / "images").rglob("*.dcm")
    kept.unlink()
    if loss == "unreadable":
        kept.symlink_to("/proc/self/mem")
        claimed = store.images.claim()
        assert claimed is not None
        store.images.settle(claimed, Settled({**record(None), "reason": UNREADABLE}))
    assert not store.take().is_new
    assert store.states() == ["received"]
    assert kept.read_bytes() == make_image()
    store.assess()
    assert store.states() == ["assessed"]
    assert [row["decision"] for row in store.ledger.rows("SELECT * FROM result")] == ["negative"]


def test_where_commitment_is_asked_for_an_image_waits_for_it(store: Store) -> None:
    store.take()
    store.assess()
    send_all(store, 1)
    settings = RetentionSettings(0, 0, committing=("pacs",))
    assert delete_old(store.ledger, store.spool, settings) == 0
    outbox = Deliveries(store.ledger, store.spool)
    uids = [uid for _, uid in outbox.uncommitted("pacs")]
    outbox.ask_commitment("pacs", "2.25.5", uids)
    outbox.settle_commitment("pacs", "2.25.5", uids, [])
    assert delete_old(store.ledger, store.spool, settings) == 1


def test_images_are_kept_for_their_days(store: Store) -> None:
    store.take()
    store.assess()
    send_all(store, 1)
    assert delete_old(store.ledger, store.spool, RetentionSettings(1, 0)) == 0
    settle_at(store, datetime.now(timezone.utc) - timedelta(days=2))
    assert delete_old(store.ledger, store.spool, RetentionSettings(1, 0)) == 1


@pytest.mark.parametrize("years", [-20, 20])
def test_an_image_of_a_wrong_clock_does_not_go_when_the_clock_is_set_right(
    store: Store, years: int
) -> None:
    store.take()
    store.assess()
    send_all(store, 1)
    settle_at(store, datetime.now(timezone.utc) + timedelta(days=365 * years))
    assert delete_old(store.ledger, store.spool, RetentionSettings(1, 0)) == 0
    row = store.ledger.row("SELECT settled_utc FROM image")
    assert row is not None
    assert is_plausible(row["settled_utc"])


def settle_at(store: Store, moment: datetime) -> None:
    """As if all had been settled, and sent, at a moment."""
    with store.ledger.transaction() as now:
        text = moment.isoformat(timespec="milliseconds")
        now.execute("UPDATE image SET settled_utc = ?", (text,))
        now.execute("UPDATE outbox SET changed_utc = ?", (text,))


def test_the_days_begin_when_every_destination_has_it(store: Store) -> None:
    store.take()
    store.assess()
    settle_at(store, datetime.now(timezone.utc) - timedelta(days=20))
    send_all(store, 1)  # after an outage
    assert delete_old(store.ledger, store.spool, RetentionSettings(7, 0)) == 0
    assert store.states() == ["assessed"]


def test_an_image_that_goes_nowhere_is_kept_for_its_days_too(store: Store) -> None:
    nowhere = RetentionSettings(1, 0, has_destinations=False)
    store.take()
    store.assess(kinds=())
    assert delete_old(store.ledger, store.spool, nowhere) == 0
    settle_at(store, datetime.now(timezone.utc) - timedelta(days=2))
    assert delete_old(store.ledger, store.spool, nowhere) == 1


@pytest.mark.parametrize("kinds", [(), ("sr", "sc")])
@pytest.mark.parametrize("has_destinations", [True, False])
def test_an_image_that_was_not_read_is_never_deleted(
    store: Store, kinds: tuple[str, ...], has_destinations: bool
) -> None:
    store.take()
    store.assess(decision=None, kinds=kinds)
    send_all(store, 1)
    with store.ledger.transaction() as now:
        now.execute("UPDATE image SET reason = ?", (UNREADABLE,))
    settings = RetentionSettings(0, 0, has_destinations=has_destinations)
    assert delete_old(store.ledger, store.spool, settings) == 0


@pytest.mark.parametrize("kinds", [(), ("sc",)])
def test_an_image_without_a_report_is_not_deleted_where_reports_go_out(
    store: Store, kinds: tuple[str, ...]
) -> None:
    store.take()
    store.assess(kinds=kinds)
    send_all(store, 1)
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 0
    settings = RetentionSettings(0, 0, has_destinations=False)
    assert delete_old(store.ledger, store.spool, settings) == 1


def test_a_picture_needs_no_report_to_be_deleted(store: Store) -> None:
    store.intake.take_file(png(), name="a.png", arrival=FOLDER)
    store.assess(kinds=())
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1


def test_results_count_towards_the_quota(store: Store) -> None:
    for number in range(2):
        store.take(number)
        claimed = store.images.claim()
        assert claimed is not None
        store.spool.store([bytes(1 << 20)], store.spool.results(claimed.content_sha256) / "map")
        store.images.settle(claimed, Settled(record("positive")))
    for quota, deleted in ((3, 0), (2, 1)):
        settings = RetentionSettings(99, quota, has_destinations=False)
        assert delete_old(store.ledger, store.spool, settings) == deleted
    assert store.states() == ["expired", "assessed"]


def test_over_the_quota_the_oldest_done_images_go_first(store: Store) -> None:
    for number in range(4):
        store.take(number)
        store.assess()
    with store.ledger.transaction() as now:
        now.execute("UPDATE image SET bytes = 1 << 20, result_bytes = 0")
    for image_id in (2, 3, 4):  # the first is not sent: it stays, whatever the quota
        send_all(store, image_id)
    assert delete_old(store.ledger, store.spool, RetentionSettings(99, 2)) == 2
    assert store.states() == ["assessed", "expired", "expired", "assessed"]


@pytest.mark.parametrize("damage", ["bytes", "gone", "page"])
def test_a_damaged_ledger_is_made_again_from_the_files(tmp_path: Path, damage: str) -> None:
    settings = CartSettings(tmp_path, floor_mib=0, floor_share=0.0, ballast_mib=0)
    with open_store(tmp_path) as store:
        for number in range(3):
            store.take(number, PatientName="Anna")
        claimed = store.assess()
        (first,) = [one for one in store.ledger.rows("SELECT * FROM object WHERE kind = 'sr'")]
        objects = [store.built(claimed, kind) for kind in ("sr", "sc")]
        settled = Settled(record("positive"), objects, DESTINATIONS)
        store.write_record(claimed, settled)
    _damage(tmp_path / LEDGER_NAME, damage)
    ledger, _ = opening.open_store(settings)
    with ledger:
        states = [row["state"] for row in ledger.rows("SELECT state FROM image ORDER BY id")]
        assert states == ["assessed", "received", "received"]
        again = ledger.row("SELECT * FROM object WHERE kind = 'sr'")
        assert again is not None
        assert (again["sop_uid"], again["sha256"]) == (first["sop_uid"], first["sha256"])
        assert {row["state"] for row in ledger.rows("SELECT state FROM outbox")} == {"queued"}
        assert ledger.row("SELECT 1 FROM alert WHERE code = 'ledger_rebuilt'")
        assert [*tmp_path.glob("damaged-*")] or damage == "gone"


def _damage(ledger: Path, how: str) -> None:
    whole = ledger.read_bytes()
    if how == "gone":
        ledger.unlink()
    elif how == "bytes":
        ledger.write_bytes(b"\xff" * 4096 + whole[4096:])
    else:  # one page in the middle: SQLite opens it and finds out only when it checks
        ledger.write_bytes(whole[:8192] + b"\xff" * 4096 + whole[12288:])


@pytest.mark.parametrize("how", ["other encoding", "meta elements"])
def test_an_image_that_is_not_as_it_was_negotiated_is_in_a_new_ledger(
    tmp_path: Path, how: str
) -> None:
    image = dataset(np.zeros((4, 4), np.uint16), SOPInstanceUID="2.25.1001")
    whole = written(image, IMPLICIT if how == "other encoding" else EXPLICIT)
    data = whole[132 if how == "meta elements" else file_meta_end(whole) :]
    settings = CartSettings(tmp_path, floor_mib=0, floor_share=0.0, ballast_mib=0)
    with open_store(tmp_path) as store:
        taken = store.intake.take_dataset(
            data, sop_class=DX, sop_uid="2.25.1001", syntax=EXPLICIT, arrival=AE
        )
        again = store.intake.take_file(whole, name="a.dcm", arrival=FOLDER)
        assert (again.image_id, again.is_new) == (taken.image_id, False)
    (tmp_path / LEDGER_NAME).unlink()
    ledger, _ = opening.open_store(settings)
    with ledger:
        assert not ledger.row("SELECT 1 FROM event WHERE kind = 'not rebuilt'")
        assert len(ledger.rows("SELECT * FROM image")) == 1


def as_another_image(path: Path) -> None:
    path.write_bytes(make_image(9))


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose first byte gives EIO


@pytest.mark.parametrize("damage", [as_another_image, unreadable])
def test_a_damaged_image_is_left_out_of_a_new_ledger(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    settings = CartSettings(tmp_path, floor_mib=0, floor_share=0.0, ballast_mib=0)
    with open_store(tmp_path) as store:
        store.take(1)
        store.take(2)
        damage(sorted((tmp_path / "images").rglob("*.dcm"))[0])
    (tmp_path / LEDGER_NAME).unlink()
    ledger, _ = opening.open_store(settings)
    with ledger:
        assert len(ledger.rows("SELECT * FROM image")) == 1
        assert ledger.row("SELECT 1 FROM event WHERE kind = 'not rebuilt'")


def test_what_was_stored_while_the_ledger_was_made_again_is_noted_once(tmp_path: Path) -> None:
    settings = CartSettings(tmp_path, floor_mib=0, floor_share=0.0, ballast_mib=0)
    with open_store(tmp_path) as store:
        store.take(1)
        assert note_unknown(store.ledger, store.spool) == 0
        move_aside(tmp_path, "damaged")
        assert store.ledger.is_replaced()
        again, spool = opening.open_store(settings)
        with again:
            assert not again.is_replaced()
            store.take(2)  # by a receiver that has not noticed: into the ledger that lies aside
            assert len(again.rows("SELECT * FROM image")) == 1
            assert note_unknown(again, spool) == 1
            assert note_unknown(again, spool) == 0
            assert len(again.rows("SELECT * FROM image")) == 2
