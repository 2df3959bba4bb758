"""Asks destinations for storage commitment (PS3.4, annex J: Push Model), and takes their answers.

An answer is an N-EVENT-REPORT, on the same association or on a new one, seconds or days later. The
transaction is therefore in the ledger, and `settle_event` serves both: a courier's own association,
and the cart's receiver.

What a destination kept is `committed`. What it lost goes out again, the same bytes, and each
failure in a row makes the next question wait longer. What it leaves unanswered for a day is asked
again, under a new transaction UID as PS3.4, J.3.2 demands; an answer to the old one then counts for
nothing.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.association import Associator, Timeouts
from deepcovid_edge.cart.store.clock import now_seconds, now_utc
from deepcovid_edge.cart.store.deliveries import BACKOFF_SECONDS, Deliveries
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import require
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT

PUSH_MODEL, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
"""SOP class of the Push Model and its well-known instance (PS3.4, J.3.5)."""
UNANSWERED_SECONDS = 86400.0
SUCCESS, INVALID_ARGUMENT, NO_SUCH_EVENT = 0x0000, 0x0115, 0x0113
FAILURES_UNTIL_ALERT = 3
_SIDE, _ASKED, _KEPT, _LOST, _GIVEN_UP = "scu", "asked", "kept", "lost", "given up"
_REQUEST = 1
_ALL_KEPT, _SOME_LOST = 1, 2
"""Event types (PS3.4, table J.3-2)."""
_ON_THE_SPOT_SECONDS = 1.0
"""How long the association is held for an answer on it."""


class CommitmentUser:
    """Asks one destination."""

    def __init__(
        self,
        destination: Destination,
        ae_title: str,
        deliveries: Deliveries,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._name = destination.name
        self._line = Associator(destination, ae_title, timeouts)
        self._deliveries, self._ledger = deliveries, deliveries.ledger
        self._failures, self._wait_until = 0, 0.0

    def ask(self, stopping: threading.Event) -> None:
        """Ask for what was sent and not asked for yet, if it is time.

        Args:
            stopping: Set when this is to return soon.
        """
        self._give_up_old()
        if stopping.is_set() or time.monotonic() < self._wait_until or self._waits_after_failures():
            return
        wanted = self._deliveries.uncommitted(self._name)
        if wanted:
            self._ask(wanted, stopping)

    def _ask(self, wanted: list[tuple[str, str]], stopping: threading.Event) -> None:
        line, events = self._line, self._line.library.evt
        handlers = [(events.EVT_N_EVENT_REPORT, self._reported)]
        if failure := line.open([(PUSH_MODEL, IMPLICIT)], handlers):
            self._failed(is_silent=failure.is_silent)
            return
        # It is in the ledger before it is asked: the answer may come from elsewhere at once.
        transaction = f"2.25.{uuid.uuid4().int}"
        self._note(transaction, [uid for _, uid in wanted])
        with line.deadline(line.timeouts.reply):
            status, _ = line.association.send_n_action(
                _question(transaction, wanted), _REQUEST, PUSH_MODEL, INSTANCE
            )
        if (answer := getattr(status, "Status", None)) != SUCCESS:
            self._forget(transaction, _GIVEN_UP)
            self._failed(is_silent=answer is None)
        else:
            self._failures = 0
            self._await_answer(transaction, stopping)
        line.close()

    def _await_answer(self, transaction: str, stopping: threading.Event) -> None:
        ends = time.monotonic() + _ON_THE_SPOT_SECONDS
        while self._state(transaction) == _ASKED and time.monotonic() < ends:
            if not self._line.is_open or stopping.wait(0.05):
                return

    def _reported(self, event: Any) -> tuple[int, None]:
        """Called by pynetdicom for an answer on the association of the question."""
        try:
            information = event.event_information
        except Exception:  # pynetdicom raises what pydicom does
            return INVALID_ARGUMENT, None
        return settle_event(self._deliveries, event.request.EventTypeID, information), None

    def _note(self, transaction: str, uids: list[str]) -> None:
        with self._ledger.transaction():
            self._ledger.insert(
                "commitment",
                {
                    "transaction_uid": transaction,
                    "side": _SIDE,
                    "peer": self._name,
                    "objects": json.dumps(uids),
                    "state": _ASKED,
                    "next_try": now_seconds() + UNANSWERED_SECONDS,
                    "at_utc": now_utc(),
                },
            )
            self._deliveries.ask_commitment(self._name, transaction, uids)

    def _state(self, transaction: str) -> str:
        row = self._ledger.row(
            "SELECT state FROM commitment WHERE transaction_uid = ? AND side = ?",
            *(transaction, _SIDE),
        )
        return str(row["state"]) if row else ""

    def _forget(self, transaction: str, state: str) -> None:
        """What was asked for in a transaction is to be asked for again."""
        with self._ledger.transaction() as now:
            now.execute(
                "UPDATE outbox SET transaction_uid = NULL WHERE destination = ?"
                " AND transaction_uid = ? AND state = 'sent'",
                (self._name, transaction),
            )
            _set_state(self._ledger, transaction, state)

    def _give_up_old(self) -> None:
        """Ask again for what has had no answer for a day, by a clock that may have jumped."""
        now, far = now_seconds(), now_seconds() + UNANSWERED_SECONDS + 60
        for row in self._ledger.rows(
            "SELECT transaction_uid FROM commitment WHERE side = ? AND peer = ? AND state = ?"
            " AND (next_try <= ? OR next_try > ?)",
            *(_SIDE, self._name, _ASKED, now, far),
        ):
            self._forget(row["transaction_uid"], _GIVEN_UP)
            self._ledger.event("commitment unanswered", destination=self._name)
            self._tell("no answer to storage commitment for a day")

    def _waits_after_failures(self) -> bool:
        """Whether the last questions failed, the very last just now."""
        rows = self._ledger.rows(
            "SELECT state, at_utc FROM commitment WHERE side = ? AND peer = ?"
            " AND state != ? ORDER BY rowid DESC LIMIT ?",
            *(_SIDE, self._name, _ASKED, len(BACKOFF_SECONDS)),
        )
        states = [row["state"] for row in rows]
        failures = next((at for at, state in enumerate(states) if state == _KEPT), len(states))
        if failures == 0:
            if rows and self._failures == 0:  # an old answer says nothing of what fails since
                self._ledger.clear_alert(f"commitment:{self._name}")
            return False
        if failures >= FAILURES_UNTIL_ALERT and _LOST in states[:failures]:
            self._tell("storage commitment: it lost objects that it had taken")
        since = datetime.now(timezone.utc) - datetime.fromisoformat(rows[0]["at_utc"])
        return 0 <= since.total_seconds() < BACKOFF_SECONDS[failures - 1]

    def _failed(self, *, is_silent: bool) -> None:
        wait = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        self._wait_until = time.monotonic() + wait
        log("commitment_failed", destination=self._name, failures=self._failures)
        if self._failures >= FAILURES_UNTIL_ALERT:
            code = AlertCode.DESTINATION_SILENT if is_silent else AlertCode.DESTINATION_FAILS
            self._tell("storage commitment cannot be asked for", code)

    def _tell(self, status: str, code: AlertCode = AlertCode.DESTINATION_FAILS) -> None:
        key = f"commitment:{self._name}"
        self._ledger.raise_alert(key, code.code, destination=self._name, status=status)

    def stop(self) -> None:
        """End the connection at once, and open none any more; any thread may call this."""
        self._line.stop()


def settle_event(deliveries: Deliveries, event_type: int, information: Any) -> int:
    """Write a destination's answer about objects that the cart asked it to keep.

    Who sends it is not looked at: nobody else knows a transaction's UID, which is random.

    Args:
        deliveries: The outbox.
        event_type: 1: all are kept; 2: some are lost.
        information: The data set of the N-EVENT-REPORT (PS3.4, table J.3-2).

    Returns:
        Status to answer with: 0x0000; 0x0113 for another event type; 0x0115 for a transaction that
        is not known, or has been answered with other objects.
    """
    if event_type not in (_ALL_KEPT, _SOME_LOST):
        return NO_SUCH_EVENT
    transaction = str(information.get("TransactionUID") or "")
    row = deliveries.ledger.row(
        "SELECT peer, state, objects FROM commitment WHERE transaction_uid = ? AND side = ?",
        *(transaction, _SIDE),
    )
    if row is None:
        return INVALID_ARGUMENT
    if row["state"] != _ASKED:
        return SUCCESS  # it was answered before, or asked again since
    asked = json.loads(row["objects"])
    lost = _uids(information.get("FailedSOPSequence"))
    # What is in neither list was not taken responsibility for; nor is what is in both.
    kept = _uids(information.get("ReferencedSOPSequence")) - lost
    with deliveries.ledger.transaction():
        deliveries.settle_commitment(
            row["peer"],
            transaction,
            [uid for uid in asked if uid in kept],
            [uid for uid in asked if uid not in kept],
        )
        is_whole = kept.issuperset(asked)
        _set_state(deliveries.ledger, transaction, _KEPT if is_whole else _LOST)
    return SUCCESS


def _set_state(ledger: Ledger, transaction: str, state: str) -> None:
    with ledger.transaction() as now:
        now.execute(
            "UPDATE commitment SET state = ? WHERE transaction_uid = ? AND side = ?",
            (state, transaction, _SIDE),
        )


def _uids(items: Iterable[Any] | None) -> set[str]:
    return {str(item.get("ReferencedSOPInstanceUID") or "") for item in items or ()}


def _question(transaction: str, wanted: list[tuple[str, str]]) -> Any:
    """Action information (PS3.4, table J.3-1)."""
    make = require("pydicom.dataset", extra="cart").Dataset
    question = make()
    question.TransactionUID = transaction
    question.ReferencedSOPSequence = []
    for sop_class, sop_uid in wanted:
        item = make()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
        question.ReferencedSOPSequence.append(item)
    return question
