"""Lights at the head of the page, and what programs ask: alive, ready."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, runs, silent_since
from deepcovid_edge.cart.model_pointer import model_in_use
from deepcovid_edge.cart.store.clock import clock_is_plausible
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError
from deepcovid_edge.cart.store.schema import (
    ASSESSING,
    ASSESSOR_ALERT,
    ASSESSOR_KEY,
    HAS_NONE,
    PARKED,
    QUEUED,
    RECEIVED,
    SENDING,
)
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError, write_fault

OK, LOOK, BAD = "ok", "look", "bad"
SIGNS = {OK: "✓", LOOK: "…", BAD: "!"}
_OF_SENDERS = {
    AlertCode.UNKNOWN_SENDER.code,
    AlertCode.IMAGE_TOO_LARGE.code,
    AlertCode.FILES_UNREAD.code,
    AlertCode.NO_IMAGE.code,
    AlertCode.FOLDER_GONE.code,
}
_OF_RESULTS = {
    AlertCode.DESTINATION_FAILS.code,
    AlertCode.RESULT_STUCK.code,
    AlertCode.FILE_DAMAGED.code,
    AlertCode.SENDING_FAILS.code,
}


@dataclass(frozen=True)
class Light:
    """Whether one part of the cart works.

    Attributes:
        part: `images`, `assessor`, `destination`, `disk`, `clock` or `model`.
        state: `ok`, `look` or `bad`.
        name: Of a destination, or of the model.
        word: Key of what is said.
        values: For the text.
    """

    part: str
    state: str
    word: str
    name: str = ""
    values: tuple[tuple[str, object], ...] = ()

    @property
    def sign(self) -> str:
        """The shape of its state."""
        return SIGNS[self.state]


def lights(config: CartConfig, ledger: Ledger, spool: Spool) -> list[Light]:
    """How each part of the cart does, from the ledger and the disk."""
    raised = {(row["code"], row["key"]) for row in ledger.rows("SELECT code, key FROM alert")}
    codes = {code for code, _ in raised}
    mute = roles_are_mute(ledger, spool)
    return [
        _images(ledger, codes, mute=mute),
        _assessor(ledger, mute=mute),
        *(_destination(ledger, one.name, raised) for one in config.destinations),
        _disk(config, spool, mute=mute),
        Light("clock", OK, "light.ok")
        if clock_is_plausible() and AlertCode.CLOCK.code not in codes
        else Light("clock", BAD, "light.wrong"),
        _model(config, ledger, codes),
    ]


def roles_are_mute(ledger: Ledger, spool: Spool) -> bool:
    """Whether a role that runs could not say so: nothing can be written onto the disk."""
    return bool(silent_since(ledger)) and write_fault(spool.folder) is not None


def _images(ledger: Ledger, codes: set[str], *, mute: bool) -> Light:
    if not (mute or runs(ledger, RECEIVER)):
        return Light("images", BAD, "light.stopped")
    if mute or codes & _OF_SENDERS:
        return Light("images", LOOK, "light.look")
    return Light("images", OK, "light.ok")


def _assessor(ledger: Ledger, *, mute: bool) -> Light:
    if not assessor_works(ledger, mute=mute):
        return Light("assessor", BAD, "light.stopped")
    if mute:
        return Light("assessor", LOOK, "light.look")
    row = ledger.row("SELECT count(*) AS n FROM image WHERE state IN (?, ?)", RECEIVED, ASSESSING)
    if waiting := row["n"] if row else 0:
        return Light("assessor", LOOK, "light.waiting", values=(("count", waiting),))
    return Light("assessor", OK, "light.ok")


def assessor_works(ledger: Ledger, *, mute: bool = False) -> bool:
    """Whether the worker has said so within a minute, and can start an assessor.

    A person may acknowledge the alert; that starts no assessor.

    Args:
        ledger: The ledger.
        mute: What `roles_are_mute` says; a worker that cannot say that it runs is not missed.
    """
    if ledger.row("SELECT 1 FROM alert WHERE key = ?", ASSESSOR_ALERT):
        return False
    return ledger.get_meta(ASSESSOR_KEY) != HAS_NONE and (mute or runs(ledger, WORKER))


def _destination(ledger: Ledger, name: str, raised: set[tuple[str, str]]) -> Light:
    rows = ledger.rows(
        "SELECT state, count(*) AS n FROM outbox WHERE destination = ? AND state IN (?, ?, ?)"
        " GROUP BY state",
        *(name, QUEUED, SENDING, PARKED),
    )
    counts = {row["state"]: row["n"] for row in rows}
    of_this = {code for code, key in raised if key.endswith(f":{name}")}
    if AlertCode.DESTINATION_REJECTS.code in of_this:
        return Light("destination", BAD, "light.rejects", name)
    if AlertCode.DESTINATION_SILENT.code in of_this:
        return Light("destination", BAD, "light.silent", name)
    if of_this & _OF_RESULTS:
        return Light("destination", BAD, "light.look", name)
    if counts.get(PARKED):
        return Light("destination", BAD, "light.rejects", name)
    if waiting := counts.get(QUEUED, 0) + counts.get(SENDING, 0):
        return Light("destination", LOOK, "light.waiting", name, (("count", waiting),))
    return Light("destination", OK, "light.ok", name)


def _disk(config: CartConfig, spool: Spool, *, mute: bool) -> Light:
    """Whether the largest image that is allowed would be taken, as the alerts say."""
    try:
        spool.check_room(config.receive.max_image_mib << 20)
    except SpoolFullError:
        return Light("disk", BAD, "light.full")
    if mute:
        return Light("disk", BAD, "light.look")
    return Light("disk", OK, "light.ok")


def _model(config: CartConfig, ledger: Ledger, codes: set[str]) -> Light:
    name = model_in_use(config, ledger)[0].rpartition("/")[2]
    if AlertCode.MODEL.code in codes:
        return Light("model", BAD, "light.wrong", name)
    if codes & {AlertCode.MODEL_NOT_IN_USE.code, AlertCode.IMAGES_CHANGED.code}:
        return Light("model", LOOK, "light.look", name)
    return Light("model", OK, "light.ok", name)


def obstacles(config: CartConfig, ledger: Ledger, writing: Ledger, spool: Spool) -> Sequence[str]:
    """Why the cart is not ready for an image; nothing where it is.

    `ledger`, `receiver`, `assessor`, `disk`.

    Args:
        config: The configuration.
        ledger: To read.
        writing: To write; it waits for other roles, so this is called in a thread.
        spool: The spool folder.
    """
    found, mute = [], roles_are_mute(ledger, spool)
    try:
        with writing.transaction():
            pass
    except LedgerBusyError:
        found.append("ledger")
    if not (mute or runs(ledger, RECEIVER)):
        found.append("receiver")
    if not assessor_works(ledger, mute=mute):
        found.append("assessor")
    if _disk(config, spool, mute=mute).state == BAD:
        found.append("disk")
    return found


def free_bytes(spool: Spool) -> int:
    """Room on the disk of the spool."""
    return shutil.disk_usage(spool.folder).free
