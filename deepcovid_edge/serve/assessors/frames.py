"""Frames between the server and a process that assesses: a count, lengths, and as many parts."""

from __future__ import annotations

import socket
import struct
from asyncio import StreamReader
from collections.abc import Sequence

_COUNT, _LENGTH = struct.Struct("!I"), struct.Struct("!Q")
_MOST_PARTS = 1024


def head_of(parts: Sequence[bytes]) -> bytes:
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
    return [bytes(_exactly(channel, length)) for (length,) in lengths]


def _exactly(channel: socket.socket, size: int) -> bytearray:
    """So many bytes, or fewer at the end."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = channel.recv_into(view[got:])
        if count == 0:
            break
        got += count
    view.release()
    del data[got:]
    return data


def _checked(counted: bytes | bytearray) -> int:
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
    return [await stream.readexactly(length) for (length,) in _LENGTH.iter_unpack(packed)]
