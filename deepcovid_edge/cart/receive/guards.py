"""Everything of the receiver that replaces a part of pynetdicom, in one place.

pynetdicom 3.0 buffers a PDU of any length, waits for ever within one, and gives every stranger a
thread. Replaced are five parts of it, each with a test that fails when pynetdicom changes it:

| part | instead |
| --- | --- |
| `AssociationSocket.recv` | `Connection.read`: lengths, sizes, progress |
| `RequestHandler._create_association` | puts that in, and marks threads that end with the process |
| `AssociationServer.get_request`, `verify_request` | no TLS and no thread for a stranger |
| `process_request`, `process_request_thread` | the TLS handshake in the connection's own thread |
| `AE.active_associations` | no association that is over, though its thread goes on |

A reaper thread ends connections that exceed their times.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, cast

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.receive.connections import Connection, Limits
from deepcovid_edge.errors import require

if TYPE_CHECKING:
    import ssl

Report = Callable[[str, str, int, str], None]
"""Receives what was refused: `unknown_sender` or `connection_ended`, the address, how often since
the last time, and why."""
_LOOK_SECONDS = 0.25
_MOST_NOTES = 32
_LINGERING = 32
NO_UID = "2.25.0"
"""Stands for a UID that a request lacks; nobody makes this one (PS3.5, B.2: it is no UUID)."""
NOT_NAMED = "not a named peer"
"""Why a sender was turned away whose address the configuration does not name."""
_MOST_UID = 64
"""Letters of a UID (DICOM PS3.5, 9.1)."""


class _Notes:
    """What is to be reported; the same of one address at most every so often.

    Args:
        report: Receives it.
        every_seconds: Shortest time between two reports of one kind, address and reason.
    """

    def __init__(self, report: Report, every_seconds: float) -> None:
        self._report, self._every = report, every_seconds
        self._lock = threading.Lock()
        self._open: Counter[tuple[str, str, str]] = Counter()
        self._told: dict[tuple[str, str, str], float] = {}

    def add(self, kind: str, address: str, why: str) -> None:
        """Remember something; never waits."""
        key = kind, address, why
        with self._lock:
            is_known = key in self._open or key in self._told
            is_full = len(self._open) + len(self._told) >= _MOST_NOTES
            self._open[key if is_known or not is_full else (kind, "others", "")] += 1

    def tell(self) -> None:
        """Report what is due."""
        now = time.monotonic()
        with self._lock:
            self._told = {key: at for key, at in self._told.items() if now - at < self._every}
            due = {key: self._open.pop(key) for key in [*self._open] if key not in self._told}
            self._told |= dict.fromkeys(due, now)
        for (kind, address, why), count in due.items():
            self._report(kind, address, count, why)


class Guard:
    """Admits connections, watches them and ends them.

    Args:
        is_named: Whether an IP address may connect.
        limits: What a connection may do.
        report: Receives what was refused, in a thread of the guard; raises nothing.
        tls: Of the server's side, or None.
        report_seconds: Shortest time between two reports of one kind, address and reason.
    """

    def __init__(
        self,
        is_named: Callable[[str], bool],
        limits: Limits,
        report: Report,
        *,
        tls: ssl.SSLContext | None = None,
        report_seconds: float = 300.0,
    ) -> None:
        self.limits, self._tls = limits, tls
        self._is_named = is_named
        self._notes = _Notes(report, report_seconds)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, Connection] = {}
        self._stopping = threading.Event()
        self._looked = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name=f"guard{work.__name__}", daemon=True)
            for work in (self._reap, self._tell)
        ]

    def start(self) -> None:
        """Begin to watch."""
        self._looked = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every connection, wait a second for their threads, and stop watching."""
        self._stopping.set()
        for connection in self.connections():
            connection.end("the receiver stops")
        end = time.monotonic() + 1
        while self.connections() and time.monotonic() < end:
            time.sleep(0.01)
            with self._lock:
                self._forget_ended()
        for thread in self._threads:
            thread.join(1)

    def stalled_seconds(self) -> float:
        """How long ago the reaper looked last."""
        return time.monotonic() - self._looked

    def note(self, kind: str, address: str, why: str) -> None:
        """Have something reported; see `Report`."""
        self._notes.add(kind, address, why)

    def connections(self) -> list[Connection]:
        """Those that threads work for."""
        with self._lock:
            return list(self._connections.values())

    def admits(self, sock: socket.socket, address: str) -> bool:
        """Whether a connection that was just accepted may stay. Reads nothing from it."""
        address = plain_address(address)
        if not self._is_named(address):
            self._notes.add(AlertCode.UNKNOWN_SENDER.code, address, NOT_NAMED)
            return False
        with self._lock:
            self._forget_ended()
            if not self._has_room(address):
                self._notes.add("connection_ended", address, "too many connections")
                return False
            self._connections[sock] = Connection(sock, address, self.limits)
        return True

    def _forget_ended(self) -> None:
        over = [sock for sock, one in self._connections.items() if not one.has_thread]
        for sock in over:
            self._connections.pop(sock).close()

    def _has_room(self, address: str) -> bool:
        """Whether there is room, if need be that of a connection that makes no progress."""
        live = [one for one in self._connections.values() if one.is_live]
        own = [one for one in live if one.address == address]
        if len(self._connections) - len(live) >= _LINGERING:
            return False
        if len(own) >= self.limits.per_address:
            return self._make_room(own)
        return len(live) < self.limits.connections or self._make_room(live)

    def _make_room(self, among: list[Connection]) -> bool:
        now = time.monotonic()
        slowest = max(among, key=lambda one: one.gives_way(now))
        if not slowest.gives_way(now):
            return False
        slowest.end("of no use while others wait")
        return True

    def _reap(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # nothing else ends what holds a place
                self._look()  # its variables hold no connection until the next look
                self._looked = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        for connection in self.connections():
            if connection.ended_why is None and (why := connection.overdue(now)):
                connection.end(why)
        with self._lock:
            for connection in self._connections.values():
                if connection.ended_why and not connection.is_noted:
                    connection.is_noted = True
                    self._notes.add("connection_ended", connection.address, connection.ended_why)
            self._forget_ended()

    def _tell(self) -> None:
        """Report in a thread of its own: the ledger may be locked for seconds."""
        while not self._stopping.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the next report may succeed
                self._notes.tell()

    def connection_of(self, sock: socket.socket) -> Connection:
        """The connection of a socket that was admitted."""
        with self._lock:
            return self._connections[sock]

    def event_handlers(self) -> list[Any]:
        """What pynetdicom must tell the guard, for `AE.make_server(evt_handlers=)`."""
        from pynetdicom import evt

        def established(event: Any) -> None:
            event.assoc.dul.socket.connection.established()

        def received(event: Any) -> None:
            event.assoc.dul.socket.connection.message_is_whole()
            if type(event.message).__name__ == "C_STORE_RQ":
                _complete(event.message.command_set)

        def answered(event: Any) -> None:
            event.assoc.dul.socket.connection.answered()

        return [
            (evt.EVT_ESTABLISHED, established),
            (evt.EVT_DIMSE_RECV, received),
            (evt.EVT_DIMSE_SENT, answered),
        ]

    def serve(self, sock: socket.socket, work: Callable[[socket.socket], None]) -> None:
        """Work for an admitted connection in a thread of its own, after its TLS handshake."""
        connection = self.connection_of(sock)
        thread = threading.Thread(target=self._serve, args=(connection, work), daemon=True)
        try:
            thread.start()
        finally:
            connection.thread = thread

    def _serve(self, connection: Connection, work: Callable[[socket.socket], None]) -> None:
        try:
            connection.socket.settimeout(self.limits.stall_seconds)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                self._encrypt(connection, self._tls)
            work(connection.socket)
        except Exception as error:  # above all of TLS, or of a socket that was ended meanwhile
            if connection.ended_why is None:
                connection.end(f"no connection: {type(error).__name__}")
            connection.socket.close()

    def _encrypt(self, connection: Connection, tls: ssl.SSLContext) -> None:
        """TLS handshake. The socket is replaced first, so that the reaper can end it."""
        plain = connection.socket
        wrapped = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections[wrapped] = self._connections.pop(plain)
        connection.socket = wrapped
        wrapped.do_handshake()


def _complete(command: Any) -> None:
    """Have a C-STORE request without usable UIDs reach the handler, which answers it.

    pynetdicom answers nothing where a UID is missing, and aborts where it is too long.

    Args:
        command: The command set (DICOM PS3.7, table 9.3-1); changed.
    """
    for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"):
        value = command.get(keyword)
        if not isinstance(value, str) or not 0 < len(value) <= _MOST_UID:
            setattr(command, keyword, NO_UID)
    if command.get("Priority") is None:
        command.Priority = 0


def set_up_pynetdicom() -> None:
    """Set the switches of pynetdicom that hold for the whole process; it logs nothing then.

    Its log has UIDs and stack traces; a receiver says what happened by events of its own.
    """
    config: Any = require("pynetdicom._config", extra="cart")
    config.LOG_HANDLER_LEVEL = "none"
    config.LOG_REQUEST_IDENTIFIERS = config.LOG_RESPONSE_IDENTIFIERS = False
    config.STORE_RECV_CHUNKED_DATASET = config.UNRESTRICTED_STORAGE_SERVICE = False
    config.ENFORCE_UID_CONFORMANCE = False
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom)\.")


