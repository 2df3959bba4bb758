"""Frames between the server and a process that assesses: a count, lengths, and as many parts."""

from __future__ import annotations

import itertools
import socket
import struct
from asyncio import StreamReader
from collections.abc import Sequence, Sized

_COUNT, _LENGTH = struct.Struct("!I"), struct.Struct("!Q")
_MOST_PARTS = 1024


def head_of(parts: Sequence[Sized]) -> bytes:
    """What stands before the parts of a frame."""
    return _COUNT.pack(len(parts)) + b"".join(_LENGTH.pack(len(part)) for part in parts)


def send(channel: socket.socket, parts: Sequence[bytes]) -> None:
    """Send a frame."""
    channel.sendall(b"".join((head_of(parts), *parts)))


def receive(channel: socket.socket) -> list[bytes]:
    """The next frame; no part where the other side has closed."""
    counted = _exactly(channel, _COUNT.size)
    if len(counted) < _COUNT.size:
        return []
    lengths = _LENGTH.iter_unpack(_exactly(channel, _checked(counted) * _LENGTH.size))
    return [_exactly(channel, length) for (length,) in lengths]


def _exactly(channel: socket.socket, size: int) -> bytes:
    """The next bytes, as many as `size`, or fewer at the end."""
    data = b""
    while len(data) < size:  # once, unless a signal comes between
        more = channel.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            break
        data += more
    return data


def _checked(counted: bytes) -> int:
    count: int = _COUNT.unpack(counted)[0]
    if count > _MOST_PARTS:
        raise ValueError(f"a frame of {count} parts")
    return count


async def read(stream: StreamReader) -> list[bytes]:
    """The next frame of a stream.

    Raises:
        EOFError: The other side has closed (`asyncio.IncompleteReadError`).
        ValueError: It is not a frame.
    """
    count = _checked(await stream.readexactly(_COUNT.size))
    packed = await stream.readexactly(count * _LENGTH.size)
    lengths = [length for (length,) in _LENGTH.iter_unpack(packed)]
    whole = await stream.readexactly(sum(lengths))
    ends = itertools.accumulate(lengths)
    return [whole[end - length : end] for length, end in zip(lengths, ends, strict=True)]
