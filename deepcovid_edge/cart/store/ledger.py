"""The ledger: one SQLite database that every role of the cart opens.

Write-ahead log with `synchronous=FULL`: a transaction that was committed survives a power cut
(SQLite, "PRAGMA synchronous"; https://www.sqlite.org/pragma.html#pragma_synchronous). The database
must lie on a disk of this machine: the log needs shared memory.

SQLite never moves the log into the database by itself here. Before version 3.51.3 (Debian 12 and 13
have older ones) transactions that are committed while it does so can be lost later ("The WAL-Reset
Bug", https://www.sqlite.org/wal.html#walresetbug). So such a checkpoint runs only while a second
connection keeps all others from writing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.store.clock import now_seconds, now_utc
from deepcovid_edge.cart.store.schema import migrate
from deepcovid_edge.errors import OutputError
from deepcovid_edge.files import Closing

LEDGER_NAME = "ledger.db"
UNFINISHED_NAME = f".{LEDGER_NAME}.part"
"""Of a ledger that is being made; see `rebuild.replaced_ledger`."""
DAMAGED_NAME = ".ledger-damaged"
"""Of the mark beside a ledger that was found damaged while it was used; see `Ledger.check`."""
BUSY_SECONDS = 5.0
"""Longest wait for another role's transaction; they take milliseconds."""
CHECKPOINT_COMMITS = 100
"""Transactions of a connection from one checkpoint to the next: the log stays at some megabytes."""
_FIRST_HASH = "0" * 64
_NO_ROOM = ("full", "disk I/O")
"""What SQLite says where the disk is full: `disk I/O error` where the memory of its log has no room
(SQLITE_IOERR_SHMSIZE), or where a quota ends."""
_NOT_WRITTEN = (*_NO_ROOM, "locked", "locking", "busy", "readonly", "unable to open")
"""What SQLite says where a ledger cannot be written now; other errors are faults of the program.
`locking protocol` is a race for the log of a process that was killed (SQLITE_PROTOCOL)."""


class LedgerBusyError(OutputError):
    """Raised when the ledger cannot be written: its disk is full, or it is locked for too long."""


class LedgerFullError(LedgerBusyError):
    """Raised when the ledger cannot be written because its disk has no room, or fails."""


class LedgerDamagedError(OutputError):
    """Raised when the database is not one, or SQLite finds it damaged."""


