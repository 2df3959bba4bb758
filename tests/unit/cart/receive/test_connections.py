"""What a connection may do, by lengths and times, without any of pynetdicom."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from deepcovid_edge.cart.receive.connections import Connection, Limits

LIMITS = Limits(
    most_pdu_bytes=1000,
    most_message_bytes=2500,
    set_up_seconds=1.0,
    stall_seconds=2.0,
    message_seconds=5.0,
    waiting=2,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    near, far = socket.socketpair()
    near.settimeout(2)
    with near, far:
        yield far, Connection(near, "10.0.0.1", LIMITS)


def pdu(kind: int, length: int) -> bytes:
    return struct.pack(">BBI", kind, 0, length) + bytes(length)


def read_pdu(connection: Connection) -> int:
    """Read as pynetdicom does: a header, then the body that it states; bytes of the body."""
    header = connection.read(6)
    assert len(header) == 6
    return len(connection.read(int.from_bytes(header[2:], "big")))


def test_a_whole_pdu_is_read(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    far.sendall(pdu(1, 900))
    assert read_pdu(connection) == 900
    assert connection.ended_why is None


def test_nothing_of_a_long_pdu_is_read(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    far.sendall(struct.pack(">BBI", 4, 0, 1001) + b"abc")
    assert read_pdu(connection) == 0
    assert connection.ended_why
    assert far.recv(100)[:1] == b"\7", "A-ABORT"


def test_a_message_is_counted_over_its_pdus(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    for _ in range(2):
        far.sendall(pdu(4, 1000))
        assert read_pdu(connection) == 1000
    far.sendall(pdu(4, 501))
    assert read_pdu(connection) == 0
    assert "message" in str(connection.ended_why)


def test_a_message_that_ended_counts_while_it_waits(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    queued = [2]
    connection.association = SimpleNamespace(
        dimse=SimpleNamespace(msg_queue=SimpleNamespace(qsize=lambda: queued[0]))
    )
    for _ in range(2):
        far.sendall(pdu(4, 1000))
        assert read_pdu(connection) == 1000
        connection.message_is_whole()
    queued[0] = 0  # both were answered
    far.sendall(pdu(4, 1000))
    assert read_pdu(connection) == 1000
    connection.message_is_whole()
    queued[0] = 1
    far.sendall(pdu(4, 1000))
    assert read_pdu(connection) == 1000
    connection.message_is_whole()
    queued[0] = 2
    far.sendall(pdu(4, 1000))
    assert read_pdu(connection) == 0, "2000 bytes wait already"


def test_many_small_messages_without_an_answer_are_refused(
    pair: tuple[socket.socket, Connection],
) -> None:
    far, connection = pair
    queued = SimpleNamespace(qsize=lambda: 3)
    connection.association = SimpleNamespace(dimse=SimpleNamespace(msg_queue=queued))
    for _ in range(3):
        far.sendall(pdu(4, 10))
        assert read_pdu(connection) == 10
        connection.message_is_whole()
    far.sendall(pdu(4, 10))
    assert read_pdu(connection) == 0


@pytest.mark.parametrize("kind", [5, 7])
def test_who_has_released_or_aborted_counts_only_while_something_is_owed(
    pair: tuple[socket.socket, Connection], kind: int
) -> None:
    far, connection = pair
    far.sendall(pdu(4, 10) + pdu(kind, 4))
    read_pdu(connection)
    connection.message_is_whole()
    read_pdu(connection)
    assert connection.is_live, "it is still to be answered"
    connection.answered()
    assert not connection.is_live
    assert connection.has_thread


def test_who_is_gone_within_a_message_counts_while_its_thread_goes_on(
    pair: tuple[socket.socket, Connection],
) -> None:
    """What came of the message is still held."""
    far, connection = pair
    far.sendall(pdu(4, 10))
    read_pdu(connection)
    far.close()
    assert not connection.read(6)
    assert connection.is_live


def test_a_connection_that_was_cut_gives_what_came(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    far.sendall(pdu(4, 900)[:300])
    far.close()
    assert read_pdu(connection) == 294


def test_without_an_association_it_is_overdue_after_the_set_up(
    pair: tuple[socket.socket, Connection],
) -> None:
    _, connection = pair
    now = time.monotonic()
    assert connection.overdue(now + 0.9) is None
    assert "no association" in str(connection.overdue(now + 1.1))


def test_an_idle_association_is_left_to_its_own_timeout(
    pair: tuple[socket.socket, Connection],
) -> None:
    _, connection = pair
    connection.established()
    assert connection.overdue(time.monotonic() + 1000) is None
    assert connection.stuck_seconds(time.monotonic() + 1000) == 0


def test_within_a_pdu_it_is_overdue_after_the_stall(
    pair: tuple[socket.socket, Connection],
) -> None:
    far, connection = pair
    connection.established()
    reader = threading.Thread(target=read_pdu, args=(connection,))
    far.sendall(pdu(4, 900)[:300])
    reader.start()
    while connection.stuck_seconds(time.monotonic()) == 0:
        time.sleep(0.01)
    now = time.monotonic()
    assert connection.overdue(now + 1.5) is None
    assert "no whole PDU" in str(connection.overdue(now + 2.1))
    connection.end("test")
    reader.join(5)
    assert not reader.is_alive(), "a blocked read sees the end"


def test_between_the_pdus_of_a_message_too(pair: tuple[socket.socket, Connection]) -> None:
    far, connection = pair
    connection.established()
    far.sendall(pdu(4, 10))
    read_pdu(connection)
    assert connection.overdue(time.monotonic() + 2.1)
    connection.message_is_whole()
    assert connection.overdue(time.monotonic() + 2.1) is None


def test_many_small_pdus_of_one_message_have_a_deadline(
    pair: tuple[socket.socket, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    far, connection = pair
    connection.established()
    now = time.monotonic()
    moments = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: now + next(moments) / 2)
    for _ in range(8):
        far.sendall(pdu(4, 1))
        read_pdu(connection)
    later = time.monotonic()
    assert connection.stuck_seconds(later) < LIMITS.stall_seconds
    assert "message not whole" in str(connection.overdue(later))


def test_only_who_waits_for_an_answer_keeps_its_place(
    pair: tuple[socket.socket, Connection],
) -> None:
    far, connection = pair
    connection.established()
    later = time.monotonic() + LIMITS.crowded_idle_seconds + 1
    assert connection.gives_way(time.monotonic()) == 0
    assert connection.gives_way(later) > 0, "it is idle"
    far.sendall(pdu(4, 10))
    read_pdu(connection)
    connection.message_is_whole()
    assert connection.gives_way(later) == 0, "it waits for an answer"
    connection.answered()
    assert connection.gives_way(later + 1) > 0
