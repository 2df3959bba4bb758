"""The ledger: whole transactions, a chain of events, states, the outbox."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest
from cart_store import Store, open_store

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.store import deliveries as deliveries_module
from deepcovid_edge.cart.store import ledger as ledger_module
from deepcovid_edge.cart.store.deliveries import BACKOFF_SECONDS, Deliveries
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError, LedgerDamagedError
from deepcovid_edge.cart.store.opening import open_store as open_as_a_role
from deepcovid_edge.cart.store.schema import MIGRATIONS
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.main import run
from deepcovid_edge.errors import NewerLedgerError


def test_a_committed_transaction_survives_and_a_broken_one_leaves_nothing(store: Store) -> None:
    def broken() -> None:
        with store.ledger.transaction():
            store.ledger.set_meta("a", "1")
            with store.ledger.transaction():
                store.ledger.set_meta("b", "2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert store.ledger.get_meta("b") is None
    store.ledger.set_meta("a", "3")
    assert store.ledger.get_meta("a") == "3"


def test_it_is_synced_at_every_commit(store: Store) -> None:
    rows = {
        name: store.ledger.rows(f"PRAGMA {name}")[0][0] for name in ("synchronous", "journal_mode")
    }
    assert rows == {"synchronous": 2, "journal_mode": "wal"}  # 2: FULL


def test_nobody_can_write_while_the_log_is_moved_into_the_database(store: Store) -> None:
    """A transaction that is committed meanwhile can be lost: SQLite's WAL-reset bug."""
    assert store.ledger.rows("PRAGMA wal_autocheckpoint")[0][0] == 0
    other = sqlite3.connect(store.ledger.path, isolation_level=None, timeout=0)
    refused = []

    def write(statement: str) -> None:
        if "wal_checkpoint" in statement:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            refused.append(statement)

    store.ledger._connection.set_trace_callback(write)
    for number in range(3 * ledger_module.CHECKPOINT_COMMITS):
        store.ledger.set_meta("a", str(number))
    assert len(refused) == 3
    other.execute("UPDATE meta SET value = 'of another' WHERE key = 'a'")
    assert store.ledger.get_meta("a") == "of another"
    other.close()


def test_the_log_is_moved_at_a_later_commit_where_somebody_else_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(store.ledger.path, isolation_level=None)
    moved: list[str] = []
    store.ledger._connection.set_trace_callback(
        lambda statement: moved.append(statement) if "wal_checkpoint" in statement else None
    )
    connect = store.ledger._connect

    def begin_first(mode: str, seconds: float) -> sqlite3.Connection:
        other.execute("BEGIN IMMEDIATE")
        return connect(mode, seconds)

    monkeypatch.setattr(store.ledger, "_connect", begin_first)
    store.ledger._commits = ledger_module.CHECKPOINT_COMMITS
    store.ledger.set_meta("a", "1")
    other.execute("ROLLBACK")
    assert not moved
    monkeypatch.undo()
    store.ledger.set_meta("a", "2")
    assert len(moved) == 1
    other.close()


def test_the_log_stays_small(store: Store) -> None:
    for number in range(10 * ledger_module.CHECKPOINT_COMMITS):
        store.ledger.set_meta("a", str(number))
    log = store.ledger.path.with_name(f"{store.ledger.path.name}-wal")
    assert log.stat().st_size < 2 << 20
    with Ledger(store.spool.folder, read_only=True) as reading:
        assert reading.get_meta("a") == str(number)


