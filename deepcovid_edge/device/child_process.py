"""Child processes that are never waited for without an end.

A `Child` is waited for as long as it makes progress: it says something, its session uses the
processor, or pages of it come from the disk. One that only sleeps is ended, and so is one that
takes longer than its limit. A child ends with its parent, even where that is killed: a small
program in front of the command has the kernel see to it (prctl(2), PR_SET_PDEATHSIG).

The kernel watches the thread that started the child, not the whole process: the thread that makes
a `Child` must stay until the child has ended, as it does in a `with` block.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.device.process_tree import all_stats
from deepcovid_edge.files import Closing

_PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""
_LAUNCHER = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent ended before the kernel was asked
os.execv(sys.argv[2], sys.argv[2:])
"""
_BLOCK = 1 << 20
"""Bytes read at once: all that a pipe holds (pipe(7): 1 MiB where a user may choose)."""
_LOOKS = 20
_LONGEST_LOOK = 1.0
_CLOSED_LOOK = 0.02
_REAP_SECONDS = 5.0
"""A killed process is gone at once, unless the kernel holds it: a driver or a disk that hangs."""
_LEAST_CPU_SECONDS = 0.05
"""Less of the processor than this while patience lasts is no work, but a thread that polls."""


class StalledError(Exception):
    """Raised when a child made no progress for too long, or took longer than its limit."""


def ending_with_this(command: Sequence[str]) -> list[str]:
    """A command whose process ends when the thread that starts it does."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a child, and its session if it leads one, wait briefly for its end, close its pipes."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_SECONDS)
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):  # a request that nobody reads any more
            pipe.close()


def output_of(command: Sequence[str], *, seconds: float) -> str | None:
    """What a tool says on standard output; None where it fails or takes too long."""
    try:
        with Child(command, patience=seconds, limit=seconds, stderr=subprocess.DEVNULL) as child:
            said = "\n".join(child.lines())
    except (OSError, StalledError):
        return None
    return said if child.code == 0 else None


class Child(Closing):
    """A child process whose lines are read as they come; to be used in a `with` block.

    Args:
        command: Path of the program, and its arguments.
        patience: Longest time without progress, seconds.
        limit: Longest time in all, seconds; None for as long as there is progress.
        stderr: Where its errors go, as `subprocess.Popen` takes it; None for among its lines.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        patience: float,
        limit: float | None = None,
        stderr: int | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            ending_with_this(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr is None else stderr,
            start_new_session=True,  # what it starts itself is counted, and ended, with it
        )
        assert self._process.stdout
        self._pipe = self._process.stdout
        self._readable = select.poll()
        self._readable.register(self._pipe, select.POLLIN)
        self._is_closed = False
        self._patience = Patience(self._process.pid, patience, limit)

    def close(self) -> None:
        """End it."""
        end(self._process)

    @property
    def pid(self) -> int:
        """Its process id, which is that of its session too."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code after the `with` block, negative for a signal; None: it cannot be ended."""
        return self._process.returncode

    def lines(self) -> Iterator[str]:
        """The lines that it says, until it has ended.

        Raises:
            StalledError: It made no progress, or took too long; it is ended with the `with` block.
        """
        rest = b""
        for block in self._blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if rest:
            yield rest.decode(errors="replace")

    def _blocks(self) -> Iterator[bytes]:
        """What it writes; a process that it left behind may hold the pipe, and is not awaited."""
        has_ended = False
        while not has_ended:
            has_ended = self._has_ended()  # asked first: what it wrote is in the pipe then
            block = self._read(0 if has_ended else self._patience.look)
            if block:
                self._patience.made_progress()
                yield block
            self._patience.check()

    def _has_ended(self) -> bool:
        """Whether it has ended; it is left to be reaped, so that its id stays its own till then."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _read(self, seconds: float) -> bytes:
        if not self._readable.poll(1000 * min(seconds, _CLOSED_LOOK if self._is_closed else 60)):
            return b""
        block = os.read(self._pipe.fileno(), _BLOCK)
        if not block:
            self._readable.unregister(self._pipe)
            self._is_closed = True
        return block


@dataclass(frozen=True)
class _Life:
    """Signs of life of a session.

    Attributes:
        cpu_seconds: Processor time that its processes used.
        faults: Pages that came from the disk for them.
    """

    cpu_seconds: float
    faults: int

    def is_beyond(self, earlier: _Life) -> bool:
        """Whether work was done since: a process that has ended takes its time with it."""
        used = abs(self.cpu_seconds - earlier.cpu_seconds)
        return used >= _LEAST_CPU_SECONDS or self.faults != earlier.faults


class Patience:
    """How long a session has made no progress.

    Only time in which this process looked counts: while it is stopped, nobody reads the child.

    Args:
        session: Process id of its leader.
        patience: Longest time without progress, seconds.
        limit: Longest time in all, seconds; None for as long as there is progress.
    """

    def __init__(self, session: int, patience: float, limit: float | None) -> None:
        self.look = min(_LONGEST_LOOK, patience / _LOOKS)
        self._session, self._patience, self._limit = session, patience, limit
        self._started = self._looked = time.monotonic()
        self._idle = 0.0
        self._life = _life_of(session)

    def made_progress(self) -> None:
        """Count the idle time from zero again."""
        self._idle = 0.0

    def check(self) -> None:
        """Look how the session does, unless that was done just now.

        Raises:
            StalledError: Patience or time is at its end.
        """
        now = time.monotonic()
        if self._limit is not None and now - self._started > self._limit:
            raise StalledError(f"took longer than {self._limit:g} s")
        passed = now - self._looked
        if passed < self.look:
            return
        self._looked = now
        life = _life_of(self._session)
        if life.is_beyond(self._life):
            self._life, self._idle = life, 0.0
            return
        self._idle += min(passed, 2 * self.look)
        if self._idle >= self._patience:
            raise StalledError(f"made no progress for {self._patience:g} s")


def _life_of(session: int) -> _Life:
    """Of all processes of a session, and of the children that they have waited for."""
    ticks = faults = 0
    for fields in all_stats().values():
        if int(fields[3]) == session:  # proc_pid_stat(5), counted from its third field
            ticks += sum(map(int, fields[11:15]))
            faults += int(fields[9]) + int(fields[10])
    return _Life(ticks / os.sysconf("SC_CLK_TCK"), faults)
