"""Programs that are compared in one run, each in a process of its own.

None has another's threads, caches or settings of the allocator: each runs as a user runs it. A
program is loaded once and then run in turn with the others, see `measuring.in_turn`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from deepcovid_edge.device.child_process import end_with

_PATIENCE = 10.0
_RUN_SECONDS = 1800.0
"""Longest run of a program, or its loading: thousands of images on a slow board take minutes."""


class Program:
    """A program in a process of its own, loaded and ready; called, it runs once; to be closed.

    Args:
        make: `module:function` that makes the program, a function of no argument.
        given: What `make` is called with.

    Raises:
        RuntimeError: It could not be made; what its process said.
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
        if not self._connection.poll(_RUN_SECONDS):
            self._process.kill()
            raise RuntimeError(f"no end after {_RUN_SECONDS:g} s")
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


def _serve(
    parent: int, connection: Connection, make: str, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    end_with(parent)
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
