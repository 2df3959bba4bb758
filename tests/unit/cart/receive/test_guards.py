"""The parts of pynetdicom that are replaced: these tests fail where it changes them."""

from __future__ import annotations

import contextlib
import inspect
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from cart_peers import HOST, wait_until
from pynetdicom import _config, dul, transport
from receiving_cart import CR, association_request, p_data

from deepcovid_edge.cart.receive.connections import Connection, Limits
from deepcovid_edge.cart.receive.guards import Guard, guarded_entity, guarded_server, plain_address

LIMITS = Limits(set_up_seconds=1.0, crowded_seconds=0.5)
Reports = list[tuple[str, str, int, str]]


class Running:
    """A guarded server."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        named: Callable[[str], bool] = lambda address: address == HOST,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.reports: Reports = []
        self.guard = Guard(
            named, limits, lambda *what: self.reports.append(what), tls=tls, report_seconds=60
        )
        entity = guarded_entity()("CART")
        entity.add_supported_context(CR)
        entity.maximum_associations = limits.associations
        entity.acse_timeout = limits.set_up_seconds
        self.server: Any = entity.make_server(
            (HOST, 0),
            evt_handlers=self.guard.event_handlers(),
            server_class=guarded_server(),
            guard=self.guard,
        )
        self.port = self.server.server_address[1]

    def __enter__(self) -> Running:
        self.guard.start()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.guard.stop()
        assert not self.guard.connections()

    def serves(self, tls: ssl.SSLContext | None = None) -> bool:
        """Whether an honest peer gets an association, which it releases.

        Not by pynetdicom, which leaves its own sockets open where it is turned away.
        """
        with contextlib.ExitStack() as stack:
            try:
                sock = stack.enter_context(socket.create_connection((HOST, self.port), 5))
                sock.settimeout(5)
                if tls:
                    sock = stack.enter_context(tls.wrap_socket(sock))
                sock.sendall(association_request())
                is_accepted = sock.recv(4096)[:1] == b"\2"
                sock.sendall(bytes.fromhex("05 00 00000004 00000000"))  # A-RELEASE-RQ
                return is_accepted and sock.recv(4096)[:1] == b"\6"
            except OSError:
                return False


@pytest.fixture
def running() -> Iterator[Running]:
    with Running() as server:
        yield server


def test_an_association_goes_through_the_guard(running: Running) -> None:
    assert running.serves()
    wait_until(lambda: not running.guard.connections(), what="the connection is forgotten")


def test_pynetdicom_reads_a_header_and_then_the_body_that_it_states(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Connection.read` tells one from the other by their order."""
    asked: list[int] = []
    read = Connection.read

    def recorded(self: Connection, count: int) -> bytearray:
        asked.append(count)
        return read(self, count)

    monkeypatch.setattr(Connection, "read", recorded)
    with socket.create_connection((HOST, running.port), 5) as sock:
        request = association_request()
        sock.sendall(request)
        assert sock.recv(4096)
        assert asked[:2] == [6, len(request) - 6]
        asked.clear()
        sock.sendall(p_data(bytes(100), 0))
        wait_until(lambda: len(asked) >= 2, what="a PDU")
        assert asked[:2] == [6, 106]


def test_pynetdicom_tells_of_a_message_before_it_makes_a_primitive_of_it() -> None:
    """A missing UID is filled in between the two."""
    from pynetdicom.dimse import DIMSEServiceProvider

    source = inspect.getsource(DIMSEServiceProvider.receive_primitive)
    assert source.index("EVT_DIMSE_RECV") < source.index("message_to_primitive()")
    assert "self.msg_queue.put" in source
    assert "self.message = None" in source


def test_pynetdicom_still_has_the_parts_that_are_replaced() -> None:
    assert list(inspect.signature(transport.AssociationSocket.recv).parameters) == [
        "self",
        "nr_bytes",
    ]
    assert list(inspect.signature(transport.RequestHandler._create_association).parameters) == [
        "self"
    ]
    server = transport.ThreadedAssociationServer
    assert "request_handler" in inspect.signature(transport.AssociationServer).parameters
    for name in ("get_request", "verify_request", "process_request", "shutdown", "handle_error"):
        assert callable(getattr(server, name))
    assert "wrap_socket" in inspect.getsource(transport.AssociationServer.get_request)
    source = inspect.getsource(dul.DULServiceProvider._read_pdu_data)
    assert "self.socket.recv(6)" in source
    assert "self.socket.recv(pdu_length)" in source
    assert "(0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07)" in source


