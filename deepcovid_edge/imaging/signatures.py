"""What a file's bytes show before they are decoded: its format, and whether it is whole.

Of 3,000 damaged pictures of `tests/fuzz.py` decoders alone read some with wrong pixels: 10 without
the CRC of PNG, 6 without TIFF's check and 2 without BMP's. The checks of WebP, JPEG and the end of
PNG find no more than decoders do, but tell a file that is cut off from one that is damaged.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from deepcovid_edge.imaging.dicom.syntaxes import is_bare_data_set
from deepcovid_edge.imaging.formats.tiff import directory as tiff

_PNG = b"\x89PNG\r\n\x1a\n"
_KNOWN = {
    b"\xff\xd8\xff": "JPEG",
    _PNG: "PNG",
    **dict.fromkeys(tiff.MAGIC, "TIFF"),
    b"GIF8": "GIF",
}

_UNREAD = {
    b"%PDF": "PDF",
    b"PK\x03\x04": "a ZIP archive or office document",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "a JPEG XL codestream",
    b"II\xbc\x01": "JPEG XR",
    b"SIMPLE  =": "FITS",
    b"\x89HDF\r\n": "HDF5",
    b"\x1f\x8b": "a gzip archive (NIfTI?)",
}
_UNREAD_START = re.compile(b"|".join(map(re.escape, _UNREAD)))
_NETPBM = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+0*[1-9][0-9]{0,6}){3}\s")
"""Width, height and the largest value, which a text that begins so does not state (Netpbm)."""
_FTYP = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"isom": "a video"}

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker other than a restart, which stands within the pixels (ITU-T T.81, table B.1). Of the
bytes FF before a marker the last alone: a search for all of them takes the square of their number.
"""
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])(..)(.{4})", re.DOTALL)
"""A marker of the header, the length that follows it, and what it holds begins with (ITU-T T.81,
B.1.1.4 and table B.1)."""
_JPEG_FRAMES, _JPEG_SCAN, _JPEG_APP1 = (b"\xc0", b"\xc1", b"\xc2"), b"\xda", b"\xe1"
_HEAD = 4096
_NOT_PLAIN = (b"Exif", b"MPF\0")
XMP_ORIENTATION = b"tiff:Orientation"
"""What XMP holds that states an orientation."""
_BI_RGB, _BI_BITFIELDS = 0, 3
_UNCOMPRESSED, _PACKBITS, _ZSTD = 1, 32773, 50000
_ANY_END = (_UNCOMPRESSED, _PACKBITS, _ZSTD)
"""Compressions of a TIFF whose pieces may end in black pixels as they are."""
_TIFF_ZEROS = 64
"""Zeros that no other compressed piece ends in: a checksum (Deflate) or an end code (LZW, JPEG)
stands there."""


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file.

    DICOM PS3.10, section 7.1: a preamble and a prefix. Files without them are known by their
    elements.
    """
    return data[128:132] == b"DICM" or is_bare_data_set(data)


def unread_format(data: bytes) -> str | None:
    """Name of a well-known format that is not read here, or None."""
    if data[4:8] == b"ftyp":
        return _FTYP.get(data[8:12], "HEIF or a video")
    if _NETPBM.match(data, 0, _HEAD):
        return "PGM" if data[1:2] in b"25" else "PPM"
    found = _UNREAD_START.match(data)
    return _UNREAD[found[0]] if found else None


def known_kind(data: bytes) -> str | None:
    """Name of the format, of those that Pillow opens, that the bytes begin with, or None."""
    if data[8:12] == b"WEBP":
        return "WebP"
    if _is_bmp(data):
        return "BMP"
    return next((name for magic, name in _KNOWN.items() if data.startswith(magic)), None)


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG, PNG, WebP, BMP or TIFF file ends before its container says so."""
    found = _ENDING_START.match(data)
    try:
        return found is not None and _ENDS[found[0]](data)
    except struct.error:  # not even the header is whole
        return True


