"""Requests of the Open Inference Protocol (KServe v2) over HTTP.

There are as many connections as there were calls at once. A later call uses one that is idle.

An image goes as binary data (Triton, `extension_binary_data.md`), and so does its record come. A
server that is busy or away for a moment is asked again; one that stays away ends the run, and so
does one that fails twice. Where nothing has ever answered, the address is wrong or no server runs:
that ends the run within seconds.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote, urlsplit

from deepcovid_edge.errors import (
    BackendUnavailableError,
    NotAssessedError,
    ServerMismatchError,
    UsageError,
    one_line,
)
from deepcovid_edge.files import Closing
from deepcovid_edge.reasons import Reason

INPUT, OUTPUT = "film", "record"
"""The names of the tensors are part of the protocol."""
HEADER_LENGTH = "inference-header-content-length"
PARAMETER = "deepcovid_edge"
"""Of the model's configuration: what a client checks, as JSON."""
KEY_VARIABLE = "DEEPCOVID_EDGE_API_KEY"
"""Environment variable with the API key: an option would stand in the list of processes."""
_SCHEMES = ("kserve", "triton", "kserve+https", "triton+https")
_PORT = 8000
_SIZE = struct.Struct("<I")
_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 180.0
_PATIENCE_SECONDS = 180.0
"""A server that is busy or away so long is not there. `serve` gives up an image sooner
(`--answer-seconds`), so an image without a record is sent again."""
_FIRST_SECONDS = 3.0
"""Nor is one that has never answered, and does not within this time either."""
_PAUSES = (0.0, 0.2, 1.0, 2.0, 5.0)
_MOST_ANSWER = 1 << 24
_AGAIN = (408, 429, 502, 503, 504)
_ONCE_AGAIN, _FAULT_PAUSE = 500, 1.0
"""A fault may be of the moment, as of a server that ends; one that comes twice is none."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: Its name or address.
        port: Its port.
        is_secure: Whether it is asked over TLS.
        path: What stands before `/v2`, as behind a proxy.
    """

    host: str
    port: int
    is_secure: bool
    path: str = ""

    @classmethod
    def of(cls, text: str) -> Address:
        """An address such as `kserve://10.0.0.5:8000`.

        Raises:
            UsageError: It is no such address.
        """
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise UsageError(f"backend: got {text!r}: {error}") from error
        if url.scheme not in _SCHEMES or not url.hostname or url.query or url.fragment:
            known = ", ".join(f"{scheme}://HOST[:PORT]" for scheme in _SCHEMES)
            raise UsageError(f"backend: got {text!r}, expected one of {known}")
        if url.username or url.password:
            raise UsageError(f"backend: the address holds a password: set {KEY_VARIABLE} instead")
        secure = url.scheme.endswith("+https")
        return cls(url.hostname, port or (443 if secure else _PORT), secure, url.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_secure else 'http'}://{host}:{self.port}{self.path}"


