"""Tells open pages that something has changed: server-sent events (HTML, 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Hashable

from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.errors import OutputError

LOOK_SECONDS = 0.4
_LIGHTS_EACH = 5
"""Looks between two of the lights: an assessor that has ended changes nothing in the ledger."""
_BEAT_SECONDS = 15.0
MOST_LISTENERS = 32


class Changes:
    """Looks whether the ledger has changed, and wakes whoever listens.

    Args:
        ledger: The ledger, read-only.
        lights: How the cart does, to be compared.
    """

    def __init__(self, ledger: Ledger, lights: Callable[[], Hashable]) -> None:
        self._ledger, self._lights = ledger, lights
        self._listeners: set[asyncio.Event] = set()
        self._is_over = False
        self._data_version: object = None
        self.state: Hashable = None
        """Of images, alerts and lights; what is shown of them may be kept while it is the same."""

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def watch(self) -> None:
        """Look until the task is cancelled."""
        looks = 0
        while True:
            with contextlib.suppress(OutputError):  # the ledger cannot be read now
                self.look(with_lights=looks % _LIGHTS_EACH == 0)
            looks += 1
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, *, with_lights: bool = True) -> None:
        """Look once.

        `PRAGMA data_version` costs microseconds; events are counted only where it has changed.
        """
        (version,) = self._ledger.rows("PRAGMA data_version")[0]
        if version == self._data_version and not with_lights:
            return
        self._data_version = version
        row = self._ledger.row("SELECT max(id) AS last FROM event")
        state = (row["last"] if row else None, self._lights())
        if state != self.state:
            self.state = state
            for listener in self._listeners:
                listener.set()

    def close(self) -> None:
        """End the streams of all who listen."""
        self._is_over = True
        for listener in self._listeners:
            listener.set()

    async def stream(self) -> AsyncGenerator[str]:
        """Events for one page: `changed` each time, a comment now and then to find it gone."""
        changed = asyncio.Event()
        self._listeners.add(changed)
        try:
            yield "retry: 2000\ndata: hello\n\n"
            while not self._is_over:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), _BEAT_SECONDS)
                yield "data: changed\n\n" if changed.is_set() else ": beat\n\n"
                changed.clear()
        finally:
            self._listeners.discard(changed)
