"""Copies of the ledger without names, and how one becomes the ledger again.

A copy is a SQLite file of its own with every table but `who` (names of patients) and `seen` (names
of files): nothing of these is ever written to it, so it may leave the cart. What it lacks is read
from the images again when it is restored.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.model_pointer import kept_pointer
from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.ledger import BUSY_SECONDS, LEDGER_NAME, UNFINISHED_NAME
from deepcovid_edge.cart.store.rebuild import (
    ALERT_KEY,
    catch_up,
    delete_unfinished,
    replaced_ledger,
)
from deepcovid_edge.cart.store.retention import CLOCK_KEY
from deepcovid_edge.cart.store.schema import migrate
from deepcovid_edge.cart.store.spool import Spool, sync
from deepcovid_edge.errors import NotThereError, OutputError, UsageError
from deepcovid_edge.files import locked

WITH_NAMES = ("who", "seen")
"""Tables that are in no copy."""
FOLDER_NAME = "backup"
_NAME = re.compile(r"ledger-(\d{6})-.*\.db")
_STEPS = 10_000
"""Instructions of SQLite's machine between two calls of `progress`: some milliseconds."""
_LACKS = "left_out"
"""Table of a copy: how the tables that it lacks are made."""


def back_up(
    spool: Path, folder: Path, keep: int, progress: Callable[[], None] = lambda: None
) -> Path:
    """Write a copy of a ledger, and delete the oldest ones.

    Args:
        spool: The spool folder, with the ledger.
        folder: Where the copies lie; made where it is not there.
        keep: How many are kept.
        progress: Called now and then: it is not stuck.

    Returns:
        The copy; it survives a power cut.

    Raises:
        OutputError: It cannot be written or is not whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _delete_unfinished_copies(folder)
        copies = _copies(folder)
        number = 1 + (_number(copies[-1]) if copies else 0)
        place = folder / f"ledger-{number:06d}-{now_utc()[:10]}.db"
        passing = folder / f".{place.name}.part"
        _copy(spool / LEDGER_NAME, passing, progress)
        passing.chmod(0o600)
        sync(passing)
        passing.replace(place)
        sync(folder)
        for old in _copies(folder)[:-keep]:
            old.unlink()
    except (OSError, sqlite3.Error, OutputError) as error:
        with contextlib.suppress(OSError):  # a disk that fails does so again
            _delete_unfinished_copies(folder)
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: the ledger is not copied: {error}") from error
    return place


def _delete_unfinished_copies(folder: Path) -> None:
    """Give back the room of copies that were not finished: the disk may be full of them."""
    for path in folder.glob(".ledger-*.part"):
        path.unlink(missing_ok=True)


def _copies(folder: Path) -> list[Path]:
    """The copies of a folder, the oldest first, whatever the clock said."""
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def newest(folder: Path) -> Path | None:
    """The newest copy of a folder, or None."""
    copies = _copies(folder) if folder.is_dir() else []
    return copies[-1] if copies else None


def _copy(ledger: Path, place: Path, progress: Callable[[], None]) -> None:
    """Copy tables one after another, as they were at one moment."""
    with contextlib.closing(_connection(place, "rwc")) as copy:
        copy.set_progress_handler(progress, _STEPS)  # what returns nothing interrupts nothing
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("ATTACH ? AS source", (f"{ledger.absolute().as_uri()}?mode=ro",))
        copy.execute("BEGIN")
        copy.execute(f"CREATE TABLE {_LACKS} (sql TEXT NOT NULL)")
        made = copy.execute(
            "SELECT type, name, tbl_name, sql FROM source.sqlite_master WHERE sql IS NOT NULL"
            " AND name NOT LIKE 'sqlite_%' ORDER BY type DESC"
        ).fetchall()
        for kind, name, table, statement in made:  # tables before their indexes
            if table in WITH_NAMES:
                copy.execute(f"INSERT INTO {_LACKS} VALUES (?)", (statement,))
                continue
            copy.execute(statement)
            if kind == "table":
                copy.execute(f'INSERT INTO main."{name}" SELECT * FROM source."{name}"')
        copy.execute("DELETE FROM main.sqlite_sequence")  # no number is given twice
        copy.execute("INSERT INTO main.sqlite_sequence SELECT * FROM source.sqlite_sequence")
        (version,) = copy.execute("PRAGMA source.user_version").fetchone()
        copy.execute(f"PRAGMA main.user_version = {version}")
        copy.execute("COMMIT")
        _check(copy, place)


def _check(connection: sqlite3.Connection, place: Path) -> None:
    found = connection.execute("PRAGMA main.quick_check(3)").fetchall()
    if [row[0] for row in found] != ["ok"]:
        raise OutputError(f"{place}: damaged: {found[0][0]}")


def _connection(place: Path, mode: str) -> sqlite3.Connection:
    address = f"{place.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def restore(spool: Spool, copy: Path) -> int:
    """Make a copy the ledger, and have it catch up with the files of the spool.

    The ledger that was there is kept beside it. A role that still runs notices, and starts again.
    The model in use stays as it is, whatever it was that night.

    Returns:
        How many images it did not have.

    Raises:
        NotThereError: The copy is not there.
        UsageError: It is no copy of a ledger.
        OutputError: It cannot be written.
    """
    if not copy.is_file():
        raise NotThereError(f"{copy}: is not there")
    with locked(spool.folder, LEDGER_NAME):
        _begin(spool, copy)
        with replaced_ledger(spool, "replaced") as ledger:
            found = catch_up(ledger, spool)
            ledger.event("restored", copy=copy.name, images=found)
            # The receiver looks for images that came meanwhile, as long as this alert is there.
            ledger.raise_alert(ALERT_KEY, AlertCode.LEDGER_RESTORED.code, copy=copy.name)
    return found


def _begin(spool: Spool, copy: Path) -> None:
    """Put a copy, completed, where `replaced_ledger` goes on with it."""
    delete_unfinished(spool)
    place = spool.folder / UNFINISHED_NAME
    try:
        shutil.copyfile(copy, place)
        _complete(place, copy, kept_pointer(spool.folder))
    except BaseException as error:
        delete_unfinished(spool)
        if isinstance(error, OSError):
            raise OutputError(f"{copy}: is not restored: {error}") from error
        raise


def _complete(place: Path, copy: Path, meta: Mapping[str, str]) -> None:
    """Give a copy the tables that it lacks, empty, this program's version, and values of now."""
    try:
        with contextlib.closing(_connection(place, "rw")) as connection:
            _check(connection, copy)
            if not connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", (_LACKS,)
            ).fetchone():
                raise UsageError(f"{copy}: is no copy of a ledger")
            for (statement,) in connection.execute(f"SELECT sql FROM {_LACKS}").fetchall():
                connection.execute(statement)
            connection.execute(f"DROP TABLE {_LACKS}")
            migrate(connection)
            connection.execute("DELETE FROM meta WHERE key = ?", (CLOCK_KEY,))  # of that night
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{copy}: is no copy of a ledger: {error}") from error
