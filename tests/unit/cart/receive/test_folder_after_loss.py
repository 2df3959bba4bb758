"""Watched folders after the ledger was lost: what was taken before is not taken as new."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cart_store import KINDS, Store, make_image, record
from cart_store import open_store as open_as_the_tests

from deepcovid_edge.cart.config import CartSettings, ReceiveSettings
from deepcovid_edge.cart.receive import listing
from deepcovid_edge.cart.receive.folder import FolderWatch
from deepcovid_edge.cart.store.backup import back_up, newest, restore
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import LEDGER_NAME
from deepcovid_edge.cart.store.opening import open_store
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old


class Cart:
    """A cart with a watched folder, whose files stay where they are."""

    def __init__(self, place: Path) -> None:
        self.spool, self.copies, self.folder = place / "spool", place / "copies", place / "incoming"
        self.folder.mkdir()
        self.now = 0.0

    @contextmanager
    def start(self) -> Iterator[Store]:
        """As a role starts: a lost ledger is made again."""
        settings = CartSettings(
            self.spool, floor_mib=0, floor_share=0.0, ballast_mib=0, backup=self.copies
        )
        open_store(settings)[0].close()
        with open_as_the_tests(self.spool) as store:
            receive = ReceiveSettings(folders=(self.folder,))
            self.watch = FolderWatch(
                self.folder, receive, store.intake, threading.Event(), clock=lambda: self.now
            )
            yield store

    def scan(self) -> None:
        """Long enough for a file that is whole to be taken."""
        for _ in range(3):
            self.now += 2
            self.watch.scan()

    def lose_ledger(self) -> None:
        for path in self.spool.glob(f"{LEDGER_NAME}*"):
            path.unlink()


@pytest.fixture
def cart(tmp_path: Path) -> Cart:
    """One image of a watched folder, assessed and sent to its destination."""
    made = Cart(tmp_path)
    (made.folder / "a.dcm").write_bytes(make_image(1))
    with made.start() as store:
        made.scan()
        assess(store)
        send(store)
    return made


def assess(store: Store) -> None:
    """As the worker does: the record lies beside the objects."""
    claimed = store.images.claim()
    assert claimed is not None
    objects = [store.built(claimed, kind) for kind in KINDS]
    settled = Settled(record("negative"), objects, {"pacs": KINDS})
    store.write_record(claimed, settled)
    store.images.settle(claimed, settled)


def send(store: Store) -> None:
    outbox = Deliveries(store.ledger, store.spool)
    for delivery in outbox.due("pacs"):
        outbox.sent(delivery, "0x0000")


def expire(store: Store) -> None:
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1


def waiting(store: Store) -> int:
    return len(store.ledger.rows("SELECT * FROM outbox WHERE state = 'queued'"))


def test_a_file_whose_image_is_in_the_spool_is_the_same_image(cart: Cart) -> None:
    cart.lose_ledger()
    with cart.start() as store:
        before = waiting(store)
        cart.scan()
        assert store.states() == ["assessed"]
        assert waiting(store) == before, "nothing is queued beside what was made again"
        assert len(store.ledger.rows("SELECT * FROM seen")) == 1


@pytest.mark.parametrize("loss", ["gone", "restored"])
def test_a_file_whose_image_was_answered_and_deleted_is_not_taken_again(
    cart: Cart, loss: str
) -> None:
    with cart.start() as store:
        expire(store)
        back_up(cart.spool, cart.copies, keep=7)
    if loss == "gone":
        cart.lose_ledger()
    else:
        with open_as_the_tests(cart.spool) as store:
            restore(store.spool, newest(cart.copies))  # type: ignore[arg-type]
    with cart.start() as store:
        cart.scan()
        assert store.states() == ["expired"]
        assert waiting(store) == 0
        assert not [*(cart.spool / "images").rglob("*.dcm")]
        (result,) = store.ledger.rows("SELECT decision FROM result")
        assert result["decision"] == "negative"
        (cart.folder / "b.dcm").write_bytes(make_image(2))
        os.utime(cart.folder / "a.dcm", ns=(1, 1))  # somebody has put it there again
        cart.scan()
        assert store.states() == ["received", "received"]


def test_a_file_in_a_folder_that_could_not_be_listed_at_first_is_known_too(
    cart: Cart, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = cart.folder / "below"
    below.mkdir()
    (cart.folder / "a.dcm").rename(below / "a.dcm")
    with cart.start() as store:
        cart.scan()
        expire(store)
        back_up(cart.spool, cart.copies, keep=7)
    cart.lose_ledger()
    entries = listing._entries

    def list_folder(place: Path, progress: Callable[[], None]) -> Any:
        if place == below:
            raise PermissionError(13, "Permission denied")
        return entries(place, progress)

    with cart.start() as store:
        with monkeypatch.context() as patched:
            patched.setattr(listing, "_entries", list_folder)
            cart.scan()
        cart.scan()
        assert store.states() == ["expired"]


def test_an_image_that_was_deleted_after_the_night_is_known_too(cart: Cart) -> None:
    with cart.start() as store:
        back_up(cart.spool, cart.copies, keep=7)
        expire(store)
    cart.lose_ledger()
    with cart.start() as store:
        cart.scan()
        assert store.states() == ["expired"]


@pytest.mark.parametrize("why", ["not sent", "no copy", "damaged copy"])
def test_what_is_not_known_to_be_answered_is_taken(cart: Cart, why: str) -> None:
    """Its files are lost, and nobody can tell that its destination has the answer."""
    with cart.start() as store:
        if why == "not sent":
            with store.ledger.transaction() as now:
                now.execute("UPDATE outbox SET state = 'queued'")
        copy = back_up(cart.spool, cart.copies, keep=7)
        row = store.ledger.row("SELECT content_sha256, suffix FROM image")
        assert row is not None
        store.spool.delete(row["content_sha256"], row["suffix"])
    if why == "no copy":
        copy.unlink()
    elif why == "damaged copy":
        copy.write_bytes(copy.read_bytes()[:4096] + b"\xff" * 8192)
    cart.lose_ledger()
    with cart.start() as store:
        cart.scan()
        assert store.states() == ["received"]
        assert [*(cart.spool / "images").rglob("*.dcm")]
