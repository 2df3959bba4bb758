"""Programs that are compared in one run, each in a process of its own.

None has another's threads, caches or settings of the allocator: each runs as a user runs it. A
program is loaded once and then run in turn with the others, see `measure.in_turn`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import UserDict
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measure import RUNS_THROUGH, summary
from deepcovid_edge.device.child_process import ending_with_this

COMMAND = (sys.executable, "-m", "deepcovid_edge")
_PATIENCE = 10.0
RUN_SECONDS = 1800.0
"""Longest run of a program, or its loading: thousands of images on a slow board take minutes."""


class Program:
    """A program in a process of its own, loaded and ready; called, it runs once; to be closed.

    Args:
        make: `module:function` that makes the program, a function of no argument.
        given: What `make` is called with.

    Raises:
        RuntimeError: It could not be made; the error in its process.
    """

    def __init__(self, make: str, *given: Any, **named: Any) -> None:
        processes = get_context("spawn")
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(
            target=_serve, args=(os.getpid(), theirs, make, given, named)
        )
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __call__(self) -> None:
        """Run once, and wait for the end of it."""
        self._connection.send(None)
        self._answer()

    def _answer(self) -> None:
        if not self._connection.poll(RUN_SECONDS):
            self._process.kill()
            raise RuntimeError(f"no end after {RUN_SECONDS:g} s")
        try:
            failure = self._connection.recv()
        except EOFError:
            self._process.join(_PATIENCE)
            failure = f"its process ended with {self._process.exitcode}"
        if failure:
            raise RuntimeError(failure)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_PATIENCE)


class Programs(UserDict[str, Program]):
    """Sides of a comparison, each a program; a context that ends them all."""

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.values():
            program.close()

    def add(self, name: str, make: str, *given: Any, **named: Any) -> None:
        """Load a program, see `Program`."""
        self[name] = Program(make, *given, **named)

    def add_infer(self, folder: Path, model: Path) -> None:
        """The command as a user types it, and the same on the model's FP32 file."""
        command = ("benchmarks.peers.infer_command:make", folder, model)
        self.add("infer", *command)
        self.add("infer_fp32", *command, "--backend", "onnxruntime")


def run_child(
    command: Sequence[str], *, seconds: float, captured: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends with this process, whatever its exit code.

    Args:
        command: Path of the program, and its arguments.
        seconds: Longest time.
        captured: Keep its output and its errors; else they are shown.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    return subprocess.run(
        ending_with_this(command), capture_output=captured, text=True, check=False, timeout=seconds
    )


def links(images: Sequence[Path], count: int, place: Path) -> Path:
    """A new folder in a place, with links to the images, repeated where they are too few."""
    folder = place / str(count)
    folder.mkdir()
    for number, image in enumerate(islice(cycle(images), count)):
        (folder / f"{number:05d}{image.suffix}").symlink_to(image)
    return folder


def run_repeatedly(arguments: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of `deepcovid-edge` with these arguments."""
    samples = [run_command(arguments) for _ in range(rounds)]
    seconds, peaks = zip(*samples, strict=True)
    return {"seconds": summary(seconds), "peak_mib": summary(peaks)}


def run_command(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of one process of `deepcovid-edge`."""
    started = time.perf_counter()
    command = [*COMMAND, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watchdog = threading.Timer(RUN_SECONDS, child.kill)
    watchdog.start()
    _, status, usage = os.wait4(child.pid, 0)
    watchdog.cancel()
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in RUNS_THROUGH:
        raise SystemExit(f"{arguments} exited with {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


def _serve(
    parent: int, connection: Connection, make: str, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    program: Callable[[], object] | None = None
    while True:
        failure = None
        try:
            if program is None:
                module, function = make.split(":")
                program = getattr(import_module(module), function)(*given, **named)
            else:
                program()
        except Exception as error:
            failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        try:
            connection.send(failure)
            connection.recv()
        except (EOFError, OSError):  # nobody asks any more
            return
