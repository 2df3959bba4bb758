"""Tables of the ledger and how an older ledger becomes a newer one.

| table | holds |
| --- | --- |
| `image` | one row for each content that arrived; its state |
| `arrival` | every receipt, of duplicates too |
| `who` | names and dates of the patient, and names of files |
| `result` | the record of `infer`, once for each image, model and site file |
| `object` | a DICOM object that was built of a result |
| `outbox` | one row for each object and destination |
| `event` | what happened, append-only; each row holds the hash of the one before |
| `alert` | what a person must know, until it is over |
| `seen` | files of watched folders that were taken; like `who` it is in no copy |
| `commitment` | storage commitment asked of the cart, and by the cart |
| `meta` | single values: the schema's version, the model in use |

States of an image: `received`, `assessing`, then `assessed` or `not_assessed` (a result without a
number), then `expired` (its files are deleted, its rows stay). An image whose assessor fails three
times is `not_assessed`, and its file is kept in `quarantine/`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial

from deepcovid_edge.errors import NewerLedgerError
from deepcovid_edge.reasons import Reason

RECEIVED, ASSESSING, ASSESSED, NOT_ASSESSED, EXPIRED = (
    "received",
    "assessing",
    "assessed",
    "not_assessed",
    "expired",
)
IMAGE_STATES = (RECEIVED, ASSESSING, ASSESSED, NOT_ASSESSED, EXPIRED)
QUEUED, SENDING, SENT, COMMITTED, PARKED = "queued", "sending", "sent", "committed", "parked"
OUTBOX_STATES = (QUEUED, SENDING, SENT, COMMITTED, PARKED)
_UNREAD = f"image.reason IS '{Reason.UNREADABLE.code}'"
_NO_REPORT = (
    "image.sop_uid != '' AND NOT EXISTS (SELECT 1 FROM result JOIN object"
    " ON object.result_id = result.id WHERE result.image_id = image.id AND object.kind = 'sr')"
)
ASSESSOR_KEY, HAS_NONE = "work assessor", "none"
"""Of the table `meta`: key, and its value while no assessor can be started. A person may end the
alert meanwhile; that starts none."""
ASSESSOR_ALERT = "assessor"
"""Key of the alert that no assessor can be started, whatever its code."""


LAST_FIRST = "settling DESC, id DESC"
"""SQL: the order of results, the one that was settled last first."""
LAST_RESULT = f"(SELECT id FROM result WHERE image_id = image.id ORDER BY {LAST_FIRST} LIMIT 1)"
"""SQL: the result of an image that was settled last, which is the one that holds."""


def unanswered(*, has_destinations: bool) -> str:
    """SQL of a settled image that the cart could not read, or that has no report to send.

    Args:
        has_destinations: Whether reports go anywhere.
    """
    return f"({_UNREAD} OR ({_NO_REPORT}))" if has_destinations else f"({_UNREAD})"


_FIRST = """
CREATE TABLE image (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content_sha256 TEXT NOT NULL UNIQUE,
    suffix TEXT NOT NULL,
    sop_uid TEXT NOT NULL DEFAULT '',
    sop_class TEXT NOT NULL DEFAULT '',
    study_uid TEXT NOT NULL DEFAULT '',
    syntax TEXT NOT NULL DEFAULT '',
    device TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL,
    source TEXT NOT NULL,
    received_utc TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    clock_ok INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'received',
    tries INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    settled_utc TEXT,
    result_bytes INTEGER NOT NULL DEFAULT 0,
    CHECK (state IN ('received', 'assessing', 'assessed', 'not_assessed', 'expired'))
);
CREATE INDEX image_state ON image (state, id);
CREATE INDEX image_sop ON image (sop_uid) WHERE sop_uid != '';
CREATE TABLE arrival (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    image_id INTEGER NOT NULL REFERENCES image (id),
    at_utc TEXT NOT NULL,
    source TEXT NOT NULL,
    peer TEXT NOT NULL,
    ae_title TEXT NOT NULL DEFAULT '',
    same_bytes INTEGER NOT NULL
);
CREATE INDEX arrival_image ON arrival (image_id);
CREATE TABLE who (
    image_id INTEGER PRIMARY KEY REFERENCES image (id),
    patient_id TEXT NOT NULL DEFAULT '',
    name TEXT NOT NULL DEFAULT '',
    birth_date TEXT NOT NULL DEFAULT '',
    accession TEXT NOT NULL DEFAULT '',
    acquired TEXT NOT NULL DEFAULT '',
    file_name TEXT NOT NULL DEFAULT ''
);
CREATE TABLE result (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    image_id INTEGER NOT NULL REFERENCES image (id),
    model_sha256 TEXT NOT NULL,
    site_sha256 TEXT NOT NULL DEFAULT '',
    decision TEXT,
    record TEXT NOT NULL,
    made_utc TEXT NOT NULL,
    settling INTEGER NOT NULL DEFAULT 0,
    UNIQUE (image_id, model_sha256, site_sha256)
);
CREATE INDEX result_settling ON result (settling);
CREATE TABLE object (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    result_id INTEGER NOT NULL REFERENCES result (id),
    kind TEXT NOT NULL,
    sop_class TEXT NOT NULL,
    sop_uid TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE INDEX object_result ON object (result_id);
CREATE TABLE outbox (
    object_id INTEGER NOT NULL REFERENCES object (id),
    destination TEXT NOT NULL,
    urgent INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'queued',
    tries INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0,
    last_status TEXT,
    transaction_uid TEXT,
    changed_utc TEXT NOT NULL,
    sent_utc TEXT,
    PRIMARY KEY (object_id, destination),
    CHECK (state IN ('queued', 'sending', 'sent', 'committed', 'parked'))
);
CREATE INDEX outbox_due ON outbox (destination, state, next_try);
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_utc TEXT NOT NULL,
    kind TEXT NOT NULL,
    image_id INTEGER,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TABLE alert (
    key TEXT PRIMARY KEY,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    since_utc TEXT NOT NULL
);
CREATE TABLE seen (
    path BLOB PRIMARY KEY,
    bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    image_id INTEGER REFERENCES image (id)
);
CREATE TABLE commitment (
    transaction_uid TEXT NOT NULL,
    side TEXT NOT NULL,
    peer TEXT NOT NULL,
    objects TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'asked',
    tries INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0,
    at_utc TEXT NOT NULL,
    PRIMARY KEY (transaction_uid, side, peer)
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
"""`seen.path` is bytes, since a name may be in any encoding. `image.result_bytes` counts towards
the quota. `result.settling` counts up: a model that answers an image once more keeps the number of
its row, and its answer is the last one. `outbox.sent_utc` is when the destination first had the
object; `changed_utc` is when the row got its state."""


def _run(statements: str, connection: sqlite3.Connection) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            connection.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (partial(_run, _FIRST),)
"""Number n of these makes version n + 1 of version n; a released one is never changed."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a ledger to this version, in one transaction.

    Raises:
        NewerLedgerError: It is of a newer version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerLedgerError(
            f"ledger: is of version {version}, this program knows {len(MIGRATIONS)}: install the "
            "newer program again, or `cart restore` a copy from before the update"
        )
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another role's?
        for step in MIGRATIONS[version:]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
