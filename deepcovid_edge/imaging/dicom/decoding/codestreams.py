"""What compressed pixels say of themselves: their kind, their colours, and where they end.

The header of a DICOM file is written by whoever handled it last, a codestream by its encoder. Where
the two disagree, the codestream is right.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.dicom.syntaxes import JPEG_SYNTAX, RLE

END = b"\xff\xd9"
"""EOI of ITU-T T.81 and T.87, EOC of T.800 and T.814."""
FILL = b"\0\xff"
"""Bytes that stand behind an end: padding, or what was reserved on a disk."""
MOST_FILL = 4
"""Bytes like padding that may belong to a codestream whose end is missing."""

_JPEG, _J2K, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
_SEGMENT = re.compile(rb"\xff+([\x4f-\xcf\xda-\xfe])(..)", re.DOTALL)
"""A marker with the length of what follows it (T.81, B.1.1.4; T.800, A.1)."""
_SOF, _SOF_LOSSLESS, _SOF_LS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xC3, 0xF7
_SOS, _DNL, _JFIF, _ADOBE = 0xDA, b"\xff\xdc\0\x04", 0xE0, 0xEE
SIZ, COD, COC, SOT = 0x51, 0x52, 0x53, 0x90
_CAP, _SOD = 0x50, 0x93
_HT = 1 << 17
"""The bit of CAP that stands for part 15 (T.814, A.3)."""
_SYCC = b"colr\x01\0\0\0\0\0\x12"
"""The box of a JP2 file that says sYCC (T.800, I.5.3.3)."""
_SHEAR_SAMPLES = 1 << 22
"""Words on which it is looked whether rows follow on one another."""


@dataclass(frozen=True)
class Codestream:
    """Compressed pixels of a known kind.

    Attributes:
        data: The codestream, without the boxes of a JP2 file, made fit for the decoders.
        syntax: UID of the transfer syntax that it is.
        samples: Channels.
        ycc: Whether three channels are Y, Cb and Cr once decoded; None where it does not say.
        signed: Whether its samples have a sign; other kinds than JPEG 2000 do not say.
    """

    data: bytes
    syntax: str
    samples: int
    ycc: bool | None = None
    signed: bool = False


def read_codestream(data: bytes, bytes_each: int) -> Codestream | None:
    """What a codestream says of itself, or None where it is of no known kind.

    Args:
        data: The codestream.
        bytes_each: Bytes of a sample; RLE has a segment for each.
    """
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(_J2K):
        return _jpeg_2000(data, ycc=None)
    if data.startswith(_JP2) and (box := data.find(b"jp2c" + _J2K)) > 0:
        return _jpeg_2000(data[box + 4 :], ycc=True if _SYCC in data[:box] else None)
    if pieces := len(rle_offsets(data)):
        return Codestream(data, RLE, 3 if pieces == 3 * bytes_each else 1)
    return None


def is_begun(data: bytes) -> bool:
    """Whether bytes begin as a codestream of JPEG's families does."""
    return data.startswith((_JPEG, _J2K, _JP2))


def segments(data: bytes, at: int = 2) -> Iterator[tuple[int, int, bytes]]:
    """Marker, start of content and content of the segments from an offset to the next pixels."""
    while found := _SEGMENT.match(data, at):
        marker, start = found[1][0], found.end()
        if marker == _SOD:  # of a tile-part of JPEG 2000; it has no length
            return
        at = start - 2 + int.from_bytes(found[2], "big")
        yield marker, start, data[start:at]
        if marker in (_SOS, SOT):
            return


def _jpeg(data: bytes) -> Codestream | None:
    # T.81, B.2.2: precision, height, width, components with identifier and sampling each.
    known = list(segments(data))
    seen = {marker: (start, content) for marker, start, content in known}
    frame = next((marker for marker in seen if marker in _SOF or marker == _SOF_LS), None)
    if frame is None or _SOS not in seen or len(seen[frame][1]) < 9:
        return None
    start, content = seen[frame]
    scan, parameters = seen[_SOS]
    if content[1:3] == b"\0\0":
        data = _with_height(data, start, scan)
    first = parameters[-3] if len(parameters) >= 6 else 0
    if frame == _SOF_LOSSLESS:
        data = _with_plain_scan(data, scan + len(parameters))
        syntax = JPEG_SYNTAX["sv1" if first == 1 else "lossless"]
    elif frame == _SOF_LS:
        syntax = JPEG_SYNTAX["near" if first else "ls"]
    else:
        syntax = JPEG_SYNTAX["baseline" if frame == 0xC0 else "extended"]
    names = [content for marker, _, content in known if marker in (_JFIF, _ADOBE)]
    return Codestream(data, syntax, content[5], _jpeg_ycc(names, content))


def _jpeg_ycc(names: list[bytes], frame: bytes) -> bool | None:
    """Colours of three components by libjpeg's rules (jdapimin.c), else by their sampling."""
    if frame[5] != 3:
        return None
    if any(name.startswith(b"JFIF\0") for name in names):
        return True
    transforms = [name[11] for name in names if name.startswith(b"Adobe") and len(name) >= 12]
    if transforms:
        return transforms[0] != 0
    if frame[6::3] == b"RGB":
        return False
    return True if len(set(frame[7::3])) > 1 else None


def _with_height(data: bytes, frame: int, scan: int) -> bytes:
    """The height that stands behind the first scan put where decoders look (T.81, B.2.5)."""
    at = data.find(_DNL, scan)
    if at < 0:
        return data
    return data[: frame + 1] + data[at + 4 : at + 6] + data[frame + 3 : at] + data[at + 6 :]


