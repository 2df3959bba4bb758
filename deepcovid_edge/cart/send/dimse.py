"""Sends objects to a DICOM application entity (PS3.4, annex B), over one association if it can.

What leaves is what was built: the data set of the file, byte for byte, once the file has the
SHA-256 that the ledger holds. A destination that takes Implicit VR Little Endian alone gets the
same elements and values in that encoding (`send.implicit`), because PS3.5, 10.1 has every sender
offer it. Nothing is ever compressed or decompressed.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.answers import Answer, answer_of, no_answer
from deepcovid_edge.cart.send.association import NOT_ACCEPTED, Associator, Timeouts, reactor_paused
from deepcovid_edge.cart.send.implicit import to_implicit
from deepcovid_edge.cart.store.deliveries import Delivery
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError, require
from deepcovid_edge.files import Closing
from deepcovid_edge.imaging.dicom.elements import BoundedStream, read_elements
from deepcovid_edge.imaging.dicom.syntaxes import EXPLICIT, IMPLICIT, DataSet, find_data_set

VERIFICATION = "1.2.840.10008.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND (PS3.4, C.6.2)."""
_STUDY_UID, _SERIES_UID = 0x0020000D, 0x0020000E
FILE_STATUS = "file: "
"""How the status of an object begins whose file is not what was built."""
_PRIORITY_LOW = 2
_PENDING = (0xFF00, 0xFF01)


class Sender(Closing, ABC):
    """Sends objects to one destination, for one thread; any may call `cut` and `stop`."""

    def send(self, delivery: Delivery) -> Answer:
        """Send an object, once its file is what was built, and wait for the answer."""
        try:
            built = read_built(delivery)
        except ObjectDamagedError as error:
            return Answer(str(error), "permanent", "file")
        return self._send(delivery, built)

    @abstractmethod
    def _send(self, delivery: Delivery, built: DataSet) -> Answer:
        """Send what was built."""

    def has(self, delivery: Delivery) -> bool | None:
        """Whether the destination has an object; None where it does not say, as here."""
        del delivery
        return None

    @abstractmethod
    def check(self) -> Answer:
        """Ask whether the destination can be reached."""

    @abstractmethod
    def cut(self) -> None:
        """End the connection at once, whatever goes over it."""

    @abstractmethod
    def stop(self) -> None:
        """End the connection at once, and open none any more."""

    def echo(self) -> str:
        """What `check` found, in words.

        Raises:
            NotThereError: The destination cannot be reached, or does not take the cart.
        """
        answer = self.check()
        if answer.kind != "sent":
            raise NotThereError(answer.status)
        return answer.status


class ObjectDamagedError(DeepCovidEdgeError):
    """Raised when the file of an object is missing, or is not the one that was built."""


def read_built(delivery: Delivery) -> DataSet:
    """Read the file of an object, and check that it is the one that was built.

    Raises:
        ObjectDamagedError: It is not, or cannot be read.
    """
    try:
        data = delivery.path.read_bytes()
    except OSError as error:
        raise ObjectDamagedError(f"{FILE_STATUS}{error.strerror or 'cannot be read'}") from error
    if hashlib.sha256(data).hexdigest() != delivery.sha256:
        raise ObjectDamagedError(f"{FILE_STATUS}changed since it was built")
    return find_data_set(data)