def is_damaged(data: bytes) -> bool:
    """Whether the pixels of a whole PNG file fail their checksum; Pillow does not check it."""
    if not data.startswith(_PNG):
        return False
    content = memoryview(data)
    for kind, at, length in png_chunks(data):  # PNG, section 5.3: the CRC covers kind and data
        end = at + 8 + length
        (stated,) = struct.unpack_from(">I", data, end)
        if kind == b"IDAT" and zlib.crc32(content[at + 4 : end]) != stated:
            return True
    return False


def _jpeg_is_cut_off(data: bytes) -> bool:
    # ITU-T T.81, B.1.1: a file ends at its EOI. An EOI inside a segment, as of a thumbnail, and
    # bytes after the end (a vendor's data, padding) do not count.
    if data.endswith(b"\xff\xd9"):
        return False
    at = 2
    while marker := _JPEG_MARKER.search(data, at):
        at = marker.end()
        if data[at - 1] == 0xD9:
            return False
        if data[at - 1] not in (0x01, 0xD8):  # the two that have no length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return True


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG of 8 bits, of no stated orientation and no list of more pictures.

    Where its header leaves a doubt the answer is False, and Pillow opens it.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while segment := _JPEG_SEGMENT.match(data, at):
        marker, length, holds = segment.groups()
        if marker == _JPEG_SCAN:  # the pixels begin
            return True
        if holds in _NOT_PLAIN or (marker in _JPEG_FRAMES and holds[:1] != b"\x08"):
            return False
        ends = at + 2 + int.from_bytes(length, "big")
        if marker == _JPEG_APP1 and data.find(XMP_ORIENTATION, at, ends) >= 0:
            return False
        at = ends
    return False


def _png_is_cut_off(data: bytes) -> bool:
    return all(kind != b"IEND" for kind, _, _ in png_chunks(data))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of data of each whole chunk up to the last."""
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            return
        yield kind, at, length
        at += 12 + length


def _webp_is_cut_off(data: bytes) -> bool:
    if data[8:12] != b"WEBP":
        return False
    (size,) = struct.unpack_from("<I", data, 4)  # WebP Container Specification, "RIFF file format"
    return bool(len(data) < 8 + size)


def ends_in_zeros(data: bytes, end: int, most: int) -> bool:
    """Whether a piece of compressed data ends in zeros: a copy that reserved its length stopped."""
    piece = data[max(0, end - most) : end]
    return len(piece) == most and not piece.strip(b"\0")


def _is_bmp(data: bytes) -> bool:
    # A text may begin with "BM" as well, but then not with these numbers.
    if not data.startswith(b"BM") or len(data) < 18:
        return False
    start, header = struct.unpack_from("<II", data, 10)
    return bool(26 <= start <= 4096 and 12 <= header <= 124)


def _bmp_is_cut_off(data: bytes) -> bool:
    # BITMAPFILEHEADER and BITMAPINFOHEADER (Windows GDI). Writers state wrong file sizes, so the
    # size is computed from the rows.
    if not _is_bmp(data):
        return False
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, size = _BI_RGB, 0
    else:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    if compression not in (_BI_RGB, _BI_BITFIELDS):
        return bool(start + size > len(data))
    row = (abs(width) * bits + 31) // 32 * 4
    return bool(start + row * abs(height) > len(data))


def _tiff_is_cut_off(data: bytes) -> bool:
    page = tiff.read_directory(data)
    starts, sizes = (
        page.tags.get(strips, ()) + page.tags.get(tiles, ())
        for strips, tiles in ((tiff.STARTS, tiff.TILE_STARTS), (tiff.SIZES, tiff.TILE_SIZES))
    )
    end = max((start + size for start, size in zip(starts, sizes, strict=False)), default=0)
    if not page.is_whole or end > len(data):
        return True
    ends = page.value(tiff.COMPRESSION, _UNCOMPRESSED) not in _ANY_END
    return ends and ends_in_zeros(data, int(end), _TIFF_ZEROS)


_ENDS: dict[bytes, Callable[[bytes], bool]] = {
    b"\xff\xd8": _jpeg_is_cut_off,
    _PNG: _png_is_cut_off,
    b"RIFF": _webp_is_cut_off,
    b"BM": _bmp_is_cut_off,
    **dict.fromkeys(tiff.MAGIC, _tiff_is_cut_off),
}
_ENDING_START = re.compile(b"|".join(map(re.escape, _ENDS)))