def plain_address(address: str) -> str:
    """An IP address in one spelling; IPv4 that came over IPv6 as IPv4."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        return str(mapped or found)
    return address


class _TurningLoop(BaseServer):
    """A server that knows when the loop that accepts connections turned last."""

    turned = 0.0

    def service_actions(self) -> None:
        """Note a turn (socketserver, `serve_forever`)."""
        super().service_actions()
        self.turned = time.monotonic()


@cache
def guarded_entity() -> Any:
    """The class of a pynetdicom AE whose most associations are counted as a `Guard` counts them.

    Raises:
        MissingDependencyError: pynetdicom is not installed.
    """
    require("pynetdicom", extra="cart")
    from pynetdicom import AE

    class GuardedEntity(AE):
        """Counts no association that is over, though its thread has not ended yet."""

        @property
        def active_associations(self) -> list[Any]:
            found: list[Any] = super().active_associations
            return [one for one in found if one.dul.socket.connection.is_live]

    return GuardedEntity


@cache
def guarded_server() -> Any:
    """The class of a pynetdicom server that asks a `Guard`, for `AE.make_server(server_class=)`.

    Its first argument is the guard.

    Raises:
        MissingDependencyError: pynetdicom is not installed.
    """
    require("pynetdicom", extra="cart")
    from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

    class GuardedSocket(AssociationSocket):
        """Reads what the rules allow."""

        connection: Connection

        def recv(self, nr_bytes: int) -> bytearray:
            return self.connection.read(nr_bytes)

    class GuardedHandler(RequestHandler):
        """Makes associations whose socket is guarded and whose threads end with the process."""

        def _create_association(self) -> Any:
            association = super()._create_association()
            connection = cast("GuardedServer", self.server).guard.connection_of(self.request)
            guarded = cast("GuardedSocket", association.dul.socket)
            guarded.__class__ = GuardedSocket
            guarded.connection, connection.association = connection, association
            association.daemon = association.dul.daemon = True
            return association

    class GuardedServer(_TurningLoop, ThreadedAssociationServer):
        """Admits whom the guard admits."""

        request_queue_size = 128  # what comes while many are turned away waits, and is not dropped

        def __init__(self, *arguments: Any, guard: Guard, **more: Any) -> None:
            self.guard = guard
            super().__init__(*arguments, **(more | {"request_handler": GuardedHandler}))

        def get_request(self) -> Any:
            return cast("socket.socket", self.socket).accept()

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return self.guard.admits(request, client_address[0])

        def process_request(self, request: Any, client_address: Any) -> None:
            self.guard.serve(request, lambda sock: self.finish_request(sock, client_address))

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing on standard error: the guard reports."""

        def shutdown(self) -> None:
            BaseServer.shutdown(self)  # pynetdicom's asks for a server that its AE started
            self.server_close()

    return GuardedServer
