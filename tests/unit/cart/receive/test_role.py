"""The role `receive` as a whole: it ends when its ledger is damaged, and clears old alerts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from cart_peers import wait_until
from cart_store import damage_table, make_image, open_store

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig, CartSettings, ReceiveSettings
from deepcovid_edge.cart.heartbeat import RECEIVER, runs
from deepcovid_edge.cart.receive import folder
from deepcovid_edge.cart.receive.role import receive
from deepcovid_edge.cart.store.ledger import Ledger

GONE = (AlertCode.FOLDER_GONE, AlertCode.FILES_UNREAD, AlertCode.IMAGE_TOO_LARGE)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CartConfig:
    """A cart that watches one folder."""
    monkeypatch.setattr(folder, "SCAN_SECONDS", 0.05)
    watched = tmp_path / "in"
    watched.mkdir()
    with open_store(tmp_path / "spool"):
        pass  # its tables are there
    settings = CartSettings(tmp_path / "spool", floor_mib=0, floor_share=0.0, ballast_mib=0)
    return CartConfig(tmp_path / "cart.toml", settings, ReceiveSettings(folders=(watched,)))


@contextlib.contextmanager
def receiving(config: CartConfig) -> Iterator[threading.Thread]:
    """The role in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=receive, args=(config, stop), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_cart_that_only_watches_folders_says_that_its_receiver_runs(config: CartConfig) -> None:
    with receiving(config):
        wait_until(lambda: receiver_runs(config.cart.spool), what="a sign of life")


def receiver_runs(spool: Path) -> bool:
    with Ledger(spool, read_only=True) as ledger:
        return runs(ledger, RECEIVER)


def images_of(spool: Path) -> int:
    with Ledger(spool, read_only=True) as ledger:
        return len(ledger.rows("SELECT 1 FROM image"))


def test_a_ledger_that_is_damaged_meanwhile_ends_the_role_and_is_made_again(
    config: CartConfig,
) -> None:
    spool, watched = config.cart.spool, config.receive.folders[0]
    with receiving(config) as role:
        (watched / "a.dcm").write_bytes(make_image(1))
        wait_until(lambda: images_of(spool) == 1, what="an image")
        damage_table(spool, "arrival")
        (watched / "b.dcm").write_bytes(make_image(2))
        wait_until(lambda: not role.is_alive(), what="the end of the role")
    with receiving(config):
        wait_until(lambda: images_of(spool) == 2, what="both images")
    with open_store(spool) as store:
        assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'ledger_rebuilt'")


def test_alerts_of_folders_that_are_not_watched_any_more_end(config: CartConfig) -> None:
    spool, watched = config.cart.spool, config.receive.folders[0]
    large = AlertCode.IMAGE_TOO_LARGE.code
    with open_store(spool) as store:
        for code in GONE:
            store.ledger.raise_alert(folder.alert_key(code, Path("/gone")), code.code)
        store.ledger.raise_alert(large, large)  # of the DICOM port
        unread = folder.alert_key(AlertCode.FILES_UNREAD, watched)
        store.ledger.raise_alert(unread, AlertCode.FILES_UNREAD.code)
        folder.clear_alerts_of_removed(store.ledger, [watched])
        keys = {row["key"] for row in store.ledger.rows("SELECT key FROM alert")}
        assert keys == {large, unread}
        store.ledger.raise_alert(folder.alert_key(GONE[0], Path("/gone")), GONE[0].code)
    with receiving(config):
        wait_until(lambda: "folder_gone" not in codes(spool), what="the end of the alert")


def codes(spool: Path) -> set[str]:
    with Ledger(spool, read_only=True) as ledger:
        return {row["code"] for row in ledger.rows("SELECT code FROM alert")}