def test_pynetdicom_still_has_the_switches_that_are_set() -> None:
    for name in (
        *("LOG_HANDLER_LEVEL", "LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS"),
        *("STORE_RECV_CHUNKED_DATASET", "UNRESTRICTED_STORAGE_SERVICE"),
        "ENFORCE_UID_CONFORMANCE",
    ):
        assert hasattr(_config, name)
    assert isinstance(_config.LOG_HANDLER_LEVEL, str)


def test_a_stranger_gets_no_thread_and_one_report() -> None:
    with Running(named=lambda _address: False) as running:
        before = threading.active_count()
        for _ in range(20):
            with socket.create_connection((HOST, running.port), 5) as sock:
                sock.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
        assert threading.active_count() <= before
        wait_until(lambda: running.reports, what="a report")
        time.sleep(0.6)
        assert [(kind, address) for kind, address, *_ in running.reports] == [
            ("unknown_sender", HOST)
        ]


def test_a_connection_without_association_is_ended(running: Running) -> None:
    with socket.create_connection((HOST, running.port), 5) as sock:
        sock.settimeout(5)
        began = time.monotonic()
        sock.recv(100)
        assert sock.recv(100) == b""
        assert 0.9 < time.monotonic() - began < 2.5
    wait_until(lambda: running.reports, what="a report")
    assert "no association" in running.reports[0][3]


def test_places_are_counted_by_living_threads(running: Running) -> None:
    """A counter of events leaked places in a prototype until nobody got in."""
    for _ in range(30):
        socket.create_connection((HOST, running.port), 5).close()
    wait_until(running.serves, 10, what="an honest peer is served")


def test_who_has_released_may_come_again_at_once() -> None:
    """Threads of pynetdicom go on for some milliseconds; no limit counts them."""
    with Running(Limits(per_address=1, associations=1)) as running:
        assert [running.serves() for _ in range(20)] == [True] * 20


def test_associations_that_stay_open_count(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(running.guard.limits.per_address):
            sock = stack.enter_context(socket.create_connection((HOST, running.port), 5))
            sock.sendall(association_request())
            assert sock.recv(4096)[:1] == b"\2"
        assert not running.serves()


def test_who_is_stuck_gives_way_to_who_asks(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(running.guard.limits.per_address):
            stack.enter_context(socket.create_connection((HOST, running.port), 5))
        assert not running.serves()
        time.sleep(running.guard.limits.crowded_seconds)
        assert running.serves()


def test_who_is_one_too_many_is_told_so() -> None:
    """A-ASSOCIATE-RJ: transient, local limit exceeded (DICOM PS3.8, table 9-21)."""
    with Running(Limits(associations=1)) as running, contextlib.ExitStack() as stack:
        answers = []
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection((HOST, running.port), 5))
            sock.sendall(association_request())
            answers.append(sock.recv(4096))
        assert answers[0][:1] == b"\2"
        assert answers[1] == bytes.fromhex("03 00 00000004 00 02 03 02")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cart.pem", folder / "cart.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    request = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*request, *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key


def context(certificate: tuple[Path, Path], *, server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.load_cert_chain(*certificate)
    made.load_verify_locations(certificate[0])
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def test_tls_with_a_certificate_of_the_client(certificate: tuple[Path, Path]) -> None:
    with Running(tls=context(certificate, server=True)) as running:
        assert running.serves(context(certificate, server=False))
        anonymous = ssl.create_default_context(cafile=str(certificate[0]))
        anonymous.check_hostname = False
        assert not running.serves(anonymous)
        assert not running.serves(), "without TLS"
        assert running.serves(context(certificate, server=False))


def test_who_begins_no_handshake_holds_up_nobody(certificate: tuple[Path, Path]) -> None:
    """pynetdicom does the handshake where it accepts connections: one silent peer stops all."""
    with Running(tls=context(certificate, server=True)) as running:
        with socket.create_connection((HOST, running.port), 5) as silent:
            began = time.monotonic()
            assert running.serves(context(certificate, server=False))
            assert time.monotonic() - began < 1.0
            silent.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(100) == b""
        assert time.monotonic() - began < 4


def test_addresses_have_one_spelling() -> None:
    assert plain_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_address("FE80::1%eth0") == "fe80::1"
    assert plain_address("no address") == "no address"


def test_reports_of_a_flood_are_bounded(running: Running) -> None:
    for number in range(1000):
        running.guard.note("unknown_sender", HOST, f"calls itself {number}")
    time.sleep(1.0)
    assert len(running.reports) <= 34
    assert sum(count for *_, count, _ in running.reports) >= 900


def test_a_header_of_an_unknown_kind_ends_the_connection(running: Running) -> None:
    with socket.create_connection((HOST, running.port), 5) as sock:
        sock.sendall(struct.pack(">BBI", 0x47, 0x45, 100) + b"T / HTTP/1.1\r\n\r\n")
        sock.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):
                pass
    assert running.serves()
