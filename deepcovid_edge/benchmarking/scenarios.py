"""The four ways in which images come, after MLPerf Inference (inference_rules.adoc, "Scenarios").

Each takes the work as `Work` and the time from a `Clock`, so that tests can bring their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from deepcovid_edge.benchmarking.samples import Numbers, Query

SECOND, MILLISECOND = 1_000_000_000, 1_000_000
"""Nanoseconds."""
Item = TypeVar("Item")
Parts = Mapping[str, float]
"""Part of a query -> milliseconds; each image of a batch has the same share."""
_LOOK_SECONDS = 0.2
"""Time between two looks whether a wait is to end."""
_GIVES_UP_AFTER = 2
"""A server that falls behind is stopped after this many times the planned duration."""


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> int:
        """Nanoseconds since a fixed moment; never goes back."""

    def wait_until(self, moment: int, stop: threading.Event) -> None:
        """Return at that moment, soon after `stop` is set, or at once where it has passed."""


class HostClock:
    """The host's monotonic clock (CLOCK_MONOTONIC on Linux)."""

    def now(self) -> int:
        """See `Clock.now`."""
        return time.perf_counter_ns()

    def wait_until(self, moment: int, stop: threading.Event) -> None:
        """See `Clock.wait_until`; the system wakes a sleeper about 0.1 ms late."""
        while (left := moment - time.perf_counter_ns()) > 0 and not stop.is_set():
            time.sleep(min(left / SECOND, _LOOK_SECONDS))


class Work(Protocol):
    """What is done for a query."""

    @property
    def images(self) -> int:
        """How many images there are; they come in turn, again and again."""

    def payload(self, first: int, size: int) -> Any:
        """What `run` needs for `size` images from number `first` on, made before the clock runs."""

    def run(self, payload: Any) -> Sequence[Parts]:
        """Answer a query and return when its last result is there: the parts of each image."""

    def offline(self, batches: Iterator[tuple[int, int]], done: Done) -> None:
        """Answer batches (first image, images) as fast as possible; call `done` for each result."""


Done = Callable[[int | None, int, int, Sequence[Parts]], None]
"""Called when a result is there, from any thread: start of the work (None for now), index of the
first image, number of images, parts of each."""


@dataclass(frozen=True)
class Until:
    """When a run has lasted long enough: both must be reached.

    Attributes:
        seconds: Shortest duration of the run.
        queries: Fewest queries that are answered.
    """

    seconds: float
    queries: int

    def reached(self, elapsed: int, answered: int) -> bool:
        """Whether the elapsed nanoseconds and the answered queries are enough."""
        return elapsed >= self.seconds * SECOND and answered >= self.queries


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario.

    Attributes:
        queries: As they were answered.
        zero: The moment at which the run began.
        parts: Part -> milliseconds of each image, in the order of the answers.
        unserved: Images of `server` that arrived and got no answer.
    """

    queries: list[Query]
    zero: int
    parts: dict[str, list[float]]
    unserved: int = 0


def one_after_another(work: Work, size: int, until: Until, clock: Clock) -> Outcome:
    """Single-stream and multi-stream: `size` images come when the last ones have their results."""
    log = _Log()
    zero = clock.now()
    number = 0
    while not until.reached(clock.now() - zero, number):
        first = number * size % work.images
        payload = work.payload(first, size)
        started = clock.now()
        parts = work.run(payload)
        log.add(Query(started, started, clock.now(), first, size), parts)
        number += 1
    return log.outcome(zero)


def offline(work: Work, size: int, until: Until, clock: Clock) -> Outcome:
    """All images are there from the start; the work takes them as fast as it can."""
    log = _Log()
    zero = clock.now()

    def batches() -> Iterator[tuple[int, int]]:
        number = 0
        while not until.reached(clock.now() - zero, len(log.queries)):
            yield number * size % work.images, size
            number += 1

    def done(started: int | None, image: int, images: int, parts: Sequence[Parts]) -> None:
        now = clock.now()
        began = now if started is None else started
        log.add(Query(began, began, now, image, images), parts)

    work.offline(batches(), done)
    return log.outcome(zero)


def server(work: Work, arrivals: Numbers, deadline: int, lanes: int, clock: Clock) -> Outcome:
    """Images arrive one by one at moments that do not wait for results.

    Lanes take them in the order of arrival. Latency counts from the arrival, so it includes the
    time that an image waits.

    Args:
        work: What is done for an image.
        arrivals: Moments after the beginning, nanoseconds, ascending, of shape (N,).
        deadline: Time from an image's arrival to its result, at most, nanoseconds.
        lanes: How many images are processed at once.
        clock: Waits for the arrivals.
    """
    log = _Log()
    zero = clock.now()
    last = zero + _GIVES_UP_AFTER * int(arrivals[-1]) + deadline

    def serve(number: int, stop: threading.Event) -> None:
        first = number % work.images
        payload = work.payload(first, 1)
        arrived = zero + int(arrivals[number])
        clock.wait_until(arrived, stop)
        started = clock.now()
        if started <= last and not stop.is_set():
            parts = work.run(payload)
            log.add(Query(arrived, started, clock.now(), first, 1), parts)

    in_threads(serve, range(len(arrivals)), lanes)
    return log.outcome(zero, unserved=len(arrivals) - len(log.queries))


def poisson_arrivals(rate: float, until: Until, seed: int) -> Numbers:
    """Moments of a Poisson process: the gaps are exponential with mean 1 / rate.

    Args:
        rate: Images a second.
        until: Enough images for this many seconds, and for the queries.
        seed: Seed of the gaps.

    Returns:
        Nanoseconds, ascending, of shape (N,), int64.
    """
    count = max(until.queries, int(np.ceil(rate * until.seconds)))
    gaps = np.random.default_rng(seed).exponential(SECOND / rate, count)
    return np.cumsum(gaps).astype(np.int64)


def in_threads(
    work: Callable[[Item, threading.Event], None], items: Iterable[Item], count: int
) -> None:
    """Do the work of each item in several threads at once; a single one is this thread.

    Args:
        work: Called with an item, and with an event that is set after an error in any thread,
            or Ctrl-C. No item is begun after it.
        items: Each is taken by one thread, in their order.
        count: Number of threads.
    """
    stop = threading.Event()
    shared = _Shared(iter(items))

    def lane() -> None:
        for item in shared:
            if stop.is_set():
                return
            work(item, stop)

    if count == 1:
        lane()
        return
    with ThreadPoolExecutor(count, thread_name_prefix="bench") as pool:
        try:
            for future in as_completed([pool.submit(lane) for _ in range(count)]):
                future.result()
        finally:
            stop.set()


class _Log:
    """Queries as they end, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.queries: list[Query] = []
        self.parts: dict[str, list[float]] = {}

    def add(self, query: Query, parts: Sequence[Parts]) -> None:
        with self._lock:
            self.queries.append(query)
            for image in parts:
                for name, value in image.items():
                    self.parts.setdefault(name, []).append(value)

    def outcome(self, zero: int, *, unserved: int = 0) -> Outcome:
        return Outcome(self.queries, zero, self.parts, unserved)


class _Shared(Iterator[Item]):
    """An iterator that several threads may draw from."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items, self._lock = items, threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)
