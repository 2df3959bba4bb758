"""Elements in Explicit VR Little Endian (PS3.5, 7.1.2), and whole files of copied and own ones."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

from deepcovid_edge.errors import require
from deepcovid_edge.imaging.dicom.elements import BoundedStream
from deepcovid_edge.imaging.dicom.syntaxes import Encoding

LONGEST = 0xFFFE
"""Longest value that is copied, bytes: what a length of 16 bits can state."""
LONG_KINDS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
"""Value representations whose length has 32 bits (PS3.5, 7.1.2)."""
_NUL_PADDED = ("OB", "UI", "UN")
_WIDTHS = {"US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4}
_WIDTHS |= dict.fromkeys(("FD", "OD", "SV", "UV", "OV"), 8)
"""Bytes of a number, which a big-endian image has the other way round."""
_DEEPEST = 8
_ITEM, _ITEM_HEAD = b"\xfe\xff\x00\xe0", 8
_PREAMBLE = 132
_META_LENGTH = 12
"""Of File Meta Information Group Length, the first element (PS3.10, 7.1)."""
_PIXELS = 0x7FE00010
_SEQUENCE, _UNKNOWN = "SQ", "UN"
_KIND = re.compile(r"[A-Z]{2}")


def encode_element(tag: int, kind: str, element: Any, encoding: Encoding) -> bytes | None:
    """An element of another file, its value byte for byte.

    Args:
        tag: Its tag.
        kind: Its value representation by PS3.6, whatever the file says.
        element: As pydicom reads it, raw or a sequence.
        encoding: Of the file.

    Returns:
        None where the value is too long, cut off, or a sequence that cannot be read.
    """
    try:
        return _encoded(tag, kind, element, encoding, _DEEPEST)
    except Exception:  # pydicom raises nearly anything on a broken sequence
        return None


def _encoded(tag: int, kind: str, element: Any, encoding: Encoding, depth: int) -> bytes | None:
    value = element.value
    if kind == _SEQUENCE:
        value = _sequence(element, encoding, depth)
        return None if value is None or len(value) > LONGEST else encode_value(tag, kind, value)
    if value is None or not isinstance(value, bytes):
        return encode_value(tag, kind, b"") if not getattr(element, "length", 1) else None
    if len(value) > LONGEST or len(value) < getattr(element, "length", 0):
        return None
    width = _WIDTHS.get(kind, 1)
    if width > 1 and not encoding.little:
        value = _swapped(value, width)
    return encode_value(tag, kind, value)


def _sequence(element: Any, encoding: Encoding, depth: int) -> bytes | None:
    """The items of a sequence; None below the deepest level."""
    items = element.value
    if depth == 0:
        return None
    if isinstance(items, bytes):
        # PS3.5, 6.2.2: a sequence of unknown representation is implicit and little-endian
        unknown = getattr(element, "VR", None) == _UNKNOWN
        implicit, little = unknown or encoding.implicit, unknown or encoding.little
        encoding = Encoding(encoding.syntax, little=little, implicit=implicit)
        reader = require("pydicom.filereader", extra="cart")
        items = reader.read_sequence(BoundedStream(items), implicit, little, len(items), "iso8859")
    return b"".join(_item(item, encoding, depth) for item in items or ())


def _item(item: Any, encoding: Encoding, depth: int) -> bytes:
    parts = []
    for tag in sorted(int(tag) for tag in item.keys()):  # noqa: SIM118
        if tag >> 16 & 1:
            continue  # private: its meaning is not known
        element = item.get_item(tag)
        encoded = _encoded(tag, _kind_of(tag, element), element, encoding, depth - 1)
        if encoded is not None:
            parts.append(encoded)
    return _whole_item(parts)


def _whole_item(elements: Iterable[bytes]) -> bytes:
    inside = b"".join(elements)
    return _ITEM + len(inside).to_bytes(4, "little") + inside


def encode_sequence(tag: int, items: Iterable[Mapping[int, bytes]]) -> bytes:
    """A sequence of items, each tag -> element."""
    whole = (_whole_item(item[tag] for tag in sorted(item)) for item in items)
    return encode_value(tag, _SEQUENCE, b"".join(whole))


def items_of(sequence: bytes) -> list[dict[int, bytes]]:
    """The items of a sequence that `encode_element` wrote, each tag -> element."""
    value, at = value_of(sequence), 0
    items: list[dict[int, bytes]] = []
    while at < len(value):
        end = at + _ITEM_HEAD + int.from_bytes(value[at + 4 : at + _ITEM_HEAD], "little")
        items.append(_split(value[at + _ITEM_HEAD : end], 0))
        at = end
    return items


def value_of(element: bytes) -> bytes:
    """The value of an element in Explicit VR Little Endian, with its padding."""
    return element[12 if element[4:6].decode("ascii") in LONG_KINDS else 8 :]


def _kind_of(tag: int, element: Any) -> str:
    """The value representation by PS3.6 where that leaves no choice, else as the file has it."""
    dictionary = require("pydicom.datadict", extra="cart")
    try:
        known = str(dictionary.dictionary_VR(tag))
    except KeyError:
        known = ""
    if _KIND.fullmatch(known):
        return known
    stated = str(getattr(element, "VR", None) or "")
    return stated if _KIND.fullmatch(stated) else _UNKNOWN


def _swapped(value: bytes, width: int) -> bytes:
    return b"".join(value[at : at + width][::-1] for at in range(0, len(value), width))


def encode_value(tag: int, kind: str, value: bytes) -> bytes:
    """An element of a value that is little-endian already."""
    if len(value) % 2:
        value += b"\0" if kind in _NUL_PADDED else b" "
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    head += kind.encode("ascii")
    if kind in LONG_KINDS:
        return head + bytes(2) + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value


def encode_file(own: Any, copied: Mapping[int, bytes], tags: Iterable[int]) -> bytes:
    """A DICOM file (PS3.10) of an object, with elements of its image in place of its own.

    Args:
        own: The object, a pydicom data set with file meta information, in Explicit VR Little
            Endian.
        copied: Elements of the image, see `encode_element`.
        tags: Those of them to take.
    """
    stream = io.BytesIO()
    own.save_as(stream, enforce_file_format=True)
    data = stream.getvalue()
    length = int.from_bytes(data[_PREAMBLE + 8 : _PREAMBLE + _META_LENGTH], "little")
    start = _PREAMBLE + _META_LENGTH + length
    elements = _split(data, start)
    elements |= {tag: copied[tag] for tag in tags if tag in copied}
    return b"".join([data[:start], *(elements[tag] for tag in sorted(elements))])


def _split(data: bytes, at: int) -> dict[int, bytes]:
    """The elements of a data set in Explicit VR Little Endian, the pixels and all behind as one."""
    elements = {}
    while at < len(data):
        group, number = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (0, 2))
        tag = group << 16 | number
        if tag >= _PIXELS:
            elements[tag] = data[at:]
            break
        if data[at + 4 : at + 6].decode("ascii") in LONG_KINDS:
            end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            end = at + 8 + int.from_bytes(data[at + 6 : at + 8], "little")
        elements[tag] = data[at:end]
        at = end
    return elements
