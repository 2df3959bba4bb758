"""Pipes whose reader has stopped or gone: nobody waits for it."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from deepcovid_edge.device.streams import drop_if_stuck, drop_writes, has_lost_its_reader

MUCH = "x" * (1 << 20)
"""More than a pipe holds (pipe(7))."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, IO[str]]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
        drop_writes(stream)
    with suppress(OSError):  # a test has closed it
        os.close(reader)


def test_a_pipe_that_nobody_reads_any_more_is_known(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    assert not has_lost_its_reader(stream)
    os.close(reader)
    assert has_lost_its_reader(stream)
    assert not has_lost_its_reader(io.StringIO())
    with Path(os.devnull).open("w") as nothing:
        assert not has_lost_its_reader(nothing)


def test_a_write_that_waits_for_a_stopped_reader_ends_at_a_signal(
    pipe: tuple[int, IO[str]],
) -> None:
    _, stream = pipe
    before = signal.signal(signal.SIGALRM, lambda *_: drop_if_stuck(stream))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        stream.write(MUCH)
        stream.flush()
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_slow_reader_gets_everything(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    got: list[int] = []

    def read() -> None:
        while sum(got) < len(MUCH):
            time.sleep(0.01)
            got.append(len(os.read(reader, 1 << 16)))

    reads = threading.Thread(target=read)
    before = signal.signal(signal.SIGALRM, lambda *_: drop_if_stuck(stream))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        reads.start()
        stream.write(MUCH)
        stream.flush()
        reads.join(20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sum(got) == len(MUCH)
