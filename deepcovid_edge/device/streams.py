"""The standard streams of a program, whatever it was started with.

A service or a cron job may start a program with streams that are closed (`2>&-`), full, or not
UTF-8. Messages that nobody can read cost no result then.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import IO, Any

_READER_SECONDS = 1.0
"""A reader that takes nothing for this time has stopped."""
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def open_streams() -> None:
    """Call first of all in a program: every stream is open then, and takes every letter.

    A closed stream is opened on /dev/null. Else the next file would get its number, and what a
    library prints on that number would stand in the file, among the records for example.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        _open_if_closed(number)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - open to the end
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - likewise
    elif isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold any letter, or any byte
        is_unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Messages()),
        getattr(sys.stderr, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=True,
    )


def is_stdout_closed() -> bool:
    """Whether the program was started with a closed standard output."""
    return getattr(sys.stdout, "name", None) == os.devnull  # `>/dev/null` keeps its own name


def has_lost_its_reader(stream: IO[Any]) -> bool:
    """Whether a stream is a pipe or a socket that nobody reads any more."""
    return bool(_events(stream, 0) & (select.POLLERR | select.POLLHUP))


def drop_writes(stream: IO[Any]) -> None:
    """Write nothing more to a stream, also not what waits in its buffer."""
    with suppress(OSError, ValueError):  # no file of the system, or a closed one
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def drop_buffer(stream: IO[Any]) -> None:
    """Drop what waits in a stream's buffer; what is written next goes where it went."""
    with suppress(OSError, ValueError):  # no file of the system, or a closed one
        number = stream.fileno()
        kept = os.dup(number)
        try:
            drop_writes(stream)
            stream.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)


def drop_if_stuck(stream: IO[Any]) -> None:
    """Write nothing more to a pipe or a terminal whose reader has stopped.

    A write that waits for the reader ends when the handler of a signal calls this. A reader that is
    slow still gets everything.
    """
    if not _events(stream, select.POLLOUT, _READER_SECONDS):
        drop_writes(stream)


def _events(stream: IO[Any], wanted: int, seconds: float = 0.0) -> int:
    """What poll(2) tells of a stream within a time; a regular file takes writes always."""
    poll = select.poll()
    try:
        poll.register(stream, wanted)
    except (OSError, ValueError):  # no file of the system, or a closed one
        return wanted
    return sum(event for _, event in poll.poll(seconds * 1000))


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)


class _Messages(io.RawIOBase):
    """Standard error; what cannot be written to it is dropped."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDERR

    def isatty(self) -> bool:
        return os.isatty(_STDERR)

    def write(self, data: Any, /) -> int:
        try:
            return os.write(_STDERR, data)
        except OSError:  # full, or its reader has gone
            return len(data)
