"""Nightly copies of the ledger: without names, so many, and restored with nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cart_store import Store, open_store, record
from click.testing import CliRunner
from whole_cart import KANARI

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import read_config
from deepcovid_edge.cart.store.backup import back_up, newest, restore
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import LEDGER_NAME
from deepcovid_edge.cart.store.opening import open_store as open_as_a_role
from deepcovid_edge.cart.store.retention import CLOCK_KEY
from deepcovid_edge.cart.work import housekeeping
from deepcovid_edge.cart.work.housekeeping import Housekeeping
from deepcovid_edge.errors import NotThereError, OutputError, UsageError

CONFIG = """
[cart]
spool = "spool"
floor_mib = 0
floor_share = 0.0
ballast_mib = 0
backup_keep = 3
[receive]
folders = ["incoming"]
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two images of a patient with a name: one is assessed, one waits."""
    with open_store(tmp_path / "spool") as opened:
        opened.take(1, PatientName=KANARI, PatientID="KANARI-17")
        assess_as_the_worker(opened)
        opened.take(2, PatientName=KANARI, PatientID="KANARI-17")
        opened.ledger.insert(
            "seen", {"path": f"/in/{KANARI}.png", "bytes": 1, "modified_ns": 1, "inode": 1}
        )
        yield opened


def assess_as_the_worker(store: Store) -> None:
    """Settle the image that has waited longest; its record lies beside the objects."""
    claimed = store.images.claim()
    assert claimed is not None
    objects = [store.built(claimed, kind) for kind in ("sr", "sc")]
    settled = Settled(record("negative"), objects, {"pacs": ("sr", "sc")})
    store.write_record(claimed, settled)
    store.images.settle(claimed, settled)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def test_a_copy_has_everything_but_names(store: Store, tmp_path: Path) -> None:
    copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
    tables = {row[0] for row in rows(copy, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    original = {
        row["name"]
        for row in store.ledger.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    assert original - tables == {"who", "seen"}
    for table in tables - {"left_out"}:
        query = f'SELECT * FROM "{table}"'
        assert len(rows(copy, query)) == len(store.ledger.rows(query))
    assert (
        KANARI.encode()
        in (store.spool.folder / LEDGER_NAME).read_bytes()
        + (store.spool.folder / f"{LEDGER_NAME}-wal").read_bytes()
    )
    for word in (b"Kanari", b"KANARI"):
        assert word not in copy.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_made_while_the_ledger_is_written(store: Store, tmp_path: Path) -> None:
    """Nobody waits for it, and it is of one moment: no result lacks its image."""
    stop = threading.Event()

    def write() -> None:
        number = 10
        while not stop.is_set():
            store.take(number)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
            assert rows(copy, "PRAGMA foreign_key_check") == []
            (images,), (arrivals,) = (
                rows(copy, f"SELECT count(*) FROM {name}")[0] for name in ("image", "arrival")
            )
            assert images == arrivals
    finally:
        stop.set()
        thread.join()


def test_the_oldest_copies_go_whatever_the_clock_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter(["2026-12-01", "2026-12-02", "2019-01-01", "2026-12-03"])
    monkeypatch.setattr("deepcovid_edge.cart.store.backup.now_utc", lambda: next(days))
    for _ in range(4):
        back_up(store.spool.folder, tmp_path / "copies", keep=2)
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == [
        "ledger-000003-2019-01-01.db",
        "ledger-000004-2026-12-03.db",
    ]


def test_a_copy_that_is_not_whole_replaces_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copies"
    whole = back_up(store.spool.folder, folder, keep=1)
    real = sqlite3.connect

    class Failing(sqlite3.Connection):
        """Its disk loses what was written: the check of the copy finds that."""

        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            if "quick_check" in sql:
                sql = "SELECT 'row 1 missing from index'"
            return super().execute(sql, *given)

    monkeypatch.setattr(
        sqlite3, "connect", lambda *given, **named: real(*given, **named, factory=Failing)
    )
    with pytest.raises(OutputError, match="damaged: row 1 missing from index"):
        back_up(store.spool.folder, folder, keep=1)
    assert newest(folder) == whole


def test_what_a_copy_lacks_is_read_from_the_spool(store: Store, tmp_path: Path) -> None:
    copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
    assess_as_the_worker(store)  # the second image, after the night
    store.take(3, PatientName=KANARI)  # one that came after the night
    events = store.ledger.rows("SELECT count(*) AS n FROM event")[0]["n"]
    query = "SELECT sop_uid, path, sha256 FROM object ORDER BY id"
    before = [tuple(row) for row in store.ledger.rows(query)]
    assert restore(store.spool, copy) == 1
    assert store.ledger.is_replaced()
    assert len([*store.spool.folder.glob(f"replaced-*-{LEDGER_NAME}")]) == 1
    with open_store(store.spool.folder) as restored:
        assert restored.states() == ["assessed", "assessed", "received"]
        assert [tuple(row) for row in restored.ledger.rows(query)] == before
        names = restored.ledger.rows("SELECT name FROM who ORDER BY image_id")
        assert [row["name"] for row in names] == [KANARI] * 3
        assert restored.ledger.broken_event() is None
        assert restored.events()[-1] == "alert"
        assert len(restored.events()) >= events - 2
        assert restored.ledger.row("SELECT 1 FROM alert WHERE code = 'ledger_restored'")


def test_a_ledger_that_is_restored_is_not_said_to_be_damaged(store: Store, tmp_path: Path) -> None:
    """Though it was, before the night of the copy."""
    store.ledger.raise_alert("ledger", "ledger_rebuilt", why="damaged", images=2)
    copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
    restore(store.spool, copy)
    with open_store(store.spool.folder) as restored:
        (alert,) = restored.ledger.rows("SELECT * FROM alert")
        assert alert["code"] == "ledger_restored"
        assert json.loads(alert["detail"]) == {"copy": copy.name}


def test_images_that_were_deleted_since_are_expired_and_not_waited_for(
    store: Store, tmp_path: Path
) -> None:
    copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
    row = store.ledger.row("SELECT content_sha256, suffix FROM image WHERE id = 1")
    assert row is not None
    store.spool.delete(row["content_sha256"], row["suffix"])
    restore(store.spool, copy)
    with open_store(store.spool.folder) as restored:
        assert restored.states() == ["expired", "received"]
        assert Deliveries(restored.ledger, restored.spool).due("pacs") == []
        assert restored.ledger.rows("SELECT * FROM outbox WHERE state = 'queued'") == []


def test_an_expired_image_of_a_copy_that_came_again_since_is_none(
    store: Store, tmp_path: Path
) -> None:
    with store.ledger.transaction() as now:
        now.execute("UPDATE image SET state = 'expired'")
    copy = back_up(store.spool.folder, tmp_path / "copies", keep=7)
    assert restore(store.spool, copy) == 0
    with open_store(store.spool.folder) as restored:
        assert restored.states() == ["assessed", "received"]


def test_the_clock_of_that_night_is_forgotten(store: Store, tmp_path: Path) -> None:
    store.ledger.set_meta(CLOCK_KEY, "[1.0, 0.0, 1.0]")
    restore(store.spool, back_up(store.spool.folder, tmp_path / "copies", keep=7))
    with open_store(store.spool.folder) as restored:
        assert restored.ledger.get_meta(CLOCK_KEY) is None


def test_a_lost_ledger_is_restored_by_the_command(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "cart.toml"
    config.write_text(CONFIG)
    back_up(store.spool.folder, store.spool.folder / "backup", keep=7)
    for path in store.spool.folder.glob(f"{LEDGER_NAME}*"):
        path.unlink()
    done = CliRunner().invoke(command, ["restore", str(config)])
    assert "0 later images were added" in done.output, done.output
    ledger, _ = open_as_a_role(read_config(config).cart)  # finds nothing to make again
    with ledger:
        assert ledger.row("SELECT count(*) AS n FROM arrival WHERE source = 'rebuild'")["n"] == 0  # type: ignore[index]


def test_what_is_no_copy_changes_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be read " * 9)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE a (b)")
        other.commit()
    for name in ("text.db", "other.db"):
        with pytest.raises(UsageError, match="is no copy of a ledger"):
            restore(store.spool, tmp_path / name)
    with pytest.raises(NotThereError):
        restore(store.spool, tmp_path / "none.db")
    assert not store.ledger.is_replaced()
    assert store.states() == ["assessed", "received"]


def test_it_is_made_once_a_night_and_a_failure_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cart.toml"
    path.write_text(CONFIG)
    house = Housekeeping(read_config(path), store.ledger, store.spool, threading.Event())
    folder = store.spool.folder / "backup"
    for _ in range(3):
        house.look()
    assert [one.name for one in folder.iterdir()] == [newest(folder).name]  # type: ignore[union-attr]
    yesterday = time.time() - 86_400 * 1.5
    for _ in range(6):  # six nights
        os.utime(newest(folder), (yesterday, yesterday))  # type: ignore[arg-type]
        house.look()
    assert len([*folder.iterdir()]) == 3
    os.utime(newest(folder), (yesterday, yesterday))  # type: ignore[arg-type]
    with monkeypatch.context() as failing:

        def fails(*_: object) -> Path:
            raise OutputError("no space left on device")

        failing.setattr(housekeeping, "back_up", fails)
        house.look()
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'backup'")
    house.look()
    assert not store.ledger.row("SELECT 1 FROM alert WHERE code = 'backup'")


def test_a_copy_that_was_not_finished_gives_its_room_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for name in (".ledger-000001-2026-12-01.db.part", ".ledger-000007-2026-12-02.db.part"):
        (folder / name).write_bytes(b"of nights in which the cart was ended")
    assert [back_up(store.spool.folder, folder, keep=7)] == [*folder.iterdir()]

    def fills_the_disk(_ledger: Path, place: Path, _progress: object) -> None:
        place.write_bytes(b"what fitted")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("deepcovid_edge.cart.store.backup._copy", fills_the_disk)
    with pytest.raises(OutputError, match="disk is full"):
        back_up(store.spool.folder, folder, keep=7)
    assert [path.suffix for path in folder.iterdir()] == [".db"]


@pytest.mark.parametrize("is_there", [True, False])
def test_on_the_disk_of_the_spool_a_copy_leaves_the_room_below_the_floor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    path = tmp_path / "cart.toml"
    path.write_text(CONFIG)
    folder = store.spool.folder / "backup"
    if is_there:
        folder.mkdir()
    house = Housekeeping(read_config(path), store.ledger, store.spool, threading.Event())
    size = sum(part.stat().st_size for part in store.spool.folder.glob(f"{LEDGER_NAME}*"))
    usage = SimpleNamespace(total=1 << 40, used=0, free=size - 1)
    with monkeypatch.context() as tight:
        tight.setattr(shutil, "disk_usage", lambda _: usage)
        for usage.free in (size - 1, size - (2 << 20)):
            house._back_up()
    assert store.ledger.row("SELECT 1 FROM alert WHERE code = 'backup'")
    assert store.events().count("alert") == 1
    assert newest(folder) is None
    house._back_up()
    assert not store.ledger.row("SELECT 1 FROM alert WHERE code = 'backup'")
    assert newest(folder)
