"""A ledger that was not finished never takes the place of the old one: no image is forgotten."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cart_store import Store, open_store

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.store import backup, opening, rebuild
from deepcovid_edge.cart.store.intake import Intake
from deepcovid_edge.cart.store.ledger import LEDGER_NAME, UNFINISHED_NAME, Ledger, LedgerFullError
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.errors import OutputError


def kill(*_: Any, **_more: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_in_a_child(work: Callable[[], object]) -> int | None:
    """Run something in a process of its own; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    return child.exitcode


def settings_of(folder: Path, ballast_mib: int = 0) -> CartSettings:
    return CartSettings(folder, floor_mib=0, floor_share=0.0, ballast_mib=ballast_mib)


def fails_at_third(how: Callable[..., object]) -> Callable[..., Any]:
    """`Intake.note_stored` that does not survive its third image."""
    real, count = Intake.note_stored, [0]

    def note(*given: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            how()
        return real(*given)

    return note


def full() -> None:
    raise LedgerFullError("ledger.db: database or disk is full")


def damage(folder: Path) -> None:
    (folder / LEDGER_NAME).write_bytes(b"\xff" * 4096)


def check_all_are_there(folder: Path, images: int, alert: str) -> None:
    ledger, _ = opening.open_store(settings_of(folder))
    with ledger:
        assert len(ledger.rows("SELECT 1 FROM image WHERE state = 'received'")) == images
        assert [row["code"] for row in ledger.rows("SELECT code FROM alert")] == [alert]
    assert not [*folder.glob(f"{UNFINISHED_NAME}*")]


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """A spool with five images whose ledger is damaged."""
    with open_store(tmp_path) as store:
        for number in range(5):
            store.take(number)
    damage(tmp_path)
    return tmp_path


@pytest.mark.parametrize("at", ["an image", "the alert"])
def test_a_start_that_is_killed_while_it_makes_the_ledger_again_loses_no_image(
    five: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with monkeypatch.context() as patched:
        if at == "an image":
            patched.setattr(Intake, "note_stored", fails_at_third(kill))
        else:
            patched.setattr(Ledger, "raise_alert", kill)
        assert end_in_a_child(lambda: opening.open_store(settings_of(five))) == -signal.SIGKILL
    check_all_are_there(five, 5, "ledger_rebuilt")


def test_a_disk_that_is_full_meanwhile_leaves_the_ledger_to_the_next_start(
    five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Intake, "note_stored", lambda *_: full())
        with pytest.raises(LedgerFullError):
            opening.open_store(settings_of(five))
    check_all_are_there(five, 5, "ledger_rebuilt")


def test_a_ledger_is_made_again_in_the_room_of_the_ballast(
    five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spool(five, SpoolSettings(0, 0.0, 1)).fill_ballast()
    monkeypatch.setattr(Intake, "note_stored", fails_at_third(full))
    ledger, _ = opening.open_store(settings_of(five, ballast_mib=1))
    with ledger:
        assert len(ledger.rows("SELECT 1 FROM image")) == 5
    assert not (five / "ballast").exists()


def test_a_start_that_is_killed_between_the_old_and_the_new_ledger_loses_no_image(
    five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the old ledger still lies there; SQLite would apply it to a new one."""

    def move_half(folder: Path, why: str) -> None:
        (folder / LEDGER_NAME).rename(folder / f"{why}-1-{LEDGER_NAME}")
        (folder / f"{LEDGER_NAME}-wal").write_bytes(b"a log of the old ledger")
        kill()

    with monkeypatch.context() as patched:
        patched.setattr(rebuild, "move_aside", move_half)
        assert end_in_a_child(lambda: opening.open_store(settings_of(five))) == -signal.SIGKILL
    check_all_are_there(five, 5, "ledger_rebuilt")
    (aside,) = five.glob(f"damaged-*-{LEDGER_NAME}-wal")
    assert aside.read_bytes() == b"a log of the old ledger"


def test_a_ledger_without_a_byte_is_lost(five: Path) -> None:
    (five / LEDGER_NAME).write_bytes(b"")
    check_all_are_there(five, 5, "ledger_rebuilt")


def copied(store: Store) -> Path:
    """A copy of the ledger with one image; four come later."""
    store.take(0)
    copy = backup.back_up(store.spool.folder, store.spool.folder / "backup", 7)
    for number in range(1, 5):
        store.take(number)
    return copy


@pytest.mark.parametrize("at", ["catch_up", "raise_alert"])
def test_a_restore_that_is_killed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with open_store(tmp_path) as store:
        copy = copied(store)
        with monkeypatch.context() as patched:
            place: Any = backup if at == "catch_up" else Ledger
            patched.setattr(place, at, kill)
            code = end_in_a_child(lambda: backup.restore(Spool(tmp_path), copy))
        assert code == -signal.SIGKILL
        assert not store.ledger.is_replaced()
    ledger, spool = opening.open_store(settings_of(tmp_path))
    with ledger:
        assert len(ledger.rows("SELECT 1 FROM image")) == 5
    assert not [*tmp_path.glob(f"{UNFINISHED_NAME}*")]
    assert backup.restore(spool, copy) == 4
    check_all_are_there(tmp_path, 5, "ledger_restored")


def test_a_copy_that_cannot_be_read_is_an_error_of_the_cart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        copy = copied(store)

        def fails(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(shutil, "copyfile", fails)
        with pytest.raises(OutputError, match=r"is not restored: .*Input/output error"):
            backup.restore(store.spool, copy)
        assert not store.ledger.is_replaced()
