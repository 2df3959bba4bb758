"""Storage commitment asked of the cart (DICOM PS3.4, annex J).

Committed means: *assessed, and the result sent to every destination*. It does not mean archived:
the cart is no archive, and deletes images after a while. An image that the cart could not read, or
whose report could not be built, is not committed. `receive.commitment` is off by default: it is for
consoles that do not send without.

A request is answered at once and kept in the ledger. The N-EVENT-REPORT goes to the peer's own port
on a new association, when every image of the request is done, or is not known here; after a restart
too, and again until the peer takes it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any

from deepcovid_edge.cart.config import CartConfig, Peer
from deepcovid_edge.cart.receive.guards import plain_address
from deepcovid_edge.cart.send.commitment import INSTANCE, PUSH_MODEL
from deepcovid_edge.cart.store.clock import now_seconds, now_utc
from deepcovid_edge.cart.store.deliveries import BACKOFF_SECONDS, with_jitter
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import COMMITTED, RECEIVED, SENT, unanswered
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import require

SUCCESS, NO_SUCH_ACTION, INVALID_ARGUMENT, PROCESSING_FAILURE, NO_SUCH_OBJECT, CLASS_CONFLICT = (
    *(0x0000, 0x0123, 0x0115, 0x0110, 0x0112, 0x0119),
)
_SIDE, _ASKED, _TOLD = "scp", "asked", "told"
_MOST_OBJECTS = 10_000
_LOOK_SECONDS = 1.0
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 15.0
Reference = tuple[str, str]
"""SOP class UID and SOP instance UID."""


class Commitments:
    """Requests for storage commitment that the cart answers."""

    def __init__(self, config: CartConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger

    def ask(self, event: Any, peer: Peer) -> int:
        """Note a request; the status of the N-ACTION (PS3.4, J.3.2).

        Args:
            event: Of pynetdicom, `EVT_N_ACTION`.
            peer: Who asks.
        """
        if event.request.ActionTypeID != 1:
            return NO_SUCH_ACTION
        asked = event.action_information
        transaction = str(asked.get("TransactionUID") or "")
        wanted = [
            [str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)]
            for item in asked.get("ReferencedSOPSequence") or ()
        ]
        if not transaction or not 0 < len(wanted) <= _MOST_OBJECTS:
            return INVALID_ARGUMENT
        if peer.port is None:
            log("commitment_refused", why="the peer has no port")
            return PROCESSING_FAILURE
        address = plain_address(event.assoc.requestor.address)
        with self._ledger.transaction() as now:
            now.execute(
                "INSERT INTO commitment (transaction_uid, side, peer, objects, at_utc)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET objects = excluded.objects,"
                " at_utc = excluded.at_utc, state = ?, tries = 0, next_try = 0",
                (
                    *(transaction, _SIDE, f"{peer.ae_title}@{address}"),
                    *(json.dumps(wanted), now_utc(), _ASKED),
                ),
            )
            self._ledger.event("commitment asked", images=len(wanted))
        return SUCCESS

    def run(self, stop: threading.Event) -> None:
        """Send what is due until an event is set."""
        while not stop.wait(_LOOK_SECONDS):
            try:
                self.tell_due()
            except Exception as error:  # the ledger is locked: later
                log("commitment_waits", why=type(error).__name__)

    def tell_due(self) -> int:
        """Send the reports that are due; how many were taken."""
        now, told = now_seconds(), 0
        for row in self._ledger.rows(
            "SELECT * FROM commitment WHERE side = ? AND state = ? ORDER BY rowid", _SIDE, _ASKED
        ):
            # A clock that went back must not make it wait for years.
            is_due = row["next_try"] <= now or row["next_try"] > now + 2 * BACKOFF_SECONDS[-1]
            wanted = [(one[0], one[1]) for one in json.loads(row["objects"])]
            if is_due and (outcome := self._outcome(wanted)):
                told += self._tell(row, *outcome)
        return told

    def _outcome(
        self, wanted: Iterable[Reference]
    ) -> tuple[list[Reference], list[tuple[Reference, int]]] | None:
        """Which images are done, and which never will be; None while one is under way."""
        kept: list[Reference] = []
        failed: list[tuple[Reference, int]] = []
        for reference in wanted:
            sop_class, sop_uid = reference
            images = self._ledger.rows(
                "SELECT id, sop_class, state FROM image WHERE sop_uid = ?", sop_uid
            )
            if not images:
                failed.append((reference, NO_SUCH_OBJECT))
            elif all(image["sop_class"] != sop_class for image in images):
                failed.append((reference, CLASS_CONFLICT))
            elif any(self._is_under_way(image["id"]) for image in images):
                return None
            elif any(self._is_unanswered(image["id"]) for image in images):
                failed.append((reference, PROCESSING_FAILURE))
            else:
                kept.append(reference)
        return kept, failed

    def _is_under_way(self, image_id: int) -> bool:
        """Whether an image has no result yet, or one that a destination does not have."""
        return (
            self._ledger.row(
                "SELECT 1 FROM image WHERE id = ? AND state IN (?, 'assessing')", image_id, RECEIVED
            )
            or self._ledger.row(
                "SELECT 1 FROM outbox JOIN object ON object.id = outbox.object_id"
                " JOIN result ON result.id = object.result_id"
                " WHERE result.image_id = ? AND outbox.state NOT IN (?, ?)",
                *(image_id, SENT, COMMITTED),
            )
        ) is not None

    def _is_unanswered(self, image_id: int) -> bool:
        """Whether the cart could not read a settled image, or has no report of it to send."""
        condition = unanswered(has_destinations=bool(self._config.destinations))
        return (
            self._ledger.row(f"SELECT 1 FROM image WHERE id = ? AND {condition}", image_id)
        ) is not None

    def _tell(self, row: Any, kept: list[Reference], failed: list[tuple[Reference, int]]) -> bool:
        title, _, address = row["peer"].rpartition("@")  # a title may hold one too
        named = (peer for peer in self._config.peers if peer.ae_title == title)
        peer = next((peer for peer in named if peer.is_at(address) and peer.port), None)
        is_told = peer is not None and self._report(
            (address, int(peer.port or 0), title), row["transaction_uid"], kept, failed
        )
        tries = row["tries"] + 1
        wait = with_jitter(BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS)) - 1])
        with self._ledger.transaction() as now:
            # The peer may have used the UID again meanwhile: that request waits for its own report.
            now.execute(
                "UPDATE commitment SET state = ?, tries = ?, next_try = ?"
                " WHERE transaction_uid = ? AND side = ? AND peer = ? AND objects = ?"
                " AND at_utc = ?",
                (
                    *(_TOLD if is_told else _ASKED, tries, now_seconds() + wait),
                    *(row["transaction_uid"], _SIDE, row["peer"], row["objects"], row["at_utc"]),
                ),
            )
            if is_told:
                self._ledger.event("commitment told", kept=len(kept), failed=len(failed))
        log("commitment", is_told=is_told, kept=len(kept), failed=len(failed), tries=tries)
        return is_told

    def _report(
        self,
        peer: tuple[str, int, str],
        transaction: str,
        kept: list[Reference],
        failed: list[tuple[Reference, int]],
    ) -> bool:
        """Send an N-EVENT-REPORT (PS3.4, J.3.3); whether the peer took it."""
        require("pynetdicom", extra="cart")
        from pynetdicom import AE, build_role

        address, port, title = peer
        entity = AE(ae_title=self._config.receive.ae_title)
        entity.add_requested_context(PUSH_MODEL)
        entity.connection_timeout = _CONNECT_SECONDS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _ANSWER_SECONDS
        tls = client_tls(self._config)
        association = entity.associate(
            address,
            port,
            ae_title=title,
            ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
            tls_args=(tls, "") if tls else None,
        )
        if not association.is_established:
            return False
        try:
            status, _ = association.send_n_event_report(
                _information(transaction, kept, failed), 2 if failed else 1, PUSH_MODEL, INSTANCE
            )
            return "Status" in status and int(status.Status) == SUCCESS
        except (RuntimeError, ValueError):  # the association is over, or has no such context
            return False
        finally:
            association.release()


def _information(
    transaction: str, kept: list[Reference], failed: list[tuple[Reference, int]]
) -> Any:
    """Event information (PS3.4, table J.3-2)."""
    make = require("pydicom.dataset", extra="cart").Dataset

    def item(reference: Reference, reason: int | None = None) -> Any:
        one = make()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = reference
        if reason is not None:
            one.FailureReason = reason
        return one

    whole = make()
    whole.TransactionUID = transaction
    if kept:
        whole.ReferencedSOPSequence = [item(reference) for reference in kept]
    if failed:
        whole.FailedSOPSequence = [item(reference, reason) for reference, reason in failed]
    return whole


def client_tls(config: CartConfig) -> Any:
    """TLS of a report, by the certificate of the DICOM port; None without one."""
    settings = config.receive
    if settings.certificate is None or settings.key is None:
        return None
    import ssl

    from deepcovid_edge.device.tls import load_certificate

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # peers are known by their address and by the authority
    load_certificate(context, "receive.key", settings.certificate, settings.key)
    if settings.authority:
        context.load_verify_locations(settings.authority)
    else:
        context.verify_mode = ssl.CERT_NONE
    return context
