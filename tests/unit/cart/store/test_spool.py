"""The spool's ballast, given up only where the disk is full, and what tells a cart from others."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cart_store import ROOMY, Store, open_store

from deepcovid_edge.cart.store.ledger import LedgerBusyError, LedgerFullError
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError, SpoolSettings, write_fault


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, replace(ROOMY, ballast_mib=1)) as opened:
        opened.spool.fill_ballast()
        yield opened


def has_ballast(store: Store) -> bool:
    return (store.spool.folder / "ballast").exists()


def test_nobody_else_looks_into_the_spool(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = Spool(tmp_path / "spool")
        spool.store([b"x"], spool.image("a" * 64, ".dcm"))
    finally:
        os.umask(before)
    folders = [spool.folder, *(path for path in spool.folder.rglob("*") if path.is_dir())]
    assert len(folders) == 6
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_an_image_is_taken_where_it_leaves_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, size = 100 << 20, 5000
    usage = SimpleNamespace(total=10 * free, used=9 * free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    spool = Spool(tmp_path, SpoolSettings(100, 0.0, 0))
    spool.check_room(0)
    with pytest.raises(SpoolFullError, match="100 MiB free, floor 100 MiB"):
        spool.check_room(1)
    usage.free += size
    spool.check_room(size)
    with pytest.raises(SpoolFullError):
        spool.check_room(size + 1)


def test_a_cart_keeps_what_tells_it_from_others(store: Store, tmp_path: Path) -> None:
    drawn = store.spool.cart_id()
    assert re.fullmatch("[0-9a-f]{32}", drawn)
    assert Spool(store.spool.folder).cart_id() == drawn
    assert Spool(tmp_path / "other").cart_id() != drawn
    assert not [*store.spool.folder.glob(".*.part")]


def test_of_two_processes_the_first_draws_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.spool._write

    def late(parts: Iterable[bytes], path: Path) -> None:
        write(parts, path)
        (store.spool.folder / "cart-id").write_text("f" * 32)

    monkeypatch.setattr(store.spool, "_write", late)
    assert store.spool.cart_id() == "f" * 32


def test_the_ballast_takes_room_and_is_given_up_once(store: Store) -> None:
    assert (store.spool.folder / "ballast").stat().st_blocks * 512 >= 1 << 20
    assert store.spool.drop_ballast()
    assert not store.spool.drop_ballast()


def test_a_ledger_that_another_role_holds_costs_no_ballast(store: Store) -> None:
    store.ledger._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError, match="locked"):
        store.spool.write_in_reserve(lambda: store.ledger.set_meta("a", "1"))
    other.close()
    assert has_ballast(store)


def test_a_full_ledger_is_written_into_the_room_of_the_ballast(store: Store) -> None:
    connection = store.ledger._connection
    connection.execute("PRAGMA max_page_count = 1")  # it has more: none can be added
    text = "x" * (1 << 20)

    def write() -> None:
        if not has_ballast(store):
            connection.execute("PRAGMA max_page_count = 100000")
        store.ledger.set_meta("a", text)

    with pytest.raises(LedgerFullError, match="full"):
        store.ledger.set_meta("a", text)
    assert has_ballast(store)
    store.spool.write_in_reserve(write)
    assert not has_ballast(store)
    assert store.ledger.get_meta("a") == text


def test_why_a_folder_cannot_be_written_is_asked_without_a_trace(tmp_path: Path) -> None:
    assert write_fault(tmp_path) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert write_fault(tmp_path / "file") == "Not a directory"