class DimseSender(Sender):
    """Sends to an application entity by C-STORE.

    Raises:
        MissingDependencyError: pynetdicom is not installed.
        CertificateError: A file of TLS cannot be used.
    """

    def __init__(
        self, destination: Destination, ae_title: str, timeouts: Timeouts | None = None
    ) -> None:
        self._line = Associator(destination, ae_title, timeouts)
        self._finds = destination.find
        self._kinds: list[tuple[str, str]] = []
        self._message = 0

    def _send(self, delivery: Delivery, built: DataSet) -> Answer:
        if failure := self._open_for(delivery.sop_class, built.syntax):
            return failure
        data = built.data[built.start :]
        context = self._line.context(delivery.sop_class, built.syntax)
        if context is None and built.syntax == EXPLICIT:
            context = self._line.context(delivery.sop_class, IMPLICIT)
            try:
                data = to_implicit(data)
            except ValueError as error:
                return Answer(f"it takes implicit VR alone: {error}", "permanent")
        if context is None:
            return Answer(NOT_ACCEPTED, "permanent")
        return self._store(delivery, context, data)

    def has(self, delivery: Delivery) -> bool | None:
        """Whether the destination has an object, by C-FIND (PS3.4, C.4.1) at the level IMAGE.

        Returns:
            None where it does not answer, does not know C-FIND, or fails.
        """
        try:
            built = read_built(delivery)
        except ObjectDamagedError:
            return None
        if self._open_for(delivery.sop_class, built.syntax):
            return None
        if self._line.context(FIND, IMPLICIT) is None:
            return None
        query = require("pydicom.dataset", extra="cart").Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID = _above(built)
        query.SOPInstanceUID = delivery.sop_uid
        found, last = False, None
        with self._line.deadline(self._line.timeouts.reply):
            for status, match in self._line.association.send_c_find(query, FIND):
                last = getattr(status, "Status", None)
                if last in _PENDING and match is not None:
                    found |= match.get("SOPInstanceUID") == delivery.sop_uid
        return True if found else False if last == 0 else None

    def check(self) -> Answer:
        """C-ECHO (PS3.4, annex A): whether the destination can be reached and knows the cart."""
        if failure := self._line.open([(VERIFICATION, IMPLICIT)]):
            return failure
        with self._line.deadline(self._line.timeouts.reply):
            status = getattr(self._line.association.send_c_echo(), "Status", None)
        self.close()
        if status is None:
            return no_answer("no answer to C-ECHO")
        return answer_of(status)

    def _open_for(self, sop_class: str, syntax: str) -> Answer | None:
        """Have an association on which an object of this kind was proposed."""
        kind = (sop_class, syntax)
        if kind in self._kinds and self._line.is_open:
            return None
        if kind not in self._kinds:
            self._kinds.append(kind)
        kinds = [*self._kinds, *((one, IMPLICIT) for one, kind in self._kinds if kind == EXPLICIT)]
        if self._finds:
            kinds.append((FIND, IMPLICIT))
        return self._line.open(list(dict.fromkeys(kinds)))

    def _store(self, delivery: Delivery, context: int, data: bytes) -> Answer:
        """As pynetdicom's `send_c_store`, which would encode the data set once more."""
        association, library = self._line.association, self._line.library
        self._message = self._message % 0xFFFF + 1
        request = library.dimse_primitives.C_STORE()
        request.MessageID, request.Priority = self._message, _PRIORITY_LOW
        request.AffectedSOPClassUID = delivery.sop_class
        request.AffectedSOPInstanceUID = delivery.sop_uid
        request.DataSet = io.BytesIO(data)
        with self._line.deadline(self._line.timeouts.reply), reactor_paused(association):
            association.dimse.send_msg(request, context)
            _, response = association.dimse.get_msg(block=True)
        status = getattr(response, "Status", None)
        number = getattr(response, "MessageIDBeingRespondedTo", None)
        if isinstance(status, int) and number == self._message:
            return answer_of(status)
        self._line.cut()
        return no_answer("no answer: connection lost, or too slow", is_uncertain=True)

    def cut(self) -> None:
        """End the connection at once, whatever goes over it."""
        self._line.cut()

    def stop(self) -> None:
        """End the connection at once, and open none any more."""
        self._line.stop()

    def close(self) -> None:
        """Release the association, if there is one."""
        self._line.close()


def _above(built: DataSet) -> tuple[str, str]:
    """UIDs of study and series, which a query at the level IMAGE must name (PS3.4, C.4.1.2)."""
    found = read_elements(
        BoundedStream.over(built),
        lambda tag, _kind, _length: tag > _SERIES_UID,
        (_STUDY_UID, _SERIES_UID),
        built.encoding,
    )
    return found.text(_STUDY_UID), found.text(_SERIES_UID)
