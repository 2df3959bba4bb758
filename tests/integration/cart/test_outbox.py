"""The outbox against destinations that answer, refuse, lose connections, stall and come back."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cart_outbox import (
    CAPTURE,
    IMPLICIT,
    SHORT,
    WAITS,
    Scripted,
    alerts,
    all_states,
    config_for,
    fill,
    outbox_rows,
    scripted,
    sent_part,
)
from cart_peers import free_port, wait_until
from cart_store import Store
from pydicom import dcmread
from pynetdicom import evt
from tcp_proxy import Fault, TcpProxy

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.dimse import DimseSender
from deepcovid_edge.cart.send.outbox import STOP_SECONDS, Outbox
from deepcovid_edge.cart.store.deliveries import Deliveries


@pytest.fixture
def start(store: Store) -> Iterator[Callable[..., Outbox]]:
    """Starts an outbox to a port; it is stopped at the end of the test."""
    running: list[Outbox] = []

    def begin(port: int, **settings: Any) -> Outbox:
        outbox = make(store, port, **settings)
        outbox.start()
        running.append(outbox)
        return outbox

    yield begin
    for outbox in running:
        outbox.stop()


def make(store: Store, port: int, **settings: Any) -> Outbox:
    goal = Destination("pacs", "PACS", "127.0.0.1", port, **settings)
    return Outbox(config_for(store, goal), store.ledger, store.spool, timeouts=SHORT, waits=WAITS)


def most_tries(seconds: float) -> float:
    """One for each of the longest waits, and one that was about to begin."""
    return 1 + seconds / (0.8 * WAITS[-1])


def has_all(pacs: Scripted, made: dict[str, bytes]) -> bool:
    return set(pacs.uids) == set(made)


def same_bytes(pacs: Scripted, made: dict[str, bytes]) -> bool:
    return all(data == sent_part(made[uid]) for uid, data in pacs.arrived)


def is_sent(store: Store) -> bool:
    return all_states(store) == {"sent"}


def test_everything_arrives_once_in_order_over_few_associations(
    store: Store, start: Callable[..., Outbox]
) -> None:
    made = fill(store, 10)
    made |= (urgent := fill(store, decision="positive"))
    with scripted() as pacs:
        start(pacs.port)
        wait_until(lambda: is_sent(store), 10)
        assert len(pacs.uids) == len(made)
        assert has_all(pacs, made)
        assert same_bytes(pacs, made)
        assert pacs.uids[0] == max(urgent)  # the picture of the positive image
        assert pacs.uids[1:] == sorted(set(pacs.uids) - {max(urgent)})
        assert pacs.associations <= 2
        assert {status for _, _, status in outbox_rows(store)} == {"0x0000 success"}
        more = fill(store)
        wait_until(lambda: is_sent(store), 10)
        assert has_all(pacs, made | more)


@pytest.mark.parametrize("status", [0xB000, 0x0111])
def test_warnings_and_a_known_instance_are_sent(
    store: Store, start: Callable[..., Outbox], status: int
) -> None:
    fill(store)
    with scripted() as pacs:
        pacs.status = status
        start(pacs.port)
        wait_until(lambda: is_sent(store), 10)
    assert all(text and text.startswith(f"0x{status:04X}") for _, _, text in outbox_rows(store))


@pytest.mark.parametrize("status", [0xA900, 0xC123])
def test_a_refused_object_is_parked_told_and_sent_again_by_a_person(
    store: Store, start: Callable[..., Outbox], status: int
) -> None:
    made = fill(store, 2)
    bad = min(made)
    with scripted() as pacs:
        pacs.status = lambda uid: status if uid == bad else 0
        start(pacs.port)
        wait_until(lambda: all_states(store) == {"sent", "parked"}, 10)
        assert [state for state, _, _ in outbox_rows(store)].count("parked") == 1
        assert alerts(store) == {"rejects:pacs": "destination_rejects"}
        time.sleep(max(WAITS))
        assert pacs.uids.count(bad) == 1
        pacs.status = 0
        Deliveries(store.ledger, store.spool).resend(destination="pacs")
        wait_until(lambda: is_sent(store), 10)
        wait_until(lambda: alerts(store) == {}, 5)
        assert same_bytes(pacs, made)


@pytest.mark.parametrize("status", [0xA700, 0xD001])
def test_a_full_destination_gets_it_later_and_is_not_flooded(
    store: Store, start: Callable[..., Outbox], status: int
) -> None:
    made = fill(store, 6)
    with scripted() as pacs:
        pacs.status = status
        start(pacs.port)
        wait_until(lambda: alerts(store) == {"waits:pacs": "destination_fails"}, 10)
        seen, begun = len(pacs.arrived), time.monotonic()
        time.sleep(0.5)
        assert len(pacs.arrived) - seen <= most_tries(time.monotonic() - begun)  # not all twelve
        assert all_states(store) <= {"queued", "sending"}
        pacs.status = 0
        wait_until(lambda: is_sent(store), 10)
        assert alerts(store) == {}
        assert has_all(pacs, made)
        assert same_bytes(pacs, made)


def test_one_object_that_fails_for_now_does_not_hold_up_the_others(
    store: Store, start: Callable[..., Outbox]
) -> None:
    made = fill(store, 5)
    bad = min(made)
    with scripted() as pacs:
        pacs.status = lambda uid: 0x0110 if uid == bad else 0
        start(pacs.port)
        wait_until(lambda: len(set(pacs.uids)) == len(made), 10)
        wait_until(lambda: pacs.uids.count(bad) > 2, 10)
        assert sum(state == "sent" for state, _, _ in outbox_rows(store)) == len(made) - 1


def test_one_object_that_is_refused_again_and_again_is_told_until_it_is_there(
    store: Store, start: Callable[..., Outbox]
) -> None:
    """Others go out meanwhile, so the destination itself counts as well."""
    bad = min(fill(store, 1, kinds=("sr",)))
    with scripted() as pacs:
        pacs.status = lambda uid: 0x0110 if uid == bad else 0
        start(pacs.port)
        told: dict[str, str] = {}
        ends = time.monotonic() + 20
        while "stuck:pacs" not in told and time.monotonic() < ends:
            fill(store, 1, kinds=("sr",))
            time.sleep(0.2)
            told = alerts(store)
        assert told.get("stuck:pacs") == "result_stuck"
        assert outbox_rows(store)[0][1] >= len(WAITS)
        pacs.status = 0
        wait_until(lambda: is_sent(store), 10)
        wait_until(lambda: alerts(store) == {}, 5)


def test_a_silent_destination_says_nothing_of_an_object(
    store: Store, start: Callable[..., Outbox]
) -> None:
    fill(store, 1, kinds=("sr",))
    start(free_port())
    wait_until(lambda: outbox_rows(store)[0][1] > len(WAITS) + 1, 20)
    assert alerts(store) == {"waits:pacs": "destination_silent"}


def test_a_destination_that_ends_the_association_over_one_object_gets_the_others(
    store: Store, start: Callable[..., Outbox]
) -> None:
    made = fill(store, 4)
    bad = min(made)
    associations: list[Any] = []

    def die(uid: str) -> int:
        if uid == bad:
            associations[-1].abort()
        return 0

    found = Scripted(status=die)
    with scripted(
        into=found, handlers=[(evt.EVT_ACCEPTED, lambda event: associations.append(event.assoc))]
    ) as pacs:
        start(pacs.port)
        wait_until(lambda: set(made) == set(pacs.uids), 10)
        wait_until(
            lambda: sum(state == "sent" for state, _, _ in outbox_rows(store)) == len(made) - 1, 10
        )
        assert "sending" in all_states(store)  # its end is uncertain, after a restart too


def test_a_silent_destination_is_tried_at_each_wait_told_and_gets_all_when_back(
    store: Store, start: Callable[..., Outbox]
) -> None:
    made, port = fill(store, 10), free_port()
    start(port)
    wait_until(lambda: alerts(store) == {"waits:pacs": "destination_silent"}, 10)
    tries, begun = sum(count for _, count, _ in outbox_rows(store)), time.monotonic()
    time.sleep(0.8)
    more = sum(count for _, count, _ in outbox_rows(store)) - tries
    assert more <= most_tries(time.monotonic() - begun)
    detail = store.ledger.row("SELECT detail FROM alert")
    assert detail is not None
    assert '"since": "20' in detail["detail"]
    with scripted(port=port) as pacs:
        wait_until(lambda: is_sent(store), 10)
        assert alerts(store) == {}
        assert has_all(pacs, made)
        assert same_bytes(pacs, made)


def test_one_that_does_not_know_the_cart_is_told_at_once_and_nothing_is_parked(
    store: Store, start: Callable[..., Outbox]
) -> None:
    fill(store)
    with scripted(title="OTHER", require_called=True) as pacs:
        start(pacs.port)
        wait_until(lambda: "rejects cart:pacs" in alerts(store), 10)
        assert all_states(store) <= {"queued", "sending"}
        port = pacs.port
        time.sleep(4 * max(WAITS))
        assert alerts(store) == {"rejects cart:pacs": "destination_rejects"}, "it does answer"
    with scripted(port=port):
        wait_until(lambda: is_sent(store), 10)
    assert alerts(store) == {}


def test_a_class_that_is_not_accepted_is_parked_and_the_other_goes_out(
    store: Store, start: Callable[..., Outbox]
) -> None:
    fill(store, 2)
    with scripted(classes=[CAPTURE], finds=False) as pacs:
        start(pacs.port)
        wait_until(lambda: all_states(store) == {"sent", "parked"}, 10)
        assert len(pacs.arrived) == 2
    assert {text for state, _, text in outbox_rows(store) if state == "parked"} == {
        "presentation context not accepted"
    }


def test_one_that_takes_implicit_vr_alone_gets_the_same_values(
    store: Store, start: Callable[..., Outbox]
) -> None:
    made = fill(store)
    with scripted(syntaxes=[IMPLICIT]) as pacs:
        start(pacs.port)
        wait_until(lambda: is_sent(store), 10)
    for uid, data in pacs.arrived:
        there = dcmread(io.BytesIO(data), force=True)
        built = dcmread(io.BytesIO(made[uid]))
        assert len(there) == len(built)
        assert there == built


@pytest.mark.parametrize("change", ["gone", "other bytes"])
def test_a_file_that_is_not_what_was_built_never_leaves(
    store: Store, start: Callable[..., Outbox], change: str
) -> None:
    made = fill(store)
    (row,) = store.ledger.rows("SELECT path FROM object WHERE sop_uid = ?", min(made))
    path = store.spool.folder / row["path"]
    path.unlink() if change == "gone" else path.write_bytes(path.read_bytes() + b"\0\0")
    with scripted() as pacs:
        start(pacs.port)
        wait_until(lambda: all_states(store) == {"sent", "parked"}, 10)
        assert pacs.uids == [max(made)]
        assert alerts(store) == {"file:pacs": "file_damaged"}
        (told,) = store.ledger.rows("SELECT detail FROM alert")
        assert json.loads(told["detail"])["images"] == "1"
        assert any(str(text).startswith("file: ") for _, _, text in outbox_rows(store))
        path.write_bytes(made[min(made)])
        Deliveries(store.ledger, store.spool).resend()
        wait_until(lambda: is_sent(store) and not alerts(store), 10)


FAULTS = [
    Fault("cut", 20),
    Fault("reset", 200_000),
    Fault("cut", 300, to_server=False),
    Fault("half-close", 300, to_server=False),
]
MORE_FAULTS = [
    Fault("stall", 200_000),
    Fault("cut", 0),
    Fault("cut", 3000),
    Fault("cut", 200_000),
    Fault("reset", 20),
    Fault("stall", 0),
    Fault("half-close", 3000),
    Fault("delay", 0, seconds=0.002),
    Fault("cut", 0, to_server=False),
    Fault("reset", 300, to_server=False),
    Fault("stall", 0, to_server=False),
    Fault("stall", 300, to_server=False),
    Fault("delay", 0, seconds=0.1, to_server=False),
]


@pytest.mark.parametrize(
    "fault",
    [*FAULTS, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_FAULTS)],
    ids=lambda one: f"{one.kind}-{one.after}-{'out' if one.to_server else 'in'}",
)
def test_after_any_network_fault_the_same_bytes_arrive(
    store: Store, start: Callable[..., Outbox], fault: Fault
) -> None:
    made = fill(store, 2, side=400)
    with scripted() as pacs, TcpProxy(pacs.port) as proxy:
        proxy.fault = fault
        start(proxy.port)
        wait_until(lambda: proxy.connections >= 2 or is_sent(store), 15)
        proxy.fault = None
        wait_until(lambda: is_sent(store), 15)
        assert has_all(pacs, made)
        assert same_bytes(pacs, made)
        assert alerts(store) == {}


@pytest.mark.parametrize("finds", [True, False])
def test_an_uncertain_end_asks_by_c_find_where_that_is_offered(
    store: Store, start: Callable[..., Outbox], finds: bool
) -> None:
    made = fill(store, kinds=["sr"])
    (uid,) = made
    with scripted(finds=finds) as pacs, TcpProxy(pacs.port) as proxy:
        proxy.fault = Fault("stall", 256, to_server=False)  # the association passes, no answer
        start(proxy.port, find=finds)
        wait_until(lambda: "uncertain" in store.events(), 10)
        assert pacs.uids == [uid]
        assert all_states(store) == {"sending"}
        pacs.has = {uid}
        proxy.fault = None
        wait_until(lambda: is_sent(store), 10)
        assert pacs.uids == [uid] * (1 if finds else 2)
        assert same_bytes(pacs, made)
        if finds:
            assert outbox_rows(store)[0][2] == "found there by C-FIND"
            assert set(pacs.asked) == {uid}


@pytest.mark.parametrize("answer", ["not there", "fails"])
def test_what_c_find_does_not_find_is_sent_again(
    store: Store, start: Callable[..., Outbox], answer: str
) -> None:
    made = fill(store, kinds=["sr"])
    (delivery,) = Deliveries(store.ledger, store.spool).due("pacs")
    Deliveries(store.ledger, store.spool).begin(delivery)  # and the process is killed here
    with scripted() as pacs:
        pacs.has = set() if answer == "not there" else None
        start(pacs.port, find=True)
        wait_until(lambda: is_sent(store), 10)
        assert pacs.asked == list(made)
        assert pacs.uids == list(made)


def test_it_stops_in_time_whatever_the_destination_does(store: Store) -> None:
    fill(store, 3, side=1500)  # more than the buffers of a connection hold
    with scripted() as pacs, TcpProxy(pacs.port) as proxy:
        proxy.fault = Fault("stall", 100_000)
        goal = Destination("pacs", "PACS", "127.0.0.1", proxy.port)
        outbox = Outbox(config_for(store, goal), store.ledger, store.spool)  # long timeouts
        outbox.start()
        wait_until(lambda: "sending" in all_states(store), 10)
        time.sleep(0.5)
        begun = time.monotonic()
        outbox.stop()
        assert time.monotonic() - begun < STOP_SECONDS + 0.5
        wait_until(lambda: not any("send to" in one.name for one in threading.enumerate()), 5)
        assert "sending" in all_states(store)


def test_two_processes_never_send_at_once(store: Store, start: Callable[..., Outbox]) -> None:
    made = fill(store, 10)

    def slowly(_uid: str) -> int:
        time.sleep(0.02)
        return 0

    found = Scripted(status=slowly)
    with scripted(into=found) as pacs:
        start(pacs.port)
        start(pacs.port)  # as another process: flock tells open files apart, not processes
        wait_until(lambda: is_sent(store), 10)
        assert len(pacs.uids) == len(made)
        assert pacs.most_at_once == 1


def test_drain_does_not_wait_and_counts_what_is_left(store: Store) -> None:
    fill(store, 3)
    port = free_port()
    assert make(store, port).drain(1.0) == 6
    with scripted(port=port) as pacs:
        rows = Deliveries(store.ledger, store.spool).due("pacs")
        for row in rows:
            Deliveries(store.ledger, store.spool).defer(row, "earlier")
        assert make(store, port).drain(5.0) == 0
        assert len(pacs.arrived) == 6


def test_drain_of_a_stopped_cart_sends_what_waits_after_failures(store: Store) -> None:
    fill(store)
    with store.ledger.transaction() as now:
        now.execute("UPDATE outbox SET tries = 5, next_try = ?", (time.time() + 600,))
    with scripted() as pacs:
        assert make(store, pacs.port).drain(10.0) == 0


def test_drain_asks_the_process_that_sends(store: Store, start: Callable[..., Outbox]) -> None:
    fill(store)
    port = free_port()
    goal = Destination("pacs", "PACS", "127.0.0.1", port)
    config = config_for(store, goal)
    working = Outbox(config, store.ledger, store.spool, timeouts=SHORT, waits=(3600.0,))
    working.start()
    try:
        wait_until(
            lambda: "queued" in all_states(store) and sum(n for _, n, _ in outbox_rows(store))
        )
        with scripted(port=port):
            assert make(store, port).drain(5.0) == 0
    finally:
        working.stop()


def test_a_certificate_that_is_gone_is_told(store: Store, start: Callable[..., Outbox]) -> None:
    fill(store)
    gone = store.spool.folder / "gone.pem"
    start(free_port(), certificate=gone, key=gone)
    wait_until(lambda: alerts(store) == {"certificate:pacs": "certificate"}, 5)
    (told,) = store.ledger.rows("SELECT detail FROM alert")
    assert "No such file" in json.loads(told["detail"])["why"]


def test_small_packets_are_not_held_back(store: Store) -> None:
    """Each object waits 40 ms for a delayed acknowledgement otherwise."""
    fill(store, kinds=["sr"])
    (delivery,) = Deliveries(store.ledger, store.spool).due("pacs")
    with scripted() as pacs:
        sender = DimseSender(Destination("pacs", "PACS", "127.0.0.1", pacs.port), "CART", SHORT)
        assert sender.send(delivery).kind == "sent"
        connection = sender._line._socket
        assert connection is not None
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.gettimeout() == SHORT.stall
        sender.close()


def test_files_keep_their_hash(store: Store, start: Callable[..., Outbox]) -> None:
    made = fill(store, 3)
    with scripted() as pacs:
        start(pacs.port)
        wait_until(lambda: is_sent(store), 10)
    for row in store.ledger.rows("SELECT path, sha256, sop_uid FROM object"):
        data = (store.spool.folder / row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert data == made[row["sop_uid"]]
