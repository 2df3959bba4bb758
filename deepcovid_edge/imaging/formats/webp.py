"""Damage in the pixels of a WebP, which have no checksum: libwebp decodes on.

A decoder of a whole image reads its data to the end. Behind damage it reads other codes, and so
either lacks data, which libwebp tells, or leaves some unread, which it passes over. Zeros alone
tell nothing, as a black border becomes thousands of them; those that fill whole sectors of a disk
do, and so do those from a sector to the end. Still missed are 3 to 20 in a hundred sectors of a
lossless WebP (by its method) that hold other data: its codes find their place again, and nothing is
left over.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import ONE_GREY
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    from PIL import Image

_ZEROS = 32
"""A WebP ends in so many zeros where much of its last rows is of one grey, or was never written."""
_UNREAD = {b"VP8 ": 8, b"VP8L": 4}
"""Bytes at the end that no decoder of a whole image leaves unread: in 31,000 files of libwebp, of
all its methods and qualities, it leaves up to 3 and 1; encoders of VP8 may add 4 (RFC 6386, 7.3).
"""
_SECTOR = 512
_LOST = re.compile(rb"\0{512,}|\xff{512,}")
"""What sectors hold that were never written, or erased."""


def check_webp(picture: Image.Image, data: bytes) -> None:
    """Refuse pixels that are damaged, where that shows.

    Args:
        picture: The picture, decoded.
        data: Its file.

    Raises:
        NotAssessedError: The data end in zeros from a sector on amid a row, lack sectors, or are
            longer than what is decoded.
    """
    place = _pixels(data)
    if place is None:
        return
    pixels = np.asarray(picture)
    if _lacks_its_end(data[: place.stop]) and np.ptp(pixels[-1, :, :3]) > ONE_GREY:
        raise NotAssessedError(Reason.TRUNCATED, "its data end in zeros")
    if _lacks_sectors(data, place):
        raise NotAssessedError(Reason.DECODE, "its pixels are damaged: sectors are empty")
    size = place.stop - place.start - _UNREAD[data[place.start - 8 : place.start - 4]]
    if size > 0 and _decodes_alike(_shortened(data, place, size), picture):
        raise NotAssessedError(Reason.DECODE, "its pixels are damaged: data are left over")


def _pixels(data: bytes) -> slice | None:
    """Where the pixels stand; metadata may follow them (WebP Container Specification)."""
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if kind in _UNREAD:
            return slice(at, at + length)
        at += length + length % 2
    return None


def _lacks_its_end(data: bytes) -> bool:
    """Whether zeros stand from a sector, or the byte before it, to the end: a copy that stopped."""
    start = len(data.rstrip(b"\0"))
    return len(data) - start >= _ZEROS and -start % _SECTOR <= 1


def _lacks_sectors(data: bytes, place: slice) -> bool:
    """Whether zeros or bytes FF fill whole sectors, and at most one byte beside them."""
    runs = _LOST.finditer(data, place.start, place.stop)
    return any(-run.start() % _SECTOR <= 1 and run.end() % _SECTOR <= 1 for run in runs)


def _shortened(data: bytes, place: slice, size: int) -> bytes:
    """The file up to so many bytes of its pixels."""
    pixels = data[place.start : place.start + size] + bytes(size % 2)
    body = data[8 : place.start - 4] + size.to_bytes(4, "little") + pixels
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _decodes_alike(data: bytes, picture: Image.Image) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as other:
            return np.array_equal(np.asarray(other), np.asarray(picture))
    except (OSError, ValueError):  # it lacks what was cut off
        return False