def _with_plain_scan(data: bytes, end: int) -> bytes:
    """A lossless scan whose Se and Ah, which mean nothing there, are 0 (T.81, table B.3)."""
    plain = bytes((0, data[end - 1] & 0x0F))
    return data if data[end - 2 : end] == plain else data[: end - 2] + plain + data[end:]


def _jpeg_2000(data: bytes, *, ycc: bool | None) -> Codestream | None:
    # T.800, A.5.1 and A.6.1: components, depth and sign of the first; component transform, wavelet.
    seen = {marker: content for marker, _, content in segments(data)}
    size, coding = seen.get(SIZ, b""), seen.get(COD, b"")
    if len(size) < 36 or len(coding) < 10:
        return None
    high_throughput = int.from_bytes(seen.get(_CAP, b"")[:4], "big") & _HT
    lossless = coding[9] == 1
    name = ("ht" if high_throughput else "2000") + ("" if lossless else "-lossy")
    if coding[4] & 1:  # the decoder undoes it
        ycc = False
    samples, signed = int.from_bytes(size[34:36], "big"), size[36:37] >= b"\x80"
    return Codestream(data, JPEG_SYNTAX[name], samples, ycc, signed)


def with_end(data: bytes) -> bytes | None:
    """A whole codestream up to its end and maybe padding, or None where no end is found."""
    if data.startswith(_J2K):
        return _jpeg_2000_with_end(data)
    if _is_closed(data):
        return data
    scan = next((start for marker, start, _ in segments(data) if marker == _SOS), len(data))
    end = data.find(END, scan)  # T.81, F.1.2.3, and T.87, A.1: never within the pixels
    return None if end < 0 else data[: end + 2]


def _is_closed(data: bytes) -> bool:
    return data[-4096:].rstrip(FILL).endswith(END) or data.rstrip(FILL).endswith(END)


def _jpeg_2000_with_end(data: bytes) -> bytes | None:
    """The codestream up to the end of its tiles: not all decoders notice what is missing."""
    end, is_whole = _tiles_end(data)
    if end is None:  # the last tile goes as far as the codestream does
        return data if is_whole and _is_closed(data) else None
    if data[end : end + 2] == END:
        return data if is_whole else None
    if end <= len(data) and _is_closed(data):  # lengths that are wrong: the decoder may know better
        return data
    padded = end > len(data.rstrip(FILL)) + MOST_FILL
    return data[:end] + END if is_whole and end <= len(data) and not padded else None


def _tiles_end(data: bytes) -> tuple[int | None, bool]:
    """Where the last tile-part ends, None where it does not say; and whether all tiles are there.

    ITU-T T.800, A.4.2: a tile-part states its tile, its length and the number of its tile's parts.
    """
    headers = {marker: (start, content) for marker, start, content in segments(data)}
    if SOT not in headers or len(headers[SIZ][1]) < 36:
        return 0, False
    right, bottom, _, _, wide, high, left, top = struct.unpack_from(">8I", headers[SIZ][1], 2)
    if not wide or not high:
        return 0, False
    end: int | None = headers[SOT][0] - 4
    parts: dict[int, list[int]] = {}
    while end is not None and data[end : end + 2] == b"\xff\x90" and end + 12 <= len(data):
        tile, length, _, stated = struct.unpack_from(">HIBB", data, end + 4)
        end = end + length if length else None
        seen = parts.setdefault(tile, [0, 0])
        parts[tile] = [seen[0] + 1, max(seen[1], stated)]
    tiles = -(-(right - left) // wide) * -(-(bottom - top) // high)
    is_whole = len(parts) == tiles and all(found >= stated for found, stated in parts.values())
    return end, is_whole


def rle_offsets(data: bytes) -> list[int]:
    """Where the segments of RLE start; none where its header is none (PS3.5, G.5)."""
    if len(data) < 64:
        return []
    stated, *places = struct.unpack_from("<16I", data)
    offsets = [place for place in places if place]
    rises = all(low < high for low, high in pairwise(offsets))
    if (
        not 1 <= stated <= 15
        or offsets[:1] != [64]
        or not rises
        or places[len(offsets) :] != ([0] * (15 - len(offsets)))
    ):
        return []
    return offsets


def unpacked(segment: bytes) -> bytes:
    """The bytes of a segment of RLE, as far as it goes (PS3.5, G.3.2)."""
    pieces, at = [], 0
    while at < len(segment):
        head = segment[at]
        if head < 128:
            pieces.append(segment[at + 1 : at + 2 + head])
            at += 2 + head
        elif head > 128:
            pieces.append(segment[at + 1 : at + 2] * (257 - head))
            at += 2
        else:
            at += 1
    return b"".join(pieces)


def is_padding(words: NDArray[Any], rows: int, columns: int) -> bool:
    """Whether words behind the pixels are padding, and not pixels that the header leaves out.

    Padding is one word again and again, or less than a row of anything (PS3.5, 8.1.1 and G.3.1).
    Where it would make whole columns, rows must follow on one another better without it.

    Args:
        words: All words in their order, the pixels first.
        rows: Rows by the header.
        columns: Words of a row by the header.
    """
    surplus = words[rows * columns :]
    if surplus.size and surplus.size % rows == 0:
        wider = columns + surplus.size // rows
        if _between_rows(words, wider) < _between_rows(words, columns):
            return False
    return surplus.size < columns or not np.ptp(surplus)


def _between_rows(words: NDArray[Any], row: int) -> float:
    """Mean difference of words that stand below one another."""
    values = words[: _SHEAR_SAMPLES + row].astype(np.int32)
    return float(np.abs(values[row:] - values[:-row]).mean())
