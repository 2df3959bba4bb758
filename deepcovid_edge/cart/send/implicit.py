"""Explicit into Implicit VR Little Endian (PS3.5, 7.1 and A.1), every value byte for byte.

pydicom would decode texts and encode them again; a name in a wrong character set would change.
"""

from __future__ import annotations

import struct

from deepcovid_edge.cart.objects.encoding import LONG_KINDS

_LONG = frozenset(kind.encode("ascii") for kind in LONG_KINDS)
_ITEM, _ITEM_END, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF


def to_implicit(data: bytes) -> bytes:
    """A data set in Implicit VR Little Endian.

    Sequences and items that state no length state one afterwards; values stay as they are.

    Args:
        data: The data set in Explicit VR Little Endian, without file meta information.

    Raises:
        ValueError: It is cut off, or its pixels are compressed.
    """
    whole, at = _elements(data, 0, len(data))
    if at != len(data):
        raise ValueError("the data set has an end of an item outside of one")
    return whole


def _elements(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Elements until `end` or an end of an item; also where they end."""
    parts = []
    while at < end:
        tag = data[at : at + 4]
        if tag in (_ITEM_END, _SEQUENCE_END):
            break
        kind, length, at = _head(data, at)
        if kind == b"SQ":
            value, at = _items(data, at, length)
        elif length == _UNDEFINED:
            raise ValueError("compressed pixels, or a sequence of unknown representation")
        else:
            value, at = data[at : at + length], at + length
        if at > len(data):
            raise ValueError("the data set is cut off")
        parts.append(tag + struct.pack("<I", len(value)) + value)
    return b"".join(parts), at


def _head(data: bytes, at: int) -> tuple[bytes, int, int]:
    """Value representation, length and place of a value."""
    kind = data[at + 4 : at + 6]
    try:
        if kind in _LONG:
            return kind, struct.unpack_from("<I", data, at + 8)[0], at + 12
        return kind, struct.unpack_from("<H", data, at + 6)[0], at + 8
    except struct.error:
        raise ValueError("the data set is cut off") from None


def _items(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    parts: list[bytes] = []
    end = len(data) if length == _UNDEFINED else at + length
    while at < end:
        tag = data[at : at + 4]
        if len(data) < at + 8:
            raise ValueError("the data set is cut off")
        (inside,) = struct.unpack_from("<I", data, at + 4)
        at += 8
        if tag == _SEQUENCE_END:
            return b"".join(parts), at
        if tag != _ITEM:
            raise ValueError("a sequence holds something other than items")
        last = len(data) if inside == _UNDEFINED else at + inside
        item, at = _elements(data, at, last)
        if inside == _UNDEFINED:
            at += 8  # the end of the item
        elif at != last:
            raise ValueError("an item is not as long as it states")
        parts.append(_ITEM + struct.pack("<I", len(item)) + item)
    if at != end or length == _UNDEFINED:
        raise ValueError("the data set is cut off")
    return b"".join(parts), at
