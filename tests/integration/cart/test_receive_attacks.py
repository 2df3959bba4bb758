"""Attacks on the DICOM port: memory stays flat, and an honest peer is served within 10 seconds.

What bare pynetdicom does instead: 300 MB of one PDU are buffered, and slow connections hold every
place for as long as they like.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cart_peers import HOST, echoscu, needs_dcmtk, wait_until
from receiving_cart import ReceivingCart, association_request, command_set, p_data, store_command

from deepcovid_edge.cart.store.ledger import Ledger

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
pytestmark = needs_dcmtk

SERVED_SECONDS = 10.0
GROWTH_MIB = 12.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceivingCart]:
    peers = [("CONSOLE", HOST, None), ("OTHER", "127.0.0.2", None)]
    with ReceivingCart(tmp_path_factory.mktemp("attacked"), peers=peers) as running:
        assert echoscu(running.port).returncode == 0
        yield running


@pytest.fixture(autouse=True)
def _no_traceback_and_nothing_left(cart: ReceivingCart) -> Iterator[None]:
    before = cart.threads(), cart.open_files()
    yield
    wait_until(lambda: (cart.threads(), cart.open_files()) <= before, what="threads end")
    assert "Traceback" not in cart.said()
    assert "Exception" not in cart.said()
    assert seconds_until_served(cart) < SERVED_SECONDS


@contextlib.contextmanager
def connected(cart: ReceivingCart, source: str = HOST) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, cart.port), 10, source_address=(source, 0)) as sock:
        yield sock


def associated(
    stack: contextlib.ExitStack, cart: ReceivingCart, source: str = HOST
) -> socket.socket:
    title = "CONSOLE" if source == HOST else "OTHER"
    sock = stack.enter_context(connected(cart, source))
    sock.sendall(association_request(title))
    assert sock.recv(4096)[:1] == b"\2", "A-ASSOCIATE-AC"
    return sock


def flood(sock: socket.socket, block: bytes, times: int) -> int:
    """Send until it is refused; the bytes that were taken."""
    sent = 0
    with contextlib.suppress(OSError):
        for _ in range(times):
            sock.sendall(block)
            sent += len(block)
    return sent


def is_ended(sock: socket.socket, seconds: float = 10.0) -> bool:
    """Whether the other side ends a connection in time; A-ABORT may come before."""
    sock.settimeout(seconds)
    try:
        while block := sock.recv(4096):
            if block[:1] == b"\7":
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def seconds_until_served(
    cart: ReceivingCart, meanwhile: Callable[[], None] = lambda: None
) -> float:
    """How long an honest peer at the same address tries until its C-ECHO is answered."""
    began = time.monotonic()
    while echoscu(cart.port).returncode:
        assert time.monotonic() - began < 45, "not served"
        meanwhile()
        time.sleep(0.3)
    return time.monotonic() - began


def test_a_pdu_of_300_mb_before_an_association_is_not_buffered(cart: ReceivingCart) -> None:
    before = cart.rss_mib()
    with connected(cart) as sock:
        sock.sendall(struct.pack(">BBI", 1, 0, 300 * MIB))
        flood(sock, bytes(MIB), 300)
        assert cart.rss_mib() < before + GROWTH_MIB
        assert is_ended(sock)


def test_a_pdu_of_200_mb_within_an_association_is_not_buffered(cart: ReceivingCart) -> None:
    before = cart.rss_mib()
    with contextlib.ExitStack() as stack:
        sock = associated(stack, cart)
        sock.sendall(struct.pack(">BBI", 4, 0, 200 * MIB))
        flood(sock, bytes(MIB), 200)
        assert cart.rss_mib() < before + GROWTH_MIB
        assert is_ended(sock)


def test_a_data_set_without_end_is_cut_at_the_largest_image(cart: ReceivingCart) -> None:
    before = cart.rss_mib()
    with contextlib.ExitStack() as stack:
        sock = associated(stack, cart)
        sock.sendall(p_data(store_command(), 3))
        sent = flood(sock, p_data(bytes(100_000), 0), 3000)
        assert 60 * MIB < sent < 75 * MIB
        assert cart.rss_mib() < before + 2.2 * 64
    wait_until(lambda: cart.rss_mib() < before + GROWTH_MIB, what="its memory is freed")
    wait_until(
        lambda: any("message of more" in one["why"] for one in cart.events("connection_ended")),
        what="an event",
    )
    with Ledger(cart.spool, read_only=True) as ledger:
        wait_until(lambda: ledger.row("SELECT 1 FROM alert WHERE code = 'image_too_large'"))


def test_messages_that_wait_for_no_answer_do_not_pile_up(cart: ReceivingCart) -> None:
    before = cart.rss_mib()
    with contextlib.ExitStack() as stack:
        sock = associated(stack, cart)
        message = p_data(store_command(), 3) + p_data(bytes(120_000), 0) * 8 + p_data(b"\0" * 8, 2)
        flood(sock, message, 400)
        assert cart.rss_mib() < before + 2.2 * 64


def test_twelve_connections_that_say_nothing_hold_no_place(cart: ReceivingCart) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(cart)) for _ in range(12)]
        request = association_request()
        sent = 0

        def one_byte_more() -> None:
            nonlocal sent
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.sendall(request[sent : sent + 1])
            sent += 1

        one_byte_more()
        assert seconds_until_served(cart, one_byte_more) < SERVED_SECONDS


def test_four_associations_that_trickle_a_pdu_hold_no_place(cart: ReceivingCart) -> None:
    with contextlib.ExitStack() as stack:
        slow = [associated(stack, cart) for _ in range(4)]
        for sock in slow:
            sock.sendall(p_data(store_command(), 3))
            sock.sendall(struct.pack(">BBI", 4, 0, 16000))

        def one_byte_more() -> None:
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.sendall(b"\0")

        assert seconds_until_served(cart, one_byte_more) < SERVED_SECONDS


def test_four_associations_that_ask_for_nothing_hold_no_place(cart: ReceivingCart) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            associated(stack, cart)
        assert seconds_until_served(cart) < SERVED_SECONDS


def test_one_address_leaves_places_to_others(cart: ReceivingCart) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            associated(stack, cart)
        fifth = stack.enter_context(connected(cart))
        assert is_ended(fifth)
        associated(stack, cart, "127.0.0.2")


def test_a_peer_that_is_not_named_gets_nothing(cart: ReceivingCart) -> None:
    threads = cart.threads()
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(connected(cart, "127.0.0.9")) for _ in range(50)]
        assert cart.threads() <= threads
        for sock in strangers:
            sock.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    time.sleep(1)
    told = [one for one in cart.events("unknown_sender") if one["address"] == "127.0.0.9"]
    assert len(told) == 1


def test_a_peer_that_reads_no_answers_is_ended(cart: ReceivingCart) -> None:
    """Echo requests without end; the answers fill the buffers, and then nothing moves."""
    numbers = {0x0100: 0x30, 0x0110: 1, 0x0800: 0x0101}
    values = {tag: struct.pack("<H", number) for tag, number in numbers.items()}
    echo = command_set({0x0002: b"1.2.840.10008.1.1", **values})
    with contextlib.ExitStack() as stack:
        sock = associated(stack, cart)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        flood(sock, p_data(echo, 3) * 100, 2000)
        assert is_ended(sock, 20)


@pytest.mark.parametrize("seconds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_mutated_pdus_leave_it_as_it_was(cart: ReceivingCart, seconds: float) -> None:
    chance, began, count = random.Random(21), time.monotonic(), 0
    before = cart.rss_mib()
    seeds = [association_request(), p_data(store_command(), 3), p_data(bytes(64), 2)]
    while time.monotonic() - began < seconds:
        count += 1
        with contextlib.suppress(OSError), connected(cart) as sock:
            for seed in chance.sample(seeds, chance.randint(1, 3)):
                data = bytearray(seed)
                for _ in range(chance.randint(0, 6)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                sock.sendall(data[: chance.randint(1, len(data))])
    assert count > 10 * seconds
    assert cart.rss_mib() < before + GROWTH_MIB


def test_paths_as_uids_write_nothing_outside_the_spool(cart: ReceivingCart, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        sock = associated(stack, cart)
        uid = f"../../../..{tmp_path}/x"[:64]
        sock.sendall(p_data(store_command(uid), 3) + p_data(bytes(16), 2))
        answer = sock.recv(4096)
        assert answer[:1] == b"\4"
    wait_until(lambda: cart.events("store"), what="an answer")
    assert cart.events("store")[-1]["status"] in ("0xA900", "0xC000")
    assert not list(tmp_path.iterdir())
