"""A stop ends `infer` also while the reader of its records has stopped, and one more is no harm."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from cart_peers import wait_until
from drawn_once import phantom_files

from deepcovid_edge.cli.classify import _drain

COMMAND = [sys.executable, "-m", "deepcovid_edge", "infer"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More images than a small pipe holds lines."""
    folder = tmp_path_factory.mktemp("images")
    phantom_files(folder, count=1)
    (image,) = folder.iterdir()
    for number in range(100):
        (folder / f"{number:03d}.png").symlink_to(image)
    return folder


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A small pipe, and the end where it is read, which takes nothing."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    yield tmp_path / "pipe", reader
    os.close(reader)


def held(reader: int) -> int:
    """How many bytes wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0])


def wait_until_full(reader: int) -> None:
    """Wait until a pipe has something and gets nothing more for a while."""
    wait_until(lambda: held(reader) > 0, what="a record in the pipe")
    before = 0
    while held(reader) > before:
        before = held(reader)
        time.sleep(0.7)


@pytest.mark.parametrize(
    ("kind", "is_stdout", "shape"),
    [
        (signal.SIGINT, False, "--json"),
        (signal.SIGTERM, False, "--table"),
        (signal.SIGINT, True, "--table"),
        (signal.SIGTERM, True, "--csv"),
    ],
)
def test_a_stop_waits_for_no_reader_that_has_stopped(
    images: Path, pipe: tuple[Path, int], kind: signal.Signals, is_stdout: bool, shape: str
) -> None:
    path, reader = pipe
    output = [] if is_stdout else ["-o", str(path)]
    # A shell's background job ignores SIGINT, and hands that on to what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with path.open("w") as stream:
            process = subprocess.Popen(
                [*COMMAND, str(images), shape, *output],
                stdout=stream if is_stdout else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            wait_until_full(reader)
            process.send_signal(kind)
            _, messages = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    assert messages.endswith("Stopped.\n")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_a_second_stop_does_not_end_the_wait_for_the_threads(
    first: signal.Signals, second: signal.Signals
) -> None:
    """ONNX Runtime aborts a process that ends while its threads are at work."""
    waited = []

    def records() -> Iterator[list[object]]:
        try:
            signal.raise_signal(first)
            yield []
        finally:  # as the pipeline waits
            signal.raise_signal(second)
            waited.append(True)

    run = MagicMock(records=records, count=lambda: 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            _drain(run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert waited == [True]
    run.close.assert_called_once()
