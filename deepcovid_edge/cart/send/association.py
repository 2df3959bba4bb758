"""One association at a time with a destination (PS3.8): opened, limited in time, cut, released.

pynetdicom 3.0.4 has three faults that this module works around, and that its tests provoke:

- its thread sends without a limit of time, and `abort` waits for it: `cut` ends the connection;
- without TCP_NODELAY each object waits 40 ms for a delayed acknowledgement;
- a socket that never connected is not closed, so a silent destination would cost one for each try.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.answers import Answer, no_answer
from deepcovid_edge.device.tls import load_certificate
from deepcovid_edge.errors import NotThereError, require

NOT_ACCEPTED = "presentation context not accepted"
_REJECTED_FOR_GOOD = 1


@dataclass(frozen=True)
class Timeouts:
    """Longest waits for a destination, seconds.

    Attributes:
        connect: For a TCP connection, with TLS. Shorter than the time in which a role must end.
        associate: For the answer to a request for an association, or to release it.
        stall: For the next byte, in or out.
        reply: For the answer to one object, from its first byte on.
    """

    connect: float = 4.0
    associate: float = 10.0
    stall: float = 15.0
    reply: float = 60.0


class CertificateError(NotThereError):
    """Raised when a certificate or key of TLS cannot be used."""


def tls_context(destination: Destination) -> ssl.SSLContext | None:
    """The cart's side of TLS to a destination (PS3.15, B.1: BCP 195); None for none.

    `authority` names whom this destination's certificate must come from. Of an AE no name is
    checked besides: certificates of DICOM devices rarely carry one. With a URL it is (RFC 9110,
    4.3.4).

    Raises:
        CertificateError: A file cannot be read, is none of TLS, or the key is encrypted.
    """
    is_url = destination.url is not None
    own, key, authority = destination.certificate, destination.key, destination.authority
    if not is_url and own is None and authority is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not is_url:
            context.check_hostname = False
            if authority is None:
                context.verify_mode = ssl.CERT_NONE
        if own is not None and key is not None:
            load_certificate(context, f"{destination.name}: key", own, key)
    except NotThereError as error:
        raise CertificateError(str(error)) from error
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or type(error).__name__
        raise CertificateError(
            f"{destination.name}: certificate, key or authority: {why}"
        ) from error
    return context


class Severable:
    """Something with a connection that any thread may end at once."""

    _socket: socket.socket | None = None
    _is_stopped = False

    def cut(self) -> None:
        """End the connection at once, whatever goes over it; any thread may call this."""
        connection = self._socket
        if connection is not None:
            # Not the method of an SSLSocket: what is still sent must not go out in clear.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def stop(self) -> None:
        """End the connection at once, and open none any more; any thread may call this."""
        self._is_stopped = True
        self.cut()

    @contextlib.contextmanager
    def cut_after(self, seconds: float) -> Iterator[None]:
        """End the connection if the block takes longer."""
        timer = threading.Timer(seconds, self.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Associator(Severable):
    """Opens associations with a destination, one after another.

    Attributes:
        library: pynetdicom.
        timeouts: Longest waits.
        association: The association of pynetdicom, or None.

    Raises:
        MissingDependencyError: pynetdicom is not installed.
        CertificateError: A file of TLS cannot be used.
    """

    def __init__(
        self, destination: Destination, ae_title: str, timeouts: Timeouts | None = None
    ) -> None:
        self.library = require("pynetdicom", extra="cart")
        # Its handlers would write every data set into the log, and cost more than the sending.
        self.library._config.LOG_HANDLER_LEVEL = "none"
        self.timeouts = timeouts or Timeouts()
        self.association: Any = None
        self._destination = destination
        self._tls = tls_context(destination)
        self._entity = self.library.AE(ae_title)
        self._entity._create_socket = self._socket_that_closes(self._entity._create_socket)
        self._entity.connection_timeout = self.timeouts.connect
        self._entity.acse_timeout = self.timeouts.associate
        self._entity.dimse_timeout = self.timeouts.reply
        self._entity.network_timeout = None  # it is held while there is work, and no longer

    @staticmethod
    def _socket_that_closes(create: Callable[..., Any]) -> Callable[..., Any]:
        """As pynetdicom makes its socket, but closed also where it cannot be shut down."""

        def made(*arguments: Any) -> Any:
            wrapper = create(*arguments)

            def close() -> None:
                with contextlib.suppress(OSError, AttributeError):
                    wrapper.socket.shutdown(socket.SHUT_RDWR)
                with contextlib.suppress(OSError, AttributeError):
                    wrapper.socket.close()

            wrapper._shutdown_socket = close
            return wrapper

        return made

    @property
    def is_open(self) -> bool:
        """Whether there is an association that has not ended."""
        return self.association is not None and bool(self.association.is_established)

    def open(
        self, kinds: Sequence[tuple[str, str]], handlers: Sequence[tuple[Any, Any]] = ()
    ) -> Answer | None:
        """Open a new association.

        Args:
            kinds: SOP class and transfer syntax UID of each presentation context.
            handlers: Events of pynetdicom, and what to call.

        Returns:
            None, or why there is none.
        """
        self.close()
        if self._is_stopped:
            return Answer("stopped", "transient", "destination")
        try:
            with self.deadline(self.timeouts.connect + self.timeouts.associate):
                self.association = self._entity.associate(
                    self._destination.host,
                    self._destination.port,
                    [self.library.build_context(name, [syntax]) for name, syntax in kinds],
                    ae_title=self._destination.ae_title,
                    tls_args=(self._tls, self._destination.host) if self._tls else None,
                    evt_handlers=[(self.library.evt.EVT_CONN_OPEN, self._connected), *handlers],
                )
        except socket.gaierror:
            return no_answer("no connection: host not known")
        except OSError as error:
            why = error.strerror or type(error).__name__
            return no_answer(f"no connection: {why}")
        return None if self.association.is_established else self._explain_failure()

    def _connected(self, event: Any) -> None:
        """Called by pynetdicom when the connection stands, before anything is sent."""
        self._socket = event.assoc.dul.socket.socket
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(self.timeouts.stall)
        if self._is_stopped:
            self.cut()

    def _explain_failure(self) -> Answer:
        """Why there is no association."""
        association, self.association = self.association, None
        connection, self._socket = self._socket, None
        if association.is_rejected:
            answer = association.acceptor.primitive
            for_good = answer.result == _REJECTED_FOR_GOOD
            words = f"association {answer.result_str.lower()}: {answer.reason_str}"
            return Answer(words, "transient", "destination", rejects=for_good)
        if association.rejected_contexts and not association.accepted_contexts:
            return Answer(NOT_ACCEPTED, "permanent")
        words = "no connection" if connection is None else "no answer to the association"
        return no_answer(words)

    def context(self, sop_class: str, syntax: str) -> int | None:
        """Number of an accepted presentation context, or None."""
        for context in self.association.accepted_contexts:
            if context.abstract_syntax == sop_class and context.transfer_syntax[0] == syntax:
                return int(context.context_id)
        return None

    def deadline(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Cut the connection, some time after pynetdicom should have given up by itself."""
        return self.cut_after(seconds + self.timeouts.connect)

    def close(self) -> None:
        """Release the association (PS3.8, 7.2), if there is one."""
        association, self.association = self.association, None
        if association is not None and association.is_established:
            with self.deadline(self.timeouts.associate):
                association.release()
        self._socket = None


@contextlib.contextmanager
def reactor_paused(association: Any) -> Iterator[None]:
    """Keep the association's own thread from taking the answer."""
    association._reactor_checkpoint.clear()
    try:
        while not association._is_paused:
            threading.Event().wait(0.0001)
        yield
    finally:
        association._reactor_checkpoint.set()
