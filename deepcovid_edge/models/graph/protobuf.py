"""The protobuf wire format, as far as ONNX files need it: no `onnx` on a cart.

Source: Protocol Buffers, "Encoding"; field numbers are those of onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (field number, value) of a message: bytes for what has a length, numbers for varints.

    Raises:
        ValueError: The bytes are no protobuf message, or end early.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("cut off")
            yield number, message[position : position + length]
            position += length
        elif kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")


def blocks(message: memoryview, number: int) -> Iterator[memoryview]:
    """The values with a length of one field: strings, bytes and messages."""
    for found, value in read_fields(message):
        if found == number and isinstance(value, memoryview):
            yield value


def text(value: memoryview | int) -> str:
    """A string field."""
    return bytes(message_of(value)).decode()


def message_of(value: memoryview | int) -> memoryview:
    """A field with a length: a string, bytes or a message.

    Raises:
        ValueError: The field is a number.
    """
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def integers(value: memoryview | int) -> list[int]:
    """A signed integer field: one number, or several packed into bytes."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(_signed(number))
    return numbers


def encode(number: int, value: bytes | memoryview | str | int) -> bytes:
    """A field of a message: a varint for an integer that is not negative, else with its length."""
    if isinstance(value, int):
        return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)
    content = value.encode() if isinstance(value, str) else bytes(value)
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
