"""PNG files without the metadata that no pixel depends on.

Pillow opens no PNG with a text of more than 1 MiB, or with a damaged ancillary chunk.
"""

from __future__ import annotations

import re
import zlib

from deepcovid_edge.imaging.signatures import png_chunks

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
_MOST_EXIF = 1 << 16


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
    return len(chunk) <= _MOST_EXIF and _PNG_EXIF.match(chunk, 4) is not None
