"""Damages one part of a valid file and names what it did, for `fuzz.py`.

One element of a DICOM header, or one value of a JSON document or of a file of records.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from conftest import Pictures
from dicom_files import (
    EXPLICIT,
    JPEG_LS,
    MOST_BITS,
    RLE,
    SECONDARY_CAPTURE,
    dataset,
    stored_image,
    written,
)
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.sequence import Sequence

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT

Draw = np.random.Generator

_PIXELS = 0x7FE00010
_LONG = {"OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC", "UR"}
_TEXTS = {"CS", "LO", "SH", "LT", "ST", "UT", "DS", "IS", "DA", "TM", "AS", "UI", "PN", "UC", "UR"}
_FOREIGN = [
    text.encode(codec)
    for text, codec in (
        *(("КОЛЕНО", "utf-8"), ("КОЛЕНО", "cp1251"), ("膝関節", "shift_jis"), ("膝", "iso2022_jp")),
        *(
            ("٢٠٤٨", "utf-8"),
            ("\uff12\uff10\uff14", "utf-8"),
            ("DERRIÈRE", "latin-1"),
            ("무릎", "euc_kr"),
        ),
    )
]
WAYS = (
    *("deleted", "emptied", "wrong kind", "foreign", "two values", "swapped case", "cut"),
    *("long", "repeated"),
)


_NUMBERS = (0x00281050, 0x00281051, 0x00281052, 0x00281053)
_TABLES = (0x00283000, 0x00283010)
_VALID_TOO = {
    *((tag, way) for tag in _NUMBERS for way in ("cut", "repeated")),
    *((tag, way) for tag in _TABLES for way in ("deleted", "emptied")),
}
"""Window and rescale of other digits, and no LUT, make another valid image, and are no damage."""


class Element(NamedTuple):
    """Where an element stands in a file."""

    start: int
    end: int
    tag: int
    kind: str
    value: bytes


# --- headers -----------------------------------------------------------------------------------


def _table(first: int, entries: Any, bits: int) -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "OW", np.asarray(entries, "<u2").tobytes())
    return Sequence([item])


def _code(value: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return Sequence([item])


def _twin(bits: int, photometric: str, *, window: bool, signed: bool = False) -> Dataset:
    pixels, elements = stored_image(Pictures.image(), bits, photometric, window=window)
    if signed:
        half = 1 << (bits - 1)
        pixels = (pixels.astype(np.int32) - half).astype(np.int16)
        elements["WindowCenter"] = elements["WindowCenter"] - half
    return dataset(
        pixels,
        **elements,
        SpecificCharacterSet="ISO_IR 100",
        ImageType=["DERIVED", "PRIMARY"],
        NumberOfFrames="1",
        PatientPosition="",
        SeriesDescription="CHEST PA",
        AcquisitionDate="20200326",
        BurnedInAnnotation="NO",
        AnatomicRegionSequence=_code("816094009", "Chest"),
        ViewCodeSequence=_code("272479007", "postero-anterior"),
    )


def _with_tables() -> Dataset:
    image = _twin(12, "MONOCHROME2", window=False)
    image.ModalityLUTSequence = _table(0, np.arange(4096), 12)
    image.VOILUTSequence = _table(0, np.arange(4096) * 16, 16)
    return image


def _rescaled() -> Dataset:
    image = _twin(12, "MONOCHROME1", window=True)
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = "2", "-100", "US"
    image.WindowCenter = float(image.WindowCenter) * 2 - 100
    image.WindowWidth = float(image.WindowWidth) * 2
    image.VOILUTFunction = "LINEAR"
    return image


def _screen_copy() -> Dataset:
    pixels = np.dstack([np.ascontiguousarray(Pictures.image())] * 3)
    return dataset(pixels, SOPClassUID=SECONDARY_CAPTURE, Modality="OT")


def twins() -> dict[str, bytes]:
    """Valid files of many kinds, by name."""
    assert JPEG_LS not in MOST_BITS
    padded = _twin(16, "MONOCHROME2", window=True)
    padded.add_new(0x00280120, "US", 0)
    return {
        "window": written(_twin(12, "MONOCHROME2", window=True)),
        "implicit": written(_twin(12, "MONOCHROME1", window=True), IMPLICIT),
        "big endian": written(_twin(16, "MONOCHROME2", window=True), BIG_ENDIAN),
        "signed": written(_twin(16, "MONOCHROME2", window=True, signed=True)),
        "signed 12": written(_twin(12, "MONOCHROME2", window=True, signed=True)),
        "no window": written(_twin(8, "MONOCHROME2", window=False)),
        "rescaled": written(_rescaled()),
        "padded": written(padded),
        "tables": written(_with_tables()),
        "JPEG-LS": written(_twin(12, "MONOCHROME1", window=True), JPEG_LS),
        "RLE": written(_twin(16, "MONOCHROME2", window=True), RLE),
        "screen copy": written(_screen_copy(), EXPLICIT),
    }


def _elements(data: bytes, *, implicit: bool, little: bool) -> Iterator[Element]:
    """The elements of the data set before the pixels."""
    stream = io.BytesIO(data)
    length = struct.unpack_from("<I", data, 140)[0]  # file meta group length (PS3.10, 7.1)
    stream.seek(144 + length)
    start = stream.tell()

    def at_pixels(tag: int, _kind: str | None, _length: int) -> bool:
        return tag >= _PIXELS

    for element in data_element_generator(stream, implicit, little, stop_when=at_pixels):
        end = stream.tell()
        kind, tag = str(element.VR), int(element.tag)
        head = 8 if implicit or kind not in _LONG else 12
        yield Element(start, end, tag, kind, data[start + head : end])
        start = end


def _written(tag: int, kind: str, value: bytes, *, implicit: bool, little: bool) -> bytes:
    order = "<" if little else ">"
    value += (b" " if kind in _TEXTS else b"\0") * (len(value) % 2)
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(f"{order}I", len(value)) + value
    if kind in _LONG:
        return head + kind.encode() + bytes(2) + struct.pack(f"{order}I", len(value)) + value
    value = value[:65534]
    return head + kind.encode() + struct.pack(f"{order}H", len(value)) + value


def mutated_header(whole: bytes, syntax: str, draw: Draw) -> tuple[bytes, int, str]:
    """A file with one element changed, its tag and how it was changed."""
    order = {"implicit": syntax == IMPLICIT, "little": syntax != BIG_ENDIAN}
    found = list(_elements(whole, **order))
    choices = [(one, way) for one in found for way in WAYS if (one.tag, way) not in _VALID_TOO]
    one, way = choices[int(draw.integers(len(choices)))]
    kind, value = _changed(one, way, draw)
    element = b"" if way == "deleted" else _written(one.tag, kind, value, **order)
    return whole[: one.start] + element + whole[one.end :], one.tag, way


def _changed(one: Element, way: str, draw: Draw) -> tuple[str, bytes]:
    kind, value = one.kind, one.value
    is_text = kind in _TEXTS
    space = (b" " if is_text else b"\0") * int(draw.choice([2, 64, 200, 3000]))
    before = is_text and bool(draw.random() < 0.5)
    others = sorted((_LONG | _TEXTS | {"US", "SS", "FD", "AT"}) - {kind})
    changed = {
        "emptied": b"",
        "foreign": _FOREIGN[int(draw.integers(len(_FOREIGN)))],
        "two values": value.rstrip(b" \0") + b"\\" + value if is_text else value * 2,
        "swapped case": value.swapcase() if is_text else value,
        "cut": value[: int(draw.integers(len(value) + 1))],
        "long": space + value if before else value + space,
        "repeated": value * int(draw.choice([2, 3, 40])),
    }
    return str(draw.choice(others)) if way == "wrong kind" else kind, changed.get(way, value)


# --- documents ---------------------------------------------------------------------------------

_VALUES: list[Any] = [
    *(None, True, False, "", "0.5", "?", [], {}, [[]], {"a": 1}, -1, float("nan"), float("inf")),
    *(10**400, "\ud800", "\0"),
]
_RIGHT_TOO: tuple[tuple[str, Any], ...] = (("indeterminate_range", None), ("ood", {}))
"""Values that say something else, and are not damage."""


def mutated_text(whole: bytes, draw: Draw) -> bytes:
    """A text as broken copies and editors leave it."""
    at = int(draw.integers(len(whole) + 1))
    ways = [
        *(b"", whole[:at], whole[at:], b"\xef\xbb\xbf" + whole, whole + whole, whole + b"\0" * 64),
        *(whole[:at] + bytes(64) + whole[at + 64 :], whole[:at] + b"\xff\xfe" + whole[at:]),
        *(
            whole.decode("latin-1").encode("utf-16"),
            b"[" * 100_000,
            b'{"a":' * 20_000,
            b"null",
            b"[]",
            b"1",
        ),
        *(whole.replace(b"\n", b"\r\n"), whole.replace(b'"', b"'"), whole + b"}"),
        whole[:at] + draw.bytes(4) + whole[at:],
    ]
    return ways[int(draw.integers(len(ways)))]


def mutated_json(document: Any, draw: Draw) -> str:
    """A JSON document with one value deleted or of another kind."""
    document = json.loads(json.dumps(document))
    places = list(_places(document))
    inside, key = places[int(draw.integers(len(places)))]
    way = int(draw.integers(len(_VALUES) + 3))
    if way < len(_VALUES) and (key, _VALUES[way]) not in _RIGHT_TOO:
        inside[key] = _VALUES[way]
    elif isinstance(inside, dict):
        del inside[key]
    return json.dumps(document)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
