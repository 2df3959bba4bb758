"""What the outside of a file tells before a decoder is asked: its kind, and whether it is whole."""

from __future__ import annotations

import struct
from collections.abc import Callable

_FOREIGN = {
    b"%PDF": "PDF",
    b"PK\x03\x04": "a ZIP archive or office document",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"SIMPLE  =": "FITS",
    b"\x89HDF\r\n": "HDF5",
    b"\x1f\x8b": "a gzip archive (NIfTI?)",
}
_FTYP = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"isom": "a video"}


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file (DICOM PS3.10, section 7.1: preamble and prefix)."""
    return data[128:132] == b"DICM"


def foreign_format(data: bytes) -> str | None:
    """Name of a well-known format that is not read here, or None."""
    if data[4:8] == b"ftyp":
        return _FTYP.get(data[8:12], "HEIF or a video")
    return next((name for magic, name in _FOREIGN.items() if data.startswith(magic)), None)


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG, PNG, WebP, BMP or TIFF file ends before its container says so.

    True is certain for all but JPEG, where bytes after the end marker look the same: decode such
    a file with a decoder that raises.
    """
    try:
        return any(data.startswith(magic) and ends(data) for magic, ends in _ENDS.items())
    except struct.error:  # not even the header is whole
        return True


def _jpeg_is_cut_off(data: bytes) -> bool:
    return not data.rstrip(b"\0").endswith(b"\xff\xd9")  # ITU-T T.81, B.2.1: EOI


def _png_is_cut_off(data: bytes) -> bool:
    return b"IEND\xaeB`\x82" not in data[-65536:]


def _webp_is_cut_off(data: bytes) -> bool:
    size = int(struct.unpack_from("<I", data, 4)[0])
    return data[8:12] == b"WEBP" and len(data) < 8 + size


def _bmp_is_cut_off(data: bytes) -> bool:
    size, _, start = (int(value) for value in struct.unpack_from("<III", data, 2))
    return 26 <= start <= 4096 and len(data) < max(size, start)


def _tiff_is_cut_off(data: bytes) -> bool:
    # TIFF 6.0, section 2: header, then the image file directory: a count and entries of 12 bytes.
    order = "<" if data.startswith(b"II") else ">"
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, offset)
    return bool(offset + 2 + 12 * entries > len(data))


_ENDS: dict[bytes, Callable[[bytes], bool]] = {
    b"\xff\xd8": _jpeg_is_cut_off,
    b"\x89PNG\r\n\x1a\n": _png_is_cut_off,
    b"RIFF": _webp_is_cut_off,
    b"BM": _bmp_is_cut_off,
    b"II*\0": _tiff_is_cut_off,
    b"MM\0*": _tiff_is_cut_off,
}
