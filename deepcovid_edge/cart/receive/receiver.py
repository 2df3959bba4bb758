"""The DICOM port: C-STORE and C-ECHO, from named peers alone.

What is answered to C-STORE stands in `STATUSES` (DICOM PS3.4, B.2.3). Never a warning: consoles
differ in what they make of one. An image that can be read but not assessed is 0x0000: that it was
not assessed is its result.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig, Peer
from deepcovid_edge.cart.receive.connections import TOO_LARGE, Limits
from deepcovid_edge.cart.receive.destination_addresses import DestinationAddresses
from deepcovid_edge.cart.receive.disk_alert import raise_disk_alert
from deepcovid_edge.cart.receive.guards import (
    NO_UID,
    NOT_NAMED,
    Guard,
    guarded_entity,
    guarded_server,
    plain_address,
)
from deepcovid_edge.cart.send.commitment import PUSH_MODEL, settle_event
from deepcovid_edge.cart.send.dimse import VERIFICATION
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.image_header import NotTakenError
from deepcovid_edge.cart.store.intake import Arrival, Intake
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.device.ports import cannot_listen
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import NotThereError, OutputError, require
from deepcovid_edge.files import Closing
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES

if TYPE_CHECKING:
    import ssl

SUCCESS, NO_SUCH_CLASS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = (
    0x0000,
    0x0122,
    0xA700,
    0xA900,
    0xC000,
)
NOT_AUTHORISED = 0x0124
PROCESSING_FAILURE = 0x0110
"""DICOM PS3.7, annex C."""
STATUSES = {
    SUCCESS: "The image survives a power cut and is in the ledger, now or since it came before.",
    NO_SUCH_CLASS: "The request names an SOP class that is not taken.",
    OUT_OF_RESOURCES: "The disk has too little room, or the ledger is full or locked for 5 s.",
    MISMATCH: "No SOP instance UID, or the data set has another one, or another SOP class.",
    NOT_UNDERSTOOD: "The data set cannot be read as DICOM.",
    NOT_AUTHORISED: "The sender is a destination of results, not a peer.",
}
"""Status of C-STORE -> when it is answered."""
STATUS_OF_NOT_TAKEN = {"uid": MISMATCH, "parse": NOT_UNDERSTOOD}
"""Kind of `NotTakenError` -> status of C-STORE."""
IMAGES = {
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image Storage",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image Storage - For Presentation",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image Storage",
}
"""SOP classes that are taken, by UID (DICOM PS3.4, table B.5-1)."""
_NO_PIXELS = ("JPIP",)
"""Syntaxes whose pixels lie on another server."""
_MOST_PDU_BYTES = 1 << 17
"""Longest PDU that senders are offered, bytes."""
_MIB = 1 << 20
_CALLED, _CALLING = (0x01, 0x01, 0x07), (0x01, 0x01, 0x03)
"""A-ASSOCIATE-RJ: permanent, by the user: AE title not recognised (PS3.8, table 9-21)."""
_STRANGER = AlertCode.UNKNOWN_SENDER.code
_TOO_LARGE = AlertCode.IMAGE_TOO_LARGE.code
_MOST_STRANGERS = 20
"""Alerts about senders at once; a person needs no longer list."""


def image_classes(other_images: str) -> Mapping[str, str]:
    """SOP classes that are taken: UID -> name.

    Args:
        other_images: `refuse` for those of `IMAGES`; `record` for every class of images.

    Raises:
        MissingDependencyError: pynetdicom is not installed.
    """
    if other_images == "refuse":
        return IMAGES
    known = require("pynetdicom.sop_class", extra="cart")
    classes: dict[str, str] = known._STORAGE_CLASSES
    images = {str(uid): name for name, uid in classes.items() if "Image" in name}
    return IMAGES | {uid: name for uid, name in images.items() if uid not in IMAGES}


def transfer_syntaxes() -> list[str]:
    """Transfer syntaxes that are taken as they come: all that are known, but references."""
    require("pynetdicom", extra="cart")
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    known = require("pydicom.uid", extra="cart").UID
    return [
        str(uid)
        for uid in dict.fromkeys([*ALL_TRANSFER_SYNTAXES, *SYNTAXES])
        if not any(word in known(uid).name for word in _NO_PIXELS)
    ]


class Receiver(Closing):
    """A DICOM storage SCP that keeps every image which it acknowledged.

    Args:
        config: The cart's configuration.
        intake: Takes the images.
        commitment: Answers an N-ACTION request with a status; None refuses to negotiate it.
    """

    def __init__(
        self,
        config: CartConfig,
        intake: Intake,
        *,
        commitment: Callable[[Any, Peer], int] | None = None,
    ) -> None:
        self._config, self._intake, self._ledger = config, intake, intake.ledger
        self._limits = limits_of(config)
        self._commitment = commitment
        self._classes = image_classes(config.receive.other_images)
        self._addresses = DestinationAddresses(config.committing, self._clear_strangers)
        tls = server_tls(config)
        self._guard = Guard(self._is_named, self._limits, self._report, tls=tls)
        self._working = 0
        self._lock = threading.Lock()
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            NotThereError: The address cannot be listened on.
            MissingDependencyError: pynetdicom is not installed.
        """
        settings = self._config.receive
        entity = self._entity()
        try:
            self._server = entity.make_server(
                (settings.host, settings.port),
                evt_handlers=[*self._guard.event_handlers(), *self._handlers()],
                server_class=guarded_server(),
                guard=self._guard,
            )
        except OSError as error:
            raise cannot_listen("receive.port", settings.host, settings.port, error) from error
        self._clear_answered()
        self._addresses.start()
        self._server.turned = time.monotonic()
        self._guard.start()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="listener", daemon=True
        )
        self._thread.start()

    def _clear_answered(self) -> None:
        """Clear alerts of senders that may be named by now, and of a limit that was raised."""
        most = self._config.receive.max_image_mib
        with contextlib.suppress(OutputError):
            for row in self._ledger.rows("SELECT key FROM alert WHERE code = ?", _STRANGER):
                self._ledger.clear_alert(row["key"])
            told = self._ledger.row("SELECT detail FROM alert WHERE key = ?", _TOO_LARGE)
            if told and json.loads(told["detail"])["max_image_mib"] < most:
                self._ledger.clear_alert(_TOO_LARGE)

    def _clear_strangers(self, addresses: Set[str]) -> None:
        """Clear alerts of destinations that called before their names could be looked up."""
        with contextlib.suppress(OutputError):
            for address in addresses:
                self._ledger.clear_alert(f"{_STRANGER}:{address}")

    @property
    def is_listening(self) -> bool:
        """Whether connections are taken."""
        return self._thread is not None and self._thread.is_alive()

    def stalled_seconds(self) -> float:
        """How long ago the loop that takes connections turned, or their reaper looked, last."""
        accepted = time.monotonic() - self._server.turned if self._server else 0.0
        return max(accepted, self._guard.stalled_seconds())

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self, seconds: float = 3.0) -> None:
        """Take no more connections, let images that are being stored get their answer, and end."""
        if self._server is None:
            return
        self._server.shutdown()
        self._addresses.stop()
        end = time.monotonic() + seconds
        while self._working and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.05)  # the answer of the last one is on its way
        self._guard.stop()
        self._server = None

    def _entity(self) -> Any:
        settings, limits = self._config.receive, self._limits
        entity = guarded_entity()(ae_title=settings.ae_title)
        syntaxes = transfer_syntaxes()
        for uid in self._classes:
            entity.add_supported_context(uid, syntaxes)
        entity.add_supported_context(VERIFICATION)
        if self._commitment or self._addresses.titles:
            # Who answers the cart proposes the role of an SCP (PS3.4, J.3.3; PS3.7, D.3.3.4).
            entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        entity.require_called_aet = True
        entity.require_calling_aet = sorted(
            {*(peer.ae_title for peer in self._config.peers), *self._addresses.titles}
        )
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = _MOST_PDU_BYTES
        entity.acse_timeout = limits.set_up_seconds
        entity.dimse_timeout = entity.network_timeout = limits.idle_seconds
        return entity

    def _handlers(self) -> list[Any]:
        from pynetdicom import evt

        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._check_titles),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _event: SUCCESS),
        ]
        if self._commitment:
            handlers.append((evt.EVT_N_ACTION, self._commit))
        if self._addresses.titles:
            handlers.append((evt.EVT_N_EVENT_REPORT, self._settle_commitment))
        return handlers

    def _is_named(self, address: str) -> bool:
        is_peer = any(peer.is_at(address) for peer in self._config.peers)
        return is_peer or self._addresses.has(address)

    def _peer(self, association: Any) -> Peer | None:
        """The peer that an association is with, by its title and its address."""
        address, title = _caller(association)
        named = (one for one in self._config.peers if one.ae_title.strip() == title)
        return next((one for one in named if one.is_at(address)), None)

    def _is_destination(self, association: Any) -> bool:
        """Whether it is with a destination that answers about storage commitment."""
        return self._addresses.has(*_caller(association))

    def _check_titles(self, event: Any) -> None:
        """Reject an association whose titles are not those of the cart and of its address."""
        association = event.assoc
        address, title = _caller(association)
        called = str(association.requestor.primitive.called_ae_title).strip()
        if called != self._config.receive.ae_title.strip():
            reason, why = _CALLED, f"calls for {called!r}"
        elif self._peer(association) is None and not self._is_destination(association):
            reason, why = _CALLING, f"calls itself {title!r}"
        else:
            return
        self._guard.note(_STRANGER, address, why)
        association.acse.send_reject(*reason)
        association.kill()

    def _store(self, event: Any) -> int:
        """Take an image; its status."""
        with self._counted():
            try:
                status, detail = self._take(event)
            except NotTakenError as error:
                status, detail = STATUS_OF_NOT_TAKEN[error.kind], {"why": error.kind}
            except SpoolFullError:
                status, detail = OUT_OF_RESOURCES, {"why": "disk"}
                raise_disk_alert(self._intake)
            except Exception as error:  # the sender keeps the image, and tries again
                status, detail = OUT_OF_RESOURCES, {"why": type(error).__name__}
                if not isinstance(error, OutputError | MemoryError):
                    log("receive_failed", kind=type(error).__name__)
            log("store", status=f"0x{status:04X}", **detail)
            return status

    def _take(self, event: Any) -> tuple[int, dict[str, Any]]:
        request = event.request
        sop_class, sop_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        if sop_uid == NO_UID:
            raise NotTakenError("uid", "the request has no SOP instance UID")
        if self._peer(event.assoc) is None:
            return NOT_AUTHORISED, {"why": "a destination sends no images"}
        if sop_class not in self._classes:
            return NO_SUCH_CLASS, {"why": "class"}
        taken = self._intake.take_dataset(
            event.encoded_dataset(include_meta=False),
            sop_class=sop_class,
            sop_uid=sop_uid,
            syntax=str(event.context.transfer_syntax),
            arrival=Arrival(
                "ae",
                plain_address(event.assoc.requestor.address),
                str(event.assoc.requestor.ae_title).strip(),
            ),
        )
        return SUCCESS, {"image": taken.image_id, "is_new": taken.is_new}

    def _commit(self, event: Any) -> tuple[int, None]:
        with self._counted():
            peer = self._peer(event.assoc)
            if self._commitment is None or peer is None:
                return NOT_AUTHORISED, None
            try:
                return self._commitment(event, peer), None
            except Exception as error:
                log("commitment_failed", kind=type(error).__name__)
                return PROCESSING_FAILURE, None

    def _settle_commitment(self, event: Any) -> tuple[int, None]:
        """Take a destination's answer, which comes on an association of its own."""
        with self._counted():
            if not self._is_destination(event.assoc):
                return NOT_AUTHORISED, None
            outbox = Deliveries(self._ledger, self._intake.spool)
            try:
                return settle_event(
                    outbox, event.request.EventTypeID, event.event_information
                ), None
            except OutputError as error:  # it is asked again
                log("commitment_failed", kind=type(error).__name__)
                return PROCESSING_FAILURE, None

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request that is being answered."""
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1

    def _report(self, kind: str, address: str, count: int, why: str) -> None:
        """Write what the guard refused into log and ledger."""
        log(kind, address=address, count=count, why=why)
        with contextlib.suppress(OutputError):
            self._ledger.event(kind, address=address, count=count, why=why)
            if why == NOT_NAMED and self._is_named(address):
                return  # the name of a destination was looked up in the meantime
            if kind == _STRANGER:
                known = self._ledger.rows("SELECT key FROM alert WHERE code = ?", _STRANGER)
                address = address if len(known) < _MOST_STRANGERS else "others"
                key = f"{_STRANGER}:{address}"
                self._ledger.raise_alert(key, _STRANGER, address=address, why=why)
            elif why.startswith(TOO_LARGE):
                most = self._config.receive.max_image_mib
                self._ledger.raise_alert(
                    _TOO_LARGE, _TOO_LARGE, address=address, max_image_mib=most
                )


def _caller(association: Any) -> tuple[str, str]:
    """IP address and AE title of who asked for an association."""
    asked = association.requestor
    return plain_address(asked.address), str(asked.primitive.calling_ae_title).strip()


def limits_of(config: CartConfig) -> Limits:
    """What a connection may do, by the configuration: an image, and its command set with it."""
    settings = config.receive
    return Limits(
        most_message_bytes=(settings.max_image_mib + 1) * _MIB,
        associations=settings.max_associations,
        per_address=min(Limits.per_address, settings.max_associations),
    )


def server_tls(config: CartConfig) -> ssl.SSLContext | None:
    """TLS of the DICOM port (DICOM PS3.15, B.9), or None where no certificate is configured.

    With `authority` a sender needs a certificate that it has signed.

    Raises:
        NotThereError: A file cannot be read, is no certificate or key, or the key is encrypted.
    """
    settings = config.receive
    if settings.certificate is None or settings.key is None:
        return None
    import ssl

    from deepcovid_edge.device.tls import load_certificate

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load_certificate(context, "receive.key", settings.certificate, settings.key)
        if settings.authority:
            context.load_verify_locations(settings.authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise NotThereError(f"receive.certificate: {settings.certificate}: {error}") from error
    return context
