"""The runner's own logic on a fake device that knows when it is misused.

The fake keeps the rules of the real one: work happens at `wait`, not before; nothing is used while
the device is not active, nothing after it was freed; a capture records and does not run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.backends.tensorrt import runner as module
from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.backends.tensorrt.runner import EngineRunner
from deepcovid_edge.errors import UsageError

IMAGE = (4, 6)


class Memory:
    def __init__(self, size: int) -> None:
        self.data = np.full(size, 0xAA, np.uint8)
        self.freed = False

    def __int__(self) -> int:
        return id(self)


class Stream:
    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.freed = False

    def put(self, work: Callable[[], None]) -> None:
        assert not self.freed
        (self.queue if self.recording is None else self.recording).append(work)


class Event:
    def __init__(self) -> None:
        self.time: float | None = None
        self.freed = False


class FakeGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work, self.destroyed, self.launches = work, False, 0

    def launch(self, stream: Stream) -> None:
        assert not self.destroyed
        self.launches += 1
        stream.queue.extend(self.work)

    def destroy(self) -> None:
        self.destroyed = True


class FakeDevice:
    def __init__(self, *, graphs: bool = True) -> None:
        self.local = threading.local()
        self.graphs_work = graphs
        self.memory: dict[int, Memory] = {}
        self.streams: list[Stream] = []
        self.pinned_arrays: list[np.ndarray] = []
        self.graphs: list[FakeGraph] = []
        self.captures = 0
        self.freed_pinned = 0
        self.events: list[Event] = []
        self.time = 0.0

    @contextmanager
    def active(self) -> Iterator[None]:
        self.local.depth = getattr(self.local, "depth", 0) + 1
        try:
            yield
        finally:
            self.local.depth -= 1

    def check(self) -> None:
        assert getattr(self.local, "depth", 0) > 0, "the device is not active on this thread"

    def stream(self) -> Stream:
        self.check()
        self.streams.append(Stream())
        return self.streams[-1]

    def pinned(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        self.check()
        self.pinned_arrays.append(np.full(shape, 99, dtype))
        return self.pinned_arrays[-1]

    def allocate(self, size: int) -> Memory:
        self.check()
        memory = Memory(size)
        self.memory[int(memory)] = memory
        return memory

    def copy_in(self, memory: Memory, host: np.ndarray, stream: Stream) -> None:
        self.check()
        assert any(np.shares_memory(host, pinned) for pinned in self.pinned_arrays)

        def work() -> None:
            assert not memory.freed
            self.time += 0.5
            memory.data[: host.nbytes] = host.reshape(-1).view(np.uint8)

        stream.put(work)

    def copy_out(self, host: np.ndarray, memory: Memory, stream: Stream) -> None:
        self.check()

        def work() -> None:
            assert not memory.freed
            self.time += 0.25
            host.reshape(-1).view(np.uint8)[:] = memory.data[: host.nbytes]

        stream.put(work)

    def wait(self, stream: Stream) -> None:
        self.check()
        while stream.queue:
            stream.queue.pop(0)()

    def event(self) -> Event:
        self.check()
        self.events.append(Event())
        return self.events[-1]

    def mark(self, event: Event, stream: Stream) -> None:
        self.check()

        def work() -> None:
            assert not event.freed
            event.time = self.time

        stream.put(work)

    def milliseconds(self, start: Event, end: Event) -> float:
        self.check()
        assert start.time is not None, "read before the stream passed it"
        assert end.time is not None, "read before the stream passed it"
        return end.time - start.time

    def capture(self, stream: Stream, work: Callable[[], None]) -> FakeGraph | None:
        self.check()
        assert not stream.queue, "captured while work was under way"
        self.captures += 1
        if not self.graphs_work:
            return None
        stream.recording = []
        work()
        self.graphs.append(FakeGraph(stream.recording))
        stream.recording = None
        return self.graphs[-1]

    def free(self, memory: Any) -> None:
        self.check()
        if isinstance(memory, np.ndarray):
            self.freed_pinned += 1
        else:
            assert not memory.freed, "freed twice"
            memory.freed = True


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.size, self.destroyed = engine, 0, False
        self.bound: dict[str, int] = {}

    def set_batch(self, size: int) -> None:
        low, high = self.engine.allowed
        assert low <= size <= high, f"batch {size} outside the profile"
        self.size = size

    def bind(self, name: str, address: int) -> None:
        self.bound[name] = address

    def enqueue(self, stream: Stream) -> None:
        device, size = self.engine.device, self.size
        device.check()

        def work() -> None:
            assert not self.destroyed
            device.time += 4.0
            images = device.memory[self.bound["images"]].data[: size * IMAGE[0] * IMAGE[1]]
            means = images.reshape(size, -1).mean(axis=1)
            logits = np.stack([-means, means], axis=1).astype(np.float32)
            target = device.memory[self.bound["logits"]].data
            target[: logits.nbytes] = logits.reshape(-1).view(np.uint8)
            self.engine.sizes.append(size)

        stream.put(work)

    def destroy(self) -> None:
        assert not self.engine.destroyed, "the engine went before its context"
        self.destroyed = True


class FakeEngine:
    def __init__(self, device: FakeDevice, profile: Profile) -> None:
        self.device = device
        self.allowed = (profile.min, profile.max)
        self.outputs = {"logits": (2,)}
        self.contexts: list[FakeContext] = []
        self.sizes: list[int] = []
        self.destroyed = False

    def context(self) -> FakeContext:
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def destroy(self) -> None:
        self.destroyed = True


def runner_of(
    profile: Profile, *, graphs: bool = True, wanted: bool = True
) -> tuple[EngineRunner, FakeDevice, FakeEngine]:
    device = FakeDevice(graphs=graphs)
    engine = FakeEngine(device, profile)
    return EngineRunner(device, engine, profile, IMAGE, graphs=wanted), device, engine


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *IMAGE), dtype=np.uint8)


def expected(batch: np.ndarray) -> np.ndarray:
    means = batch.reshape(len(batch), -1).mean(axis=1)
    return np.stack([-means, means], axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17, 50])
def test_any_number_of_images_is_cut_into_batches_of_the_profile(count: int) -> None:
    runner, _, engine = runner_of(Profile(1, 4, 8))
    batch = images(count)
    np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert max(engine.sizes) <= 8
    assert sum(engine.sizes) == count


def test_a_batch_below_the_profile_is_filled_up_and_cut_again() -> None:
    runner, _, engine = runner_of(Profile(4, 4, 8))
    for count in (1, 3, 10):
        batch = images(count, seed=count)
        np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert min(engine.sizes) == 4


def test_results_belong_to_the_caller() -> None:
    runner, _, _ = runner_of(Profile(1, 4, 4))
    first = runner.infer(images(2, seed=1))["logits"]
    kept = first.copy()
    runner.infer(images(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_a_graph_is_captured_when_a_size_comes_again_and_gives_the_same() -> None:
    runner, device, _ = runner_of(Profile(1, 4, 4))
    for seed in range(5):
        batch = images(3, seed=seed)
        np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert device.captures == 1
    assert device.graphs[0].launches == 4


def test_each_batch_size_has_its_own_graph_up_to_a_limit() -> None:
    runner, device, _ = runner_of(Profile(1, 8, 8))
    for _ in range(3):
        for count in range(1, 9):
            batch = images(count, seed=count)
            np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert device.captures == 4


@pytest.mark.parametrize(("graphs", "wanted", "captures"), [(False, True, 1), (True, False, 0)])
def test_without_graphs_the_plain_way_goes_on(graphs: bool, wanted: bool, captures: int) -> None:
    runner, device, _ = runner_of(Profile(1, 4, 4), graphs=graphs, wanted=wanted)
    for seed in range(4):
        batch = images(4, seed=seed)
        np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert device.captures == captures


def test_warm_up_captures_what_will_come() -> None:
    runner, device, _ = runner_of(Profile(1, 4, 8))
    runner.warm_up((1, 8))
    assert len(device.graphs) == 2


def test_calls_at_once_have_a_context_stream_and_buffers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, device, engine = runner_of(Profile(1, 4, 8))
    barrier, wait = threading.Barrier(3), device.wait
    met: set[Stream] = set()

    def wait_for_others(stream: Stream) -> None:
        if stream not in met:  # no call ends before all three have begun
            met.add(stream)
            barrier.wait(20)
        wait(stream)

    monkeypatch.setattr(device, "wait", wait_for_others)

    def work(seed: int) -> bool:
        for step in range(20):
            batch = images(1 + (seed + step) % 9, seed=seed * 100 + step)
            if not np.array_equal(runner.infer(batch)["logits"], expected(batch)):
                return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))
    assert len(engine.contexts) == len(device.streams) == 3


def test_threads_that_come_one_after_another_share_what_is_there() -> None:
    runner, device, engine = runner_of(Profile(1, 4, 8))
    runner.warm_up((4,))
    for seed in range(5):
        with ThreadPoolExecutor(1) as pool:
            batch = images(4, seed)
            found = pool.submit(runner.infer, batch).result()["logits"]
            np.testing.assert_array_equal(found, expected(batch))
    runner.infer_in_parts(images(4))
    assert len(engine.contexts) == len(device.streams) == 1
    assert device.captures == 1, "the graph of the warm-up serves every thread"


def test_a_call_that_fails_gives_back_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, device, engine = runner_of(Profile(1, 4, 8), wanted=False)
    runner.infer(images(2))
    with monkeypatch.context() as patched:
        patched.setattr(device, "wait", lambda stream: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.infer(images(3, seed=1))
    batch = images(4, seed=2)
    np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))
    assert len(engine.contexts) == 1
    runner.close()
    assert engine.contexts[0].destroyed


def held(device: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Calls say when they run, and end when they may."""
    runs, may_end, wait = threading.Event(), threading.Event(), device.wait

    def wait_long(stream: Stream) -> None:
        runs.set()
        assert may_end.wait(20)
        wait(stream)

    monkeypatch.setattr(device, "wait", wait_long)
    return runs, may_end