def test_a_ledger_that_another_holds_is_busy_after_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(store.ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.ledger._connection.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(LedgerBusyError, match="locked"):
        store.ledger.set_meta("a", "1")
    other.close()
    store.ledger.set_meta("a", "1")


def stored(folder: Path, number: int) -> None:
    with open_store(folder) as store:
        store.take(number)
        store.ledger.merge_log()


def test_an_index_whose_last_write_was_lost_is_damage(tmp_path: Path) -> None:
    """An old page is whole in itself: only its table shows that it lacks a row."""
    path = tmp_path / ledger_module.LEDGER_NAME
    stored(tmp_path, 1)
    with contextlib.closing(sqlite3.connect(path)) as opened:
        ((root,),) = opened.execute("SELECT rootpage FROM sqlite_master WHERE name = 'image_state'")
        ((size,),) = opened.execute("PRAGMA page_size")
    page = slice((root - 1) * size, root * size)
    old = path.read_bytes()[page]
    stored(tmp_path, 2)
    data = bytearray(path.read_bytes())
    data[page] = old
    path.write_bytes(data)
    with Ledger(tmp_path) as ledger, pytest.raises(LedgerDamagedError, match="missing from index"):
        ledger.check()
    assert is_made_again(tmp_path)
    assert not is_made_again(tmp_path)


def test_damage_that_a_role_met_is_damage_though_no_check_finds_it(tmp_path: Path) -> None:
    stored(tmp_path, 1)
    path = tmp_path / ledger_module.LEDGER_NAME
    whole = path.read_bytes()
    with Ledger(tmp_path) as ledger:
        path.write_bytes(bytes(len(whole)))
        with pytest.raises(LedgerDamagedError):
            ledger.rows("SELECT * FROM image")
        assert ledger.is_of_no_use()
        path.write_bytes(whole)
    assert is_made_again(tmp_path)
    assert not is_made_again(tmp_path)


def is_made_again(folder: Path) -> bool:
    """Whether the start of a role makes the ledger again."""
    before = len([*folder.glob("damaged-*")])
    settings = CartSettings(folder, floor_mib=0, floor_share=0.0, ballast_mib=0)
    ledger, _ = open_as_a_role(settings)
    with ledger:
        assert ledger.row("SELECT count(*) AS n FROM image")["n"] > 0  # type: ignore[index]
    return len([*folder.glob("damaged-*")]) > before


def test_one_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    (tmp_path / ledger_module.LEDGER_NAME).write_bytes(b"no database " * 500)
    with pytest.raises(LedgerDamagedError):
        Ledger(tmp_path)


def test_a_newer_ledger_is_left_alone(tmp_path: Path) -> None:
    known = len(MIGRATIONS)
    with Ledger(tmp_path) as ledger:
        ledger._connection.execute(f"PRAGMA user_version = {known + 1}")
    said = f"version {known + 1}, this program knows {known}: install the newer"
    with pytest.raises(NewerLedgerError, match=said):
        Ledger(tmp_path)


def test_a_command_says_that_the_ledger_is_newer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger(tmp_path) as ledger:
        ledger._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    config = tmp_path / "cart.toml"
    config.write_text('[cart]\nspool = "."\n[[peer]]\nae_title = "A"\naddress = "127.0.0.1"\n')
    assert run(["cart", "resend", str(config)]) == ExitCode.MISMATCH
    assert capsys.readouterr().err.startswith("Error: ledger: is of version")


def test_a_reader_writes_nothing(store: Store) -> None:
    with Ledger(store.spool.folder, read_only=True) as reader, pytest.raises(LedgerBusyError):
        reader.set_meta("a", "1")


def test_a_changed_or_removed_event_is_found(store: Store) -> None:
    for number in range(5):
        store.ledger.event("test", number=number)
    assert store.ledger.broken_event() is None
    with store.ledger.transaction() as now:
        now.execute("UPDATE event SET detail = '{\"number\": 9}' WHERE id = 3")
    assert store.ledger.broken_event() == 3
    with store.ledger.transaction() as now:
        now.execute("DELETE FROM event WHERE id = 3")
    assert store.ledger.broken_event() == 4


@pytest.mark.parametrize(
    ("removed", "found"), [("id < 3", 3), ("id > 3", 4), ("id = 5", 5), ("id > 0", 1)]
)
def test_events_that_were_removed_at_either_end_are_missed(
    store: Store, removed: str, found: int
) -> None:
    for number in range(5):
        store.ledger.event("test", number=number)
    with store.ledger.transaction() as now:
        now.execute(f"DELETE FROM event WHERE {removed}")
    assert store.ledger.broken_event() == found


def test_an_event_that_was_rolled_back_is_not_missed(store: Store) -> None:
    store.ledger.event("test")
    with contextlib.suppress(ZeroDivisionError), store.ledger.transaction():
        store.ledger.event("test")
        raise ZeroDivisionError
    assert store.ledger.broken_event() is None
    with Ledger(store.spool.folder, read_only=True) as reader:
        assert reader.broken_event() is None


def test_an_empty_ledger_misses_no_event(store: Store) -> None:
    assert store.ledger.broken_event() is None


def test_an_alert_is_told_once_until_it_is_over(store: Store) -> None:
    for _ in range(3):
        store.ledger.raise_alert("disk", "disk_floor", free=1)
    assert store.events().count("alert") == 1
    store.ledger.clear_alert("disk")
    store.ledger.clear_alert("disk")
    assert store.events().count("alert over") == 1
    assert store.ledger.rows("SELECT * FROM alert") == []


def test_an_alert_has_the_code_that_was_told_last(store: Store) -> None:
    for _ in range(2):
        for code in ("ledger_rebuilt", "ledger_restored"):
            store.ledger.raise_alert("ledger", code, copy="a")
    assert [row["code"] for row in store.ledger.rows("SELECT * FROM alert")] == ["ledger_restored"]
    assert store.events().count("alert") == 4


def test_images_are_assessed_in_their_order_and_once(store: Store) -> None:
    for number in range(3):
        store.take(number)
    claimed = [store.assess().image_id for _ in range(3)]
    assert claimed == [1, 2, 3]
    assert store.images.claim() is None
    assert store.states() == ["assessed"] * 3


def _claims(folder: Path, found: multiprocessing.Queue[int]) -> None:
    with open_store(folder) as store:
        while image := store.images.claim():
            found.put(image.image_id)


def test_two_processes_never_claim_the_same_image(store: Store) -> None:
    for number in range(40):
        store.take(number)
    spawn = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[int] = spawn.Queue()
    both = [spawn.Process(target=_claims, args=(store.spool.folder, found)) for _ in range(2)]
    for process in both:
        process.start()
    claimed = sorted(found.get(timeout=60) for _ in range(40))
    for process in both:
        process.join(30)
    assert claimed == [*range(1, 41)]


def test_an_image_whose_assessor_was_killed_is_assessed_again(store: Store) -> None:
    store.take()
    assert store.images.claim()
    assert store.states() == ["assessing"]
    assert store.images.release() == 1
    again = store.images.claim()
    assert again
    assert again.tries == 2


def test_settled_twice_an_image_has_one_result_and_one_set_of_objects(store: Store) -> None:
    store.take()
    claimed = store.assess()
    objects = [store.built(claimed, "sr")]
    store.images.settle(claimed, Settled({**_record("positive")}, objects, {"pacs": ("sr",)}))
    (result,) = store.ledger.rows("SELECT * FROM result")
    assert result["decision"] == "positive"
    assert len(store.ledger.rows("SELECT * FROM object")) == 2


def _record(decision: str) -> dict[str, object]:
    return {"decision": decision, "reason": None, "model_sha256": "0" * 64, "site": None}


def test_a_result_without_all_of_its_objects_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take()
    real, count = store.ledger.insert, iter(range(100))

    def broken(table: str, columns: dict[str, object]) -> int:
        if table == "object" and next(count) == 1:
            raise RuntimeError("killed here")
        return real(table, columns)

    monkeypatch.setattr(store.ledger, "insert", broken)
    with pytest.raises(RuntimeError):
        store.assess()
    assert store.ledger.rows("SELECT * FROM result") == []
    assert store.ledger.rows("SELECT * FROM outbox") == []
    assert store.states() == ["assessing"]


def deliveries_of(store: Store) -> Deliveries:
    return Deliveries(store.ledger, store.spool)


def test_pictures_of_positive_images_go_first_then_the_oldest(store: Store) -> None:
    for number, decision in enumerate(["negative", "positive", "negative"]):
        store.take(number)
        store.assess(decision=decision)
    due = [(one.image_id, one.kind) for one in deliveries_of(store).due("pacs")]
    assert due == [(2, "sc"), (1, "sr"), (1, "sc"), (2, "sr"), (3, "sr"), (3, "sc")]
    assert deliveries_of(store).due("elsewhere") == []


def test_what_failed_waits_longer_each_time_and_is_never_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take()
    store.assess(kinds=["sr"])
    outbox, now = deliveries_of(store), [time.time()]
    monkeypatch.setattr(deliveries_module, "now_seconds", lambda: now[0])
    waits = []
    for _ in range(9):
        (delivery,) = outbox.due("pacs")
        outbox.begin(delivery)
        waits.append(outbox.defer(delivery, "no answer"))
        assert outbox.due("pacs") == []
        now[0] += waits[-1] + 0.01
    expected = [*BACKOFF_SECONDS, *BACKOFF_SECONDS[-1:] * 3]
    assert all(abs(one / wait - 1) <= 0.2 for one, wait in zip(waits, expected, strict=True))


def test_a_clock_that_is_set_back_delays_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.take()
    store.assess(kinds=["sr"])
    outbox = deliveries_of(store)
    (delivery,) = outbox.due("pacs")
    outbox.defer(delivery, "no answer")
    monkeypatch.setattr(deliveries_module, "now_seconds", lambda: time.time() - 20 * 365 * 86400)
    assert outbox.due("pacs")


def test_what_was_being_sent_when_the_sender_ended_is_uncertain(store: Store) -> None:
    store.take()
    store.assess(kinds=["sr"])
    outbox = deliveries_of(store)
    outbox.begin(outbox.due("pacs")[0])
    (again,) = outbox.due("pacs")
    assert again.is_uncertain
    outbox.sent(again, "0x0000")
    assert outbox.due("pacs") == []


def test_what_is_parked_waits_for_a_person(store: Store) -> None:
    store.take()
    store.assess()
    outbox = deliveries_of(store)
    for delivery in outbox.due("pacs"):
        outbox.park(delivery, "0x0122")
    outbox.hasten("pacs")
    assert outbox.due("pacs") == []
    assert outbox.resend() == 2
    assert [one.is_uncertain for one in outbox.due("pacs")] == [False, False]


def test_what_a_destination_lost_is_sent_again(store: Store) -> None:
    store.take()
    store.assess()
    outbox = deliveries_of(store)
    for delivery in outbox.due("pacs"):
        outbox.sent(delivery, "0x0000")
    kept, lost = (uid for _, uid in outbox.uncommitted("pacs"))
    outbox.ask_commitment("pacs", "2.25.5", [kept, lost])
    assert outbox.uncommitted("pacs") == []
    outbox.settle_commitment("pacs", "2.25.6", [kept], [])  # an answer to something else
    outbox.settle_commitment("pacs", "2.25.5", [kept], [lost])
    assert [one.sop_uid for one in outbox.due("pacs")] == [lost]
