"""The directory of a TIFF file, classic or BigTIFF, and pictures that Pillow does not open.

Pillow opens neither a BigTIFF with its highest bytes first nor one that is WhiteIsZero with 16 bits
and its highest bytes first. OpenCV decodes both, and is told here what it decodes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF and a BigTIFF begin, in either order of bytes (TIFF 6.0, section 2)."""
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STARTS, ORIENTATION, SAMPLES, SIZES, ACROSS, DOWN, PLANES = 273, 274, 277, 279, 282, 283, 284
TILE_STARTS, TILE_SIZES, EXTRA, FORMAT = 324, 325, 338, 339
_READ = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STARTS, ORIENTATION, SAMPLES, SIZES),
    *(ACROSS, DOWN, PLANES, TILE_STARTS, TILE_SIZES, EXTRA, FORMAT),
}
_SCALARS = {WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ACROSS, DOWN, PLANES}
# Kind of a value -> struct's letter (TIFF 6.0, section 2, "Types"; BigTIFF has three more).
_KINDS = dict(enumerate("BBHIIBBHIIIQI", start=1)) | dict.fromkeys((16, 17, 18), "Q")
_RATIONAL = {5, 10}
"""Kinds of two numbers each."""
_PRIVATE = 32768
_MOST_PAGES = 1000
_MOST_ENTRIES = 65535
"""As the classic TIFF can have, and libtiff takes of the other."""
_SIDEWAYS = (5, 6, 7, 8)


class _Numbers(NamedTuple):
    """How wide the numbers of a directory are."""

    first: int
    entries: str
    entry: str
    value: str


_CLASSIC, _BIG = _Numbers(4, "H", "HHI", "I"), _Numbers(8, "Q", "HHQ", "Q")


@dataclass(frozen=True)
class Directory:
    """An image file directory.

    Attributes:
        tags: Values of those tags that are read here, by their numbers.
        is_whole: Whether all values of the standard's tags lie within the file.
        following: Offset of the next directory, 0 where there is none.
    """

    tags: dict[int, tuple[Any, ...]]
    is_whole: bool
    following: int

    def value(self, tag: int, absent: int) -> Any:
        """The first value of a tag."""
        return (self.tags.get(tag) or (absent,))[0]


def read_directory(data: bytes, at: int | None = None) -> Directory:
    """The directory at an offset, the first where none is told.

    Raises:
        struct.error: The file ends within it.
    """
    order = "<" if data.startswith(b"II") else ">"
    numbers = _BIG if data[:4] in MAGIC[2:] else _CLASSIC
    width = struct.calcsize(numbers.value)
    if at is None:
        (at,) = _unpack(order + numbers.value, data, numbers.first)
    (entries,) = _unpack(order + numbers.entries, data, at)
    at += struct.calcsize(numbers.entries)
    tags: dict[int, tuple[Any, ...]] = {}
    is_whole = 0 < entries <= _MOST_ENTRIES
    for _ in range(min(entries, _MOST_ENTRIES)):
        tag, kind, count = _unpack(order + numbers.entry, data, at)
        at += struct.calcsize("=" + numbers.entry)
        layout = f"{order}{count * (1 + (kind in _RATIONAL))}{_KINDS.get(kind, 'B')}"
        place = at
        if struct.calcsize(layout) > width:
            (place,) = _unpack(order + numbers.value, data, at)
        at += width
        is_within = place + struct.calcsize(layout) <= len(data)
        is_whole &= is_within or tag >= _PRIVATE
        if tag in _READ and is_within:
            found = _unpack(layout, data, place)
            tags[tag] = _ratios(found) if kind in _RATIONAL else found
    (following,) = _unpack(order + numbers.value, data, at)
    return Directory(tags, is_whole, following)


def _unpack(layout: str, data: bytes, at: int) -> tuple[Any, ...]:
    if at > len(data):  # which may be more than an index can be
        raise struct.error(f"nothing at {at}")
    return struct.unpack_from(layout, data, at)


def _ratios(found: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(
        above / below if below else 0.0
        for above, below in zip(found[::2], found[1::2], strict=True)
    )


@dataclass(frozen=True)
class OpenCvTiff:
    """A TIFF that Pillow does not open, with what is asked of a `PIL.Image.Image`.

    Attributes:
        size: Width and height, upright.
        mode: Pillow's name of its pixels, or what they are where they are not read.
        n_frames: Directories.
        tag_v2: Its tags.
    """

    size: tuple[int, int]
    mode: str
    n_frames: int
    tag_v2: dict[int, Any]
    format: ClassVar = "TIFF"


def open_for_opencv(data: bytes) -> OpenCvTiff:
    """What a TIFF says of itself.

    Raises:
        NotAssessedError: It ends within a directory.
    """
    first = read_directory(data)
    size = first.value(WIDTH, 0), first.value(HEIGHT, 0)
    if first.value(ORIENTATION, 1) in _SIDEWAYS:
        size = size[::-1]
    tags = {tag: values[0] if tag in _SCALARS else values for tag, values in first.tags.items()}
    try:
        pages = _pages(data, first)
    except struct.error as error:
        raise NotAssessedError(Reason.TRUNCATED, "a page is missing") from error
    return OpenCvTiff(size, _mode(first), pages, tags)


def _pages(data: bytes, page: Directory) -> int:
    count = 1
    while page.following and count < _MOST_PAGES:
        page = read_directory(data, page.following)
        count += 1
    return count


def _mode(page: Directory) -> str:
    """Pillow's name of grey or RGB pixels of 8 or 16 bits, else the kind in words."""
    samples, photometric = page.value(SAMPLES, 1), page.value(PHOTOMETRIC, 0)
    bits = page.tags.get(BITS, (1,))
    if (samples, len({*bits})) in ((1, 1), (3, 1)) and bits[0] in (8, 16):
        if samples == 1 and photometric in (0, 1):
            return "L" if bits[0] == 8 else "I;16"
        if samples == 3 and photometric == 2:
            return "RGB"
    kind = f"{samples} of {max(bits)} bits a pixel"
    return f"TIFF of another kind: {kind}, photometric interpretation {photometric}"
