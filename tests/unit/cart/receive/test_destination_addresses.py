"""Where destinations call from: their names are looked up now and then, whatever they answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from cart_peers import wait_until

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.receive import destination_addresses as module
from deepcovid_edge.cart.receive.destination_addresses import DestinationAddresses

PACS = Destination("pacs", "PACS", "pacs.clinic", commitment=True)
OTHER = Destination("other", "OTHER", "192.0.2.9", commitment=True)


class Names:
    """A name server that answers as a test says."""

    def __init__(self) -> None:
        self.address = ""
        self.asked = 0
        self.silent = threading.Event()
        self.silent.set()

    def look_up(self, destination: Destination) -> frozenset[str]:
        if destination is OTHER:
            return frozenset({OTHER.host})
        self.silent.wait(10)
        self.asked += 1
        return frozenset({self.address} if self.address else ())


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()

    def addresses(destination: Destination) -> frozenset[str]:
        return found.look_up(destination)

    monkeypatch.setattr(Destination, "addresses", addresses)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    yield found
    found.silent.set()


@contextmanager
def looking(*destinations: Destination) -> Iterator[tuple[DestinationAddresses, list[Set[str]]]]:
    found: list[Set[str]] = []
    addresses = DestinationAddresses(destinations, found.append)
    addresses.start()
    try:
        yield addresses, found
    finally:
        addresses.stop()


def test_an_address_is_known_at_once(names: Names) -> None:
    with looking(PACS, OTHER) as (addresses, _):
        assert addresses.has("192.0.2.9")
        assert addresses.has("192.0.2.9", "OTHER")
        assert not addresses.has("192.0.2.9", "PACS")
        assert not addresses.has("192.0.2.8")
        assert addresses.titles == {"PACS", "OTHER"}


def test_a_name_that_is_not_known_at_the_start_is_asked_for_again(names: Names) -> None:
    with looking(PACS) as (addresses, found):
        assert not addresses.has("192.0.2.1")
        names.address = "192.0.2.1"
        wait_until(lambda: addresses.has("192.0.2.1", "PACS"))
        asked = names.asked
        wait_until(lambda: names.asked > asked + 2)
        assert found == [{"192.0.2.1"}], "it is new once"


def test_an_address_stays_while_nobody_answers_and_moves_with_the_name(names: Names) -> None:
    names.address = "192.0.2.1"
    with looking(PACS) as (addresses, _):
        names.address = ""
        asked = names.asked
        wait_until(lambda: names.asked > asked + 2)
        assert addresses.has("192.0.2.1")
        names.address = "192.0.2.2"
        wait_until(lambda: addresses.has("192.0.2.2"))
        assert not addresses.has("192.0.2.1")


def test_a_name_server_that_is_silent_delays_the_start_by_a_moment(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.1)
    names.silent.clear()
    began = time.monotonic()
    with looking(PACS) as (addresses, _):
        assert not addresses.has("192.0.2.1")
        assert time.monotonic() - began < 2


def test_without_such_destinations_nothing_is_asked(names: Names) -> None:
    with looking() as (addresses, _):
        assert not addresses.titles
        assert not addresses._thread.is_alive()
