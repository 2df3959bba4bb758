"""What is let in: how many images wait, for whom, and how much memory they take.

The queue is short on purpose. A caller that is answered 429 knows at once, and tries again.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from deepcovid_edge.serve.protocol import RequestError
from deepcovid_edge.serve.settings import ServeSettings

_RETRY_SECONDS = 1


class Admission:
    """Counts what is under way.

    Attributes:
        waiting: Images that wait or are assessed.
        memory: Bytes that bodies take in memory.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._most_memory = settings.memory_mib << 20
        self._by_caller: Counter[str] = Counter()
        self._memory_of: Counter[str] = Counter()
        self.waiting = self.memory = 0

    def check(self, caller: str) -> None:
        """Check whether an image of a caller would find a place now, before its body is read.

        Raises:
            RequestError: It would not.
        """
        if self.waiting >= self._settings.waiting:
            raise _busy(f"{self.waiting} images wait")
        if self._by_caller[caller] >= self._settings.waiting_a_caller:
            raise _busy(f"{self._by_caller[caller]} images of this caller wait")

    @contextlib.contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """A place in the queue while the block runs.

        Raises:
            RequestError: There is none.
        """
        self.check(caller)
        self.waiting += 1
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]

    def body(self, caller: str) -> Body:
        """The memory of a caller's body, while a block runs."""
        return Body(self, caller)

    def take(self, caller: str, size: int) -> None:
        """Take memory; see `Body.grow`."""
        own = self._memory_of[caller]
        if self.memory + size > self._most_memory:
            raise _busy(f"{self.memory >> 20} MiB of images are in memory")
        if own + size > self._settings.memory_a_caller:
            raise _busy(f"{own >> 20} MiB of images of this caller are in memory")
        self.memory += size
        self._memory_of[caller] += size

    def give_back(self, caller: str, size: int) -> None:
        """Give memory back that was taken."""
        self.memory -= size
        self._memory_of[caller] -= size
        if not self._memory_of[caller]:
            del self._memory_of[caller]


class Body:
    """The memory that one body takes, until the block ends.

    Attributes:
        size: Bytes.
    """

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission, self._caller, self.size = admission, caller, 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self.shrink(0)

    def grow(self, size: int) -> None:
        """Take memory for a part that has come.

        Raises:
            RequestError: All bodies together, or those of the caller, would take too much.
        """
        self._admission.take(self._caller, size)
        self.size += size

    def shrink(self, size: int) -> None:
        """Give back all beyond a size."""
        self._admission.give_back(self._caller, self.size - size)
        self.size = size


def _busy(why: str) -> RequestError:
    return RequestError(429, f"busy: {why}; try again", retry=_RETRY_SECONDS)
