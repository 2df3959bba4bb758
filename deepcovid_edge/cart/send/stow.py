"""Sends objects over HTTP (STOW-RS: PS3.18, 10.5), each in a request of its own.

HTTP 200 says that the service stored something. Whether it is *this* object stands in the answer's
sequences: it must be in ReferencedSOPSequence, and a FailedSOPSequence may be there with no item in
it (Orthanc sends one so). Lengths and UIDs are looked at, nothing else.
"""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from typing import Any
from urllib.parse import urlsplit

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.answers import Answer, answer_of, no_answer
from deepcovid_edge.cart.send.association import Severable, Timeouts, tls_context
from deepcovid_edge.cart.send.dimse import Sender
from deepcovid_edge.cart.store.deliveries import Delivery
from deepcovid_edge.imaging.dicom.syntaxes import DataSet

_REFERENCED, _FAILED = "00081199", "00081198"
_SOP_UID, _REASON = "00081155", "00081197"
HTTP_BAD_REQUEST, HTTP_CONFLICT = 400, 409
_LONGEST_PLACE = 200
"""Most letters of a redirect's address that are shown."""
_MOST_ANSWER = 1 << 20
"""Longest answer that is read, bytes; one for one object has some hundreds."""
_REFUSED = {400: "bad request", 401: "not authorised", 403: "forbidden", 404: "no such service"}
_REFUSED |= {405: "method not allowed", 406: "answer not acceptable", 410: "service gone"}
_REDIRECT = "redirect{}, which is not followed: correct url"
_REDIRECTS = range(300, 400)
_REFUSED |= dict.fromkeys(_REDIRECTS, _REDIRECT.format(""))
_FAILS = {500: "server error", 501: "not implemented", 502: "bad gateway"}
_FAILS |= {503: "service unavailable", 504: "gateway timeout"}
_REFUSED_OBJECT = {413: "too large", 415: "media type not supported", 422: "cannot be processed"}


class StowSender(Severable, Sender):
    """Sends to a STOW-RS service, and asks none: the configuration has no QIDO-RS.

    Args:
        destination: Where to; its `url` is that of the service, without `/studies`.
        ae_title: Not sent: HTTP has no such thing.
        timeouts: Longest waits.

    Raises:
        CertificateError: A file of TLS cannot be used.
    """

    def __init__(
        self, destination: Destination, ae_title: str, timeouts: Timeouts | None = None
    ) -> None:
        del ae_title
        self._timeouts = timeouts or Timeouts()
        url = urlsplit(destination.url or "")
        self._host, self._port = url.hostname or "", url.port
        self._path = url.path.rstrip("/") + "/studies"
        self._tls = tls_context(destination) if url.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None

    def _send(self, delivery: Delivery, built: DataSet) -> Answer:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + built.data + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        if failure := self._open():
            return failure
        try:
            status, answer, _ = self._ask("POST", body, headers)
        except (OSError, http.client.HTTPException):
            self.cut()
            self.close()
            return no_answer("no answer: connection lost, or too slow", is_uncertain=True)
        return _meaning(delivery, status, answer)

    def check(self) -> Answer:
        """Whether a service is there: a request to store nothing, which every one declines.

        Orthanc answers 404 to OPTIONS and HEAD, so that these say nothing. A redirect is named,
        without what may be secret in it, and not followed.
        """
        if failure := self._open():
            return failure
        try:
            status, _, location = self._ask("POST", b"", {})
        except (OSError, http.client.HTTPException):
            return no_answer("no answer")
        finally:
            self.close()
        if status in _FAILS:
            return Answer(f"HTTP {status} {_FAILS[status]}", "transient", "destination")
        if status in _REFUSED and status != HTTP_BAD_REQUEST:
            is_named = status in _REDIRECTS
            words = _REDIRECT.format(_goal(location)) if is_named else _REFUSED[status]
            return Answer(f"HTTP {status} {words}", "transient", "destination", rejects=True)
        return Answer(f"HTTP {status}: it answers", "sent")

    def _open(self) -> Answer | None:
        """Have a connection."""
        if self._connection is not None:
            return None
        if self._is_stopped:
            return Answer("stopped", "transient", "destination")
        connection = (
            http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeouts.connect, context=self._tls
            )
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=self._timeouts.connect)
        )
        try:
            connection.connect()  # it sets TCP_NODELAY
        except ssl.SSLError:
            connection.close()
            return Answer("no connection: TLS", "transient", "destination", rejects=True)
        except OSError:
            connection.close()
            return no_answer("no connection")
        self._connection, self._socket = connection, connection.sock
        connection.sock.settimeout(self._timeouts.stall)
        if self._is_stopped:
            self.cut()
        return None

    def _ask(self, method: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """One request; status, body and `Location` of the answer, a long body cut off."""
        connection = self._connection
        if connection is None:
            raise http.client.NotConnected
        with self.cut_after(self._timeouts.reply):
            connection.request(method, self._path, body, headers)
            answer = connection.getresponse()
            content = answer.read(_MOST_ANSWER)
            if answer.will_close or answer.read(1):
                self.close()
        return answer.status, content, answer.getheader("Location", "")

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            connection.close()


def _meaning(delivery: Delivery, status: int, content: bytes) -> Answer:
    """What an answer says of one object (PS3.18, 10.5.3 and table 10.5.3-1)."""
    words, found = f"HTTP {status}", _instances(content)
    for item in found.get(_FAILED, []):
        if _value(item, _SOP_UID) in (delivery.sop_uid, None):
            reason = _value(item, _REASON)
            failed = Answer(f"{words}: failed without a reason", "transient")
            return answer_of(reason) if isinstance(reason, int) and reason else failed
    if status < 300:
        stored = [_value(item, _SOP_UID) for item in found.get(_REFERENCED, [])]
        if delivery.sop_uid in stored:
            return Answer(f"{words} stored", "sent")
        return Answer(f"{words}, but the answer does not name the object", "uncertain")
    if status in _REFUSED_OBJECT:
        return Answer(f"{words} {_REFUSED_OBJECT[status]}", "permanent")
    if status in _REFUSED:
        return Answer(f"{words} {_REFUSED[status]}", "transient", "destination", rejects=True)
    # 409 without a reason: the service stored nothing, and does not say why.
    return Answer(words, "transient", "object" if status == HTTP_CONFLICT else "destination")


def _goal(location: str) -> str:
    """Where a redirect leads to, as ` to ADDRESS`: in ASCII, without user and query."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    place = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    shown = "".join(letter for letter in place if letter.isascii() and letter.isprintable())
    return f" to {shown[:_LONGEST_PLACE]}" if shown else ""


def _instances(content: bytes) -> dict[str, list[dict[str, Any]]]:
    """Items of the sequences of a DICOM JSON answer (PS3.18, annex F); empty if it is none."""
    try:
        whole = json.loads(content)
        data_set = whole[0] if isinstance(whole, list) else whole
        return {
            tag: [item for item in data_set.get(tag, {}).get("Value") or [] if item]
            for tag in (_REFERENCED, _FAILED)
        }
    except (ValueError, AttributeError, IndexError, TypeError, RecursionError):
        return {}


def _value(item: Any, tag: str) -> Any:
    """First value of an element of a DICOM JSON item, or None."""
    try:
        return item[tag]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return None
