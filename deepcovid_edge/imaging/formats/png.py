"""PNG files without the metadata that no pixel depends on, and whether all their rows are there.

Pillow opens no PNG with a text of more than 1 MiB, or with a damaged ancillary chunk. Of one whose
compressed data end with an earlier row than the last it leaves the others black.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from deepcovid_edge.imaging.signatures import XMP_ORIENTATION, png_chunks

if TYPE_CHECKING:
    from PIL import Image

_PNG_NEEDED = {
    *(b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"),
    *(b"acTL", b"fcTL", b"fdAT"),  # more than one picture
    *(b"eXIf", b"pHYs"),  # the way up, and the shape of a pixel
}
_PNG_SIZES = {b"acTL": 8, b"fcTL": 26, b"pHYs": 9}
"""Length of an ancillary chunk's data (PNG, third edition, section 11.3); another one is
damaged."""
_PNG_EXIF = re.compile(rb"(?:tEXt|zTXt|iTXt)Raw profile type exif\0")
"""EXIF as ImageMagick writes it."""
_PNG_XMP = re.compile(rb"iTXtXML:com\.adobe\.xmp\0([\0\1])\0[^\0]*\0[^\0]*\0")
"""XMP, and whether it is compressed (XMP Specification part 3; PNG, 11.3.3.4)."""
_MOST_XMP = 1 << 20
"""Pillow opens no PNG with a longer text."""
_DEPTH = 24
"""Offset of the bits per sample (PNG, 11.2.1)."""
_MOST_EXIF = 1 << 16
_DISPLAY_GAMMA = (1.7, 2.6)
"""What displays have had: 1.8 to 2.5. Linear grey levels are 1.0."""
_PROFILES = {b"cICP", b"iCCP", b"sRGB"}
"""Each overrides gAMA (PNG, third edition, section 4.3)."""
_PIECE = 1 << 20

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by colour type (PNG, third edition, table 8)."""
_ADAM7 = (
    *((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4)),
    *((2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)),
)
"""First row and step, first column and step of the passes of an interlaced one (section 8.1)."""


def lacks_rows(picture: Image.Image, data: bytes) -> bool:
    """Whether the compressed data of a PNG hold fewer rows than its header states.

    Args:
        picture: What Pillow decoded it to: a last row that is not black is there.
        data: The file.
    """
    width, height = picture.size
    last = picture.crop((0, height - 1, width, height))
    if np.asarray(last).any() and not picture.info.get("interlace"):
        return False
    inflate, held, needed = zlib.decompressobj(), 0, _inflated_size(data)
    for kind, at, length in png_chunks(data):
        piece = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while piece and held < needed:
            held += len(inflate.decompress(piece, _PIECE))
            piece = inflate.unconsumed_tail
    return held < needed


def _inflated_size(data: bytes) -> int:
    """Length of all rows, each with the byte of its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 1, 0, 1),)
    return sum(_pass_size(width, height, bits, one) for one in passes)


def _pass_size(width: int, height: int, bits: int, steps: tuple[int, int, int, int]) -> int:
    top, down, left, across = steps
    rows, columns = len(range(top, height, down)), len(range(left, width, across))
    return rows * (1 + (columns * bits + 7) // 8) if columns else 0


def scale_transparency(picture: Image.Image, data: bytes) -> None:
    """Let the grey that is transparent be of 8 bits, as Pillow makes the pixels.

    Args:
        picture: Of grey pixels.
        data: The file.
    """
    depth, grey = data[_DEPTH], picture.info.get("transparency")
    if depth < 8 and isinstance(grey, int):
        picture.info["transparency"] = grey * 255 // ((1 << depth) - 1)


def states_unusual_gamma(data: bytes) -> bool:
    """Whether a PNG states grey levels that a usual display would show too dark or too bright.

    Nearly every reader, OpenCV among them, takes the levels as stored.
    """
    values = {kind: data[at + 8 : at + 8 + length] for kind, at, length in png_chunks(data)}
    gamma = values.get(b"gAMA", b"")
    if len(gamma) != 4 or _PROFILES & values.keys():
        return False
    low, high = _DISPLAY_GAMMA
    exponent = int.from_bytes(gamma, "big") / 100_000  # section 11.3.2.2
    return not low <= 1 / exponent <= high if exponent else True


def png_without_metadata(data: bytes) -> bytes:
    """A PNG with the chunks alone that its pixels, its turn and its shape depend on.

    Args:
        data: A PNG that is not cut off.
    """
    chunks = [(kind, at, at + 12 + length) for kind, at, length in png_chunks(data)]
    kept = [(at, end) for kind, at, end in chunks if _is_needed(kind, data[at:end])]
    if len(kept) == len(chunks):
        return data
    return data[:8] + b"".join(data[at:end] for at, end in kept)


def _is_needed(kind: bytes, chunk: bytes) -> bool:
    if kind[:1].isupper() or kind == b"tRNS":  # critical, or as good as: damage is a reason
        return True
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind in _PNG_NEEDED:
        return len(chunk) - 12 == _PNG_SIZES.get(kind, len(chunk) - 12)
    if len(chunk) <= _MOST_EXIF and _PNG_EXIF.match(chunk, 4):
        return True
    return XMP_ORIENTATION in _xmp(chunk)


def _xmp(chunk: bytes) -> bytes:
    """The text of a chunk of XMP; nothing where it is another chunk, or too long for Pillow."""
    found = _PNG_XMP.match(chunk, 4)
    if found is None or len(chunk) > _MOST_XMP:
        return b""
    text = chunk[found.end() : -4]
    if found[1] == b"\0":
        return text
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(text, _MOST_XMP)
    except zlib.error:
        return b""
    return b"" if inflate.unconsumed_tail else text