class Client(Closing):
    """Asks a server. Safe to use from several threads.

    Args:
        address: Where it is.
        model: Name of the model.
        patience: Longest time that it may be busy or away, seconds.

    Raises:
        UsageError: The API key has characters that none has.
    """

    def __init__(self, address: Address, model: str, patience: float = _PATIENCE_SECONDS) -> None:
        self._address, self._patience = address, patience
        self._path = f"{address.path}/v2/models/{quote(model, safe='')}"
        self._tls = ssl.create_default_context() if address.is_secure else None
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"{KEY_VARIABLE}: expected the key as `serve --add-key` printed it")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._has_answered = False
        self._idle: SimpleQueue[http.client.HTTPConnection] = SimpleQueue()
        self._used: set[socket.socket] = set()
        self._closed = threading.Event()

    def facts(self) -> Mapping[str, Any]:
        """What the server says of the model.

        Raises:
            BackendUnavailableError: It is not there, has no such model, or does not let us in.
            ServerMismatchError: It is none of `serve` and `export --triton`.
        """
        content, _ = self._ask("GET", f"{self._path}/config", b"", {})
        try:
            facts = json.loads(json.loads(content)["parameters"][PARAMETER]["string_value"])
        except (ValueError, KeyError, TypeError):
            raise ServerMismatchError(
                f"backend: {self._address}: its model says nothing of hash and manifest: expected "
                "one of `deepcovid-edge serve` or `export --triton`"
            ) from None
        return facts if isinstance(facts, dict) else {}

    def record(self, image: bytes, name: str) -> Mapping[str, Any]:
        """The record of an image file.

        Args:
            image: The file.
            name: The request's id.

        Raises:
            NotAssessedError: The server takes no image so large.
            BackendUnavailableError: It is away, or stays busy.
            ServerMismatchError: Its answer holds no record.
        """
        tensor = {
            "name": INPUT,
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"binary_data_size": _SIZE.size + len(image)},
        }
        output = {"name": OUTPUT, "parameters": {"binary_data": True}}
        asked = json.dumps({"id": name, "inputs": [tensor], "outputs": [output]}).encode()
        body = b"".join((asked, _SIZE.pack(len(image)), image))
        headers = {HEADER_LENGTH: str(len(asked)), "content-type": "application/octet-stream"}
        content, length = self._ask("POST", f"{self._path}/infer", body, headers)
        try:
            binary = content[int(length or "") :]
            record = json.loads(binary[_SIZE.size : _SIZE.size + _SIZE.unpack_from(binary)[0]])
        except (ValueError, TypeError, struct.error) as error:
            raise ServerMismatchError(
                f"backend: {self._address}: its answer holds no record ({one_line(error)})"
            ) from error
        if not isinstance(record, dict):
            raise ServerMismatchError(f"backend: {self._address}: its answer holds no record")
        return record

    def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[bytes, str | None]:
        """Content of an answer, and its header's length; asks again where that may help."""
        began, tries, faults = time.monotonic(), 0, 0
        while True:
            try:
                status, retry, length, content = self._once(method, path, body, headers)
                why = f"HTTP {status}"
                if status == 200:
                    return content, length
                if status == _ONCE_AGAIN and not faults:
                    retry, faults = retry or _FAULT_PAUSE, 1
                else:
                    self._check(status, content)
            except (OSError, http.client.HTTPException) as error:
                self._close_idle()  # whatever ended this connection has ended those too
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                    raise self._untrusted(error) from error
                retry, why = None, one_line(error)
            pause = retry or _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            if time.monotonic() + pause > began + self._longest_wait:
                raise self._away(why)
            if self._closed.wait(pause):
                raise self._was_closed()

    @property
    def _longest_wait(self) -> float:
        return self._patience if self._has_answered else min(_FIRST_SECONDS, self._patience)

    def _away(self, why: str) -> BackendUnavailableError:
        if self._has_answered:
            return BackendUnavailableError(
                f"backend: {self._address}: no answer in {self._patience:g} s ({why})"
            )
        tls = "" if self._address.is_secure else ", or write kserve+https:// if it expects TLS"
        return BackendUnavailableError(
            f"backend: {self._address}: no server answers ({why}): start `deepcovid-edge serve` "
            f"there and wait until it listens, or correct the address{tls}"
        )

    def _untrusted(self, error: ssl.SSLError) -> BackendUnavailableError:
        fix = ""
        if isinstance(error, ssl.SSLCertVerificationError):
            fix = ": name the file of its certificate authority in SSL_CERT_FILE"
        return BackendUnavailableError(f"backend: {self._address}: TLS: {one_line(error)}{fix}")

    def _was_closed(self) -> BackendUnavailableError:
        return BackendUnavailableError(f"backend: {self._address}: the connection was closed here")

    def _check(self, status: int, content: bytes) -> None:
        """Raise where asking again does not help."""
        if status in _AGAIN:
            return
        said = _said(content)
        if status == 413:
            raise NotAssessedError(Reason.TOO_BIG, f"the server: {said}")
        if status == 401:
            said = f"{said}: set {KEY_VARIABLE}"
        raise BackendUnavailableError(f"backend: {self._address}: HTTP {status}: {said}")

    def _once(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, float | None, str | None, bytes]:
        connection, is_whole = self._connection(), False
        own = connection.sock
        self._used.add(own)
        try:
            if self._closed.is_set():  # `close` did not see this connection
                raise self._was_closed()
            with suppress(BrokenPipeError, ConnectionResetError):  # it may be answered, as by 413
                connection.request(method, path, body or None, {**self._headers, **headers})
            answer = connection.getresponse()
            self._has_answered = True
            content = answer.read(_MOST_ANSWER)
            if answer.length and len(content) < _MOST_ANSWER:  # with a size, `read` does not say so
                raise http.client.IncompleteRead(content, answer.length)
            is_whole = not (answer.will_close or answer.read(1))
        finally:
            self._used.discard(own)
            if is_whole and not self._closed.is_set():
                self._idle.put(connection)
            else:
                connection.close()
        retry = answer.headers.get("retry-after", "")
        seconds = float(retry) if retry.isascii() and retry.isdecimal() else None
        return answer.status, seconds, answer.headers.get(HEADER_LENGTH), content

    def _connection(self) -> http.client.HTTPConnection:
        """One that no call uses."""
        with suppress(Empty):
            return self._idle.get_nowait()
        host, port = self._address.host, self._address.port
        made = (
            http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
        )
        made.connect()
        made.sock.settimeout(_ANSWER_SECONDS)
        return made

    def close(self) -> None:
        """Close the connections; calls under way end with a `BackendUnavailableError` at once."""
        self._closed.set()
        for own in tuple(self._used):
            with suppress(OSError):  # it has ended
                socket.socket.shutdown(own, socket.SHUT_RDWR)  # wakes its call, under TLS too
        self._close_idle()

    def _close_idle(self) -> None:
        """Close the connections that no call uses."""
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()


def _said(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no reason given"