class Ledger(Closing):
    """A connection to the ledger, safe to use from several threads.

    Args:
        spool: The spool folder, in which the database lies.
        read_only: Never write; the database must be there.
        name: Of the database.

    Raises:
        LedgerDamagedError: The file is damaged.
        LedgerBusyError: It cannot be opened.
        NewerLedgerError: It is of a newer version of this program.
    """

    def __init__(self, spool: Path, *, read_only: bool = False, name: str = LEDGER_NAME) -> None:
        self.path = spool / name
        self._lock = threading.RLock()
        self._depth = self._commits = 0
        self._is_damaged = False
        self._inode = 0
        with self._explained():
            self._connection = self._connect("ro" if read_only else "rwc", BUSY_SECONDS)
            try:
                self._prepare(read_only)
            except BaseException:
                self._connection.close()
                raise
        self._inode = self.path.stat().st_ino

    def _connect(self, mode: str, seconds: float) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=seconds,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, read_only: bool) -> None:
        run = self._connection.execute
        self._connection.row_factory = sqlite3.Row
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA synchronous = FULL")
        if read_only:
            run("PRAGMA query_only = ON")
            run("SELECT count(*) FROM sqlite_master").fetchone()
            return
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA wal_autocheckpoint = 0")
        migrate(self._connection)

    def check(self) -> None:
        """Have SQLite check the whole database, its indexes too.

        Raises:
            LedgerDamagedError: It is damaged, or a role found it so: no check finds everything.
        """
        with self._lock, self._explained():
            found = [row[0] for row in self._connection.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise LedgerDamagedError(f"{self.path}: damaged: {found[0]}")
        if self.path.with_name(DAMAGED_NAME).exists():
            raise LedgerDamagedError(f"{self.path}: damaged: found while it was used")

    def merge_log(self) -> None:
        """Bring all of the ledger into its one file; no other connection may be open.

        Raises:
            LedgerBusyError: It cannot be written.
        """
        with self._lock, self._explained():
            (mode,) = self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        if mode != "delete":
            raise LedgerBusyError(f"{self.path}: its log is not merged")

    def is_of_no_use(self) -> bool:
        """Whether a role must start again: it was replaced, or SQLite found it damaged meanwhile.

        The start of a role makes a damaged ledger again.
        """
        return self._is_damaged or self.is_replaced()

    def is_replaced(self) -> bool:
        """Whether another role has made the ledger again: what is written here then is lost."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is written, or nothing. One within another is part of it.

        Raises:
            LedgerFullError: The disk is full.
            LedgerBusyError: Another role holds the ledger for too long.
        """
        with self._lock, self._explained():
            if self._depth:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back itself
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0
            self._commits += 1
            if self._commits >= CHECKPOINT_COMMITS:
                with contextlib.suppress(sqlite3.Error):  # somebody writes: at the next commit
                    self._checkpoint()
                    self._commits = 0

    def _checkpoint(self) -> None:
        """Move the log into the database while a second connection keeps all from writing."""
        with contextlib.closing(self._connect("rw", 0.0)) as guard:
            guard.execute("BEGIN IMMEDIATE")
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            guard.execute("ROLLBACK")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock, self._explained():
            return self._connection.execute(query, values).fetchall()

    def each(self, query: str, *values: Any) -> Iterator[sqlite3.Row]:
        """The rows of a query one after another, of a ledger that only this thread uses."""
        with self._explained():
            yield from self._connection.execute(query, values)

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        return next(iter(self.rows(query, *values)), None)

    def insert(self, table: str, columns: Mapping[str, Any]) -> int:
        """Insert a row; its number."""
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        with self.transaction() as now:
            found = now.execute(
                f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values())
            )
        return int(found.lastrowid or 0)

    def event(self, what: str, image_id: int | None = None, **detail: Any) -> None:
        """Append what happened; see `broken_event`. No name of a patient belongs into it."""
        with self.transaction() as now:
            last = now.execute("SELECT hash FROM event ORDER BY id DESC LIMIT 1").fetchone()
            previous = last["hash"] if last else _FIRST_HASH
            at, text = now_utc(), json.dumps(detail, sort_keys=True)
            columns = {
                "at_utc": at,
                "kind": what,
                "image_id": image_id,
                "detail": text,
                "previous": previous,
                "hash": _hash(previous, at, what, image_id, text),
            }
            self.insert("event", columns)

    def broken_event(self) -> int | None:
        """Number of the first event that is not as it was written, or follows one that is not.

        None where the chain is whole. The hashes have no key: a chain that was written again from
        one end to the other is whole too.
        """
        # Read first: what is appended meanwhile is not missing.
        newest = self.row("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
        previous, last = _FIRST_HASH, 0
        for row in self.each("SELECT * FROM event ORDER BY id"):
            last = int(row["id"])
            whole = _hash(
                row["previous"], row["at_utc"], row["kind"], row["image_id"], row["detail"]
            )
            if whole != row["hash"] or previous != row["previous"]:
                return last
            previous = row["hash"]
        return last + 1 if newest and newest["seq"] > last else None

    def raise_alert(self, key: str, code: str, **detail: Any) -> None:
        """Raise an alert until it is cleared; a key has one, and the same again changes nothing.

        Args:
            key: What tells this alert from all others, such as a code with a destination's name.
            code: See `cart.alerts`.
            detail: Values for the page and for programs.
        """
        with self.transaction() as now:
            text = json.dumps(detail, sort_keys=True)
            if now.execute(
                "INSERT INTO alert (key, code, detail, since_utc) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET code = excluded.code, detail = excluded.detail"
                " WHERE (code, detail) != (excluded.code, excluded.detail) RETURNING since_utc",
                (key, code, text, now_utc()),
            ).fetchone():
                self.event("alert", key=key, code=code, **detail)

    def clear_alert(self, key: str) -> None:
        """End an alert, if there is one: what it says is over."""
        if not self.row("SELECT 1 FROM alert WHERE key = ?", key):
            return  # asked often: no write where there is nothing to clear
        with self.transaction() as now:
            if now.execute("DELETE FROM alert WHERE key = ?", (key,)).rowcount:
                self.event("alert over", key=key)

    def clear_other_alerts(self, code: str, keys: Collection[str], begins: str = "") -> None:
        """End the alerts of a code whose keys name nothing that there is any more.

        Args:
            code: The code.
            keys: The keys of alerts that may go on.
            begins: How the keys begin that are looked at.
        """
        for row in self.rows("SELECT key FROM alert WHERE code = ?", code):
            if row["key"].startswith(begins) and row["key"] not in keys:
                self.clear_alert(row["key"])

    def get_meta(self, key: str) -> str | None:
        """A single value, or None."""
        row = self.row("SELECT value FROM meta WHERE key = ?", key)
        return str(row["value"]) if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Set a single value."""
        with self.transaction() as now:
            now.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _mark_damaged(self) -> None:
        """Have the next start make the ledger again, whatever its check finds."""
        if self.path.name == LEDGER_NAME and not self.is_replaced():
            with contextlib.suppress(OSError):
                self.path.with_name(DAMAGED_NAME).touch()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite as errors of the ledger."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if not any(sign in str(error) for sign in _NOT_WRITTEN):
                raise
            has_no_room = any(sign in str(error) for sign in _NO_ROOM)
            kind = LedgerFullError if has_no_room else LedgerBusyError
            raise kind(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            if type(error) is sqlite3.DatabaseError:  # its subclasses are faults of the program
                self._is_damaged = True
                self._mark_damaged()
            raise LedgerDamagedError(f"{self.path}: {error}") from error


def move_aside(folder: Path, why: str) -> Path:
    """Keep a ledger that is no longer used, with its log, for whoever looks into it.

    A log alone is moved too: SQLite would apply it to the next ledger of its name.

    Args:
        folder: The spool folder.
        why: How its name begins.
    """
    aside = folder / f"{why}-{now_seconds():.0f}-{LEDGER_NAME}"
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / f"{LEDGER_NAME}{ending}").rename(f"{aside}{ending}")
    return aside


def _hash(previous: str, at: str, kind: str, image_id: int | None, detail: str) -> str:
    text = json.dumps([previous, at, kind, image_id, detail])
    return hashlib.sha256(text.encode()).hexdigest()
