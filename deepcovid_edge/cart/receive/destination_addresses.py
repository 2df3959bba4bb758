"""Where destinations call from that answer about storage commitment on an association of their own.

Their names are looked up now and then: after a power cut the cart may start before the name server,
and a PACS may move to another address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Set

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.receive.guards import plain_address

LOOK_SECONDS = 60.0
_FIRST_SECONDS = 1.0
"""Longest wait for the first look: a name server that is silent delays no image."""


class DestinationAddresses:
    """IP addresses of destinations.

    Args:
        destinations: The destinations.
        found: Receives addresses that were not known before, in a thread of this; raises nothing.
    """

    def __init__(
        self, destinations: Sequence[Destination], found: Callable[[Set[str]], None]
    ) -> None:
        self._destinations, self._found = destinations, found
        self._known: dict[str, Set[str]] = {one.name: frozenset() for one in destinations}
        self._has_looked, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="destination-addresses", daemon=True)

    @property
    def titles(self) -> Set[str]:
        """Their AE titles."""
        return {one.ae_title.strip() for one in self._destinations}

    def start(self) -> None:
        """Begin to look."""
        if self._destinations:
            self._thread.start()
            self._has_looked.wait(_FIRST_SECONDS)

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def has(self, address: str, title: str | None = None) -> bool:
        """Whether an address is one of theirs; where a title is given, of one with that title."""
        return any(
            address in self._known[one.name]
            for one in self._destinations
            if title in (None, one.ae_title.strip())
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            for one in self._destinations:
                self._look(one)
            self._has_looked.set()
            self._stopping.wait(LOOK_SECONDS)

    def _look(self, destination: Destination) -> None:
        """Look a name up; what was known stays while nobody answers."""
        before = self._known[destination.name]
        if now := {plain_address(one) for one in destination.addresses()}:
            self._known[destination.name] = now
            if new := now - before:
                self._found(new)