def test_close_waits_for_the_calls_that_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, device, engine = runner_of(Profile(1, 4, 8))
    runs, may_end = held(device, monkeypatch)
    batch = images(2)
    with ThreadPoolExecutor(2) as pool:
        found = pool.submit(runner.infer, batch)
        assert runs.wait(20)
        closed = pool.submit(runner.close)
        time.sleep(0.1)
        assert not closed.done()
        assert not engine.destroyed
        may_end.set()
        np.testing.assert_array_equal(found.result(20)["logits"], expected(batch))
        closed.result(20)
    assert engine.destroyed


def test_close_does_not_wait_for_a_call_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, device, engine = runner_of(Profile(1, 4, 8))
    runs, may_end = held(device, monkeypatch)
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(runner.infer, images(2))
        assert runs.wait(20)
        runner.close()
        assert not engine.destroyed  # the call still uses it
        may_end.set()


def test_close_frees_everything_once_and_in_order() -> None:
    runner, device, engine = runner_of(Profile(1, 4, 4))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: runner.infer(images(4, seed)), range(8)))
    runner.close()
    runner.close()
    assert engine.destroyed
    assert all(context.destroyed for context in engine.contexts)
    assert all(memory.freed for memory in device.memory.values())
    assert all(stream.freed for stream in device.streams)
    assert all(graph.destroyed for graph in device.graphs)
    assert device.freed_pinned == len(device.pinned_arrays)


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (8, 1), (17, 3)])
def test_parts_of_a_call_are_timed_by_events_on_its_stream(count: int, calls: int) -> None:
    runner, device, _ = runner_of(Profile(1, 4, 8))
    parts = runner.infer_in_parts(images(count))
    assert parts == {
        "host_to_device": 0.5 * calls,
        "compute": 4.0 * calls,
        "device_to_host": 0.25 * calls,
    }
    assert device.captures == 0
    assert all(event.freed for event in device.events)


def test_timing_parts_changes_no_result() -> None:
    runner, _, _ = runner_of(Profile(2, 4, 8))
    batch = images(3)
    for _ in range(3):
        runner.infer_in_parts(images(5, seed=1))
        np.testing.assert_array_equal(runner.infer(batch)["logits"], expected(batch))


def test_infer_after_close_is_an_error_on_every_thread() -> None:
    runner, _, _ = runner_of(Profile(1, 4, 4))
    runner.infer(images(1))
    runner.close()
    with pytest.raises(UsageError, match="the model is closed"):
        runner.infer(images(1))
    with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match="the model is closed"):
        pool.submit(runner.infer, images(1)).result()
