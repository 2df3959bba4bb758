"""The directory of a TIFF file, classic or BigTIFF, and pictures that Pillow does not open.

Pillow opens no BigTIFF with its highest bytes first, and no picture whose directory lacks, or has
beside what it needs, a tag that no pixel depends on. These are given another directory. What it
does not open then, such as 16 bits that are WhiteIsZero with the highest bytes first, OpenCV
decodes; not 8 bits, where it passes over damage. What it decodes is stated here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    from PIL import Image

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF and a BigTIFF begin, in either order of bytes (TIFF 6.0, section 2)."""
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STARTS, ORIENTATION, SAMPLES, STRIP_ROWS, SIZES = 273, 274, 277, 278, 279
ACROSS, DOWN, PLANES, TILE_WIDTH, TILE_ROWS = 282, 283, 284, 322, 323
TILE_STARTS, TILE_SIZES, EXTRA, FORMAT, JPEG_TABLES = 324, 325, 338, 339, 347
_READ = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STARTS, ORIENTATION, SAMPLES),
    *(STRIP_ROWS, SIZES, ACROSS, DOWN, PLANES, TILE_WIDTH, TILE_ROWS, TILE_STARTS, TILE_SIZES),
    *(EXTRA, FORMAT, JPEG_TABLES),
}
_SCALARS = {WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ACROSS, DOWN, PLANES}
# Kind of a value -> struct's letter (TIFF 6.0, section 2, "Types"; BigTIFF has three more).
_KINDS = dict(enumerate("BBHIIBBHIIIQI", start=1)) | dict.fromkeys((16, 17, 18), "Q")
_RATIONAL = {5, 10}
"""Kinds of two numbers each."""
_SHORT, _LONG, _LONG8 = 3, 4, (16, 17, 18)
_PRIVATE = 32768
_COPIED = {
    *_READ,
    *(296, 317, 320),  # unit of the resolution, predictor, palette
    *(529, 530, 531, 532),  # YCbCr
}
"""Tags that pixels, their turn and their shape depend on."""
_MOST_PAGES = 1000
_MOST_VALUES = 1 << 20
_MOST_ENTRIES = 65535
"""As the classic TIFF can have, and libtiff takes of the other."""
_SIDEWAYS = (5, 6, 7, 8)
UNCOMPRESSED, BLACK_IS_ZERO, _LOWEST_BIT_FIRST, IN_PLANES = 1, 1, 2, 2
_TURNED_FIRST = {5, 8, 32773, 32946}
"""LZW, deflate and PackBits: their bits are turned before they are decoded; JPEG's never are."""
_OPENCV_READS = {UNCOMPRESSED, *_TURNED_FIRST}
_UNSIGNED = {1, 4}
"""Unsigned integers, and pixels of no stated kind, taken for such (TIFF 6.0, section 19)."""
_TURNED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


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
        start: Its offset.
    """

    tags: dict[int, tuple[Any, ...]]
    is_whole: bool
    start: int

    def value(self, tag: int, absent: Any) -> Any:
        """The first value of a tag."""
        return (self.tags.get(tag) or (absent,))[0]


class _Entry(NamedTuple):
    """A tag of a directory, the kind and number of its values, and where they stand."""

    tag: int
    kind: int
    number: int
    layout: str
    place: int

    def end(self) -> int:
        return self.place + struct.calcsize(self.layout)


def read_directory(data: bytes) -> Directory:
    """The first directory.

    Tags with more values than any image has strips are not read, nor those whose values, with those
    of the tags before them, take more than the file.

    Raises:
        struct.error: The file ends within it.
    """
    start = _first(data)
    entries, is_whole = _entries(data, start)
    tags: dict[int, tuple[Any, ...]] = {}
    left = len(data)
    for entry in entries:
        is_within = entry.end() <= len(data)
        is_whole &= is_within or entry.tag >= _PRIVATE
        if entry.tag in _READ and is_within and entry.number <= _MOST_VALUES:
            if (left := left - entry.end() + entry.place) < 0:
                break
            found = _unpack(entry.layout, data, entry.place)
            tags[entry.tag] = _ratios(found) if entry.kind in _RATIONAL else found
    return Directory(tags, is_whole, start)


def _order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"


def _numbers(data: bytes) -> _Numbers:
    return _BIG if data[:4] in MAGIC[2:] else _CLASSIC


def _first(data: bytes) -> int:
    numbers = _numbers(data)
    return int(_unpack(_order(data) + numbers.value, data, numbers.first)[0])


def _entries(data: bytes, at: int) -> tuple[list[_Entry], bool]:
    """The entries of a directory, and whether their number can be."""
    order, numbers = _order(data), _numbers(data)
    width = struct.calcsize(numbers.value)
    (count,) = _unpack(order + numbers.entries, data, at)
    at += struct.calcsize(numbers.entries)
    entries = []
    for _ in range(min(count, _MOST_ENTRIES)):
        tag, kind, values = _unpack(order + numbers.entry, data, at)
        at += struct.calcsize("=" + numbers.entry)
        layout = f"{order}{values * (1 + (kind in _RATIONAL))}{_KINDS.get(kind, 'B')}"
        place = at
        if struct.calcsize(layout) > width:
            (place,) = _unpack(order + numbers.value, data, at)
        at += width
        entries.append(_Entry(tag, kind, values, layout, place))
    _unpack(order + numbers.value, data, at)
    return entries, 0 < count <= _MOST_ENTRIES


def _following(data: bytes, at: int) -> int:
    """The offset of the directory behind one, 0 where there is none."""
    order, numbers = _order(data), _numbers(data)
    (count,) = _unpack(order + numbers.entries, data, at)
    entry = struct.calcsize("=" + numbers.entry) + struct.calcsize(numbers.value)
    at += struct.calcsize(numbers.entries) + min(count, _MOST_ENTRIES) * entry
    return int(_unpack(order + numbers.value, data, at)[0])


def _unpack(layout: str, data: bytes, at: int) -> tuple[Any, ...]:
    if at > len(data):  # which may be more than an index can be
        raise struct.error(f"nothing at {at}")
    return struct.unpack_from(layout, data, at)


def _ratios(found: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(
        above / below if below else 0.0
        for above, below in zip(found[::2], found[1::2], strict=True)
    )


class Piece(NamedTuple):
    """A strip or a tile of uncompressed pixels.

    Attributes:
        start: Offset in the file.
        row_bytes: Length of a row of it, bytes, with what stands beside the image.
        rows: Rows that the file has of it, with those that stand below the image.
        top: The first of its rows in the image; planes stand below each other.
        bottom: One behind the last of its rows in the image.
        left: The first of its columns in the image.
        right: One behind the last of its columns in the image.
    """

    start: int
    row_bytes: int
    rows: int
    top: int
    bottom: int
    left: int
    right: int


def pieces(page: Directory) -> tuple[list[Piece], int]:
    """Strips or tiles of uncompressed pixels as they follow in the file (TIFF 6.0, 8 and 15).

    Returns:
        The pieces, none where the pixels are compressed or the directory contradicts itself; and
        the length of a pixel, bytes. Pixels of no whole number of bytes are counted by the byte.
    """
    samples, bits, width, height = _stated(page, {SAMPLES: 1, BITS: 1, WIDTH: 0, HEIGHT: 0})
    planes = samples if page.value(PLANES, 1) == IN_PLANES else 1
    pixel = samples // max(1, planes) * bits
    unit = pixel if pixel % 8 == 0 else 8
    starts, across, down = page.tags.get(STARTS, ()), width, *_stated(page, {STRIP_ROWS: height})
    if is_tiled := not starts:
        starts = page.tags.get(TILE_STARTS, ())
        across, down = _stated(page, {TILE_WIDTH: 0, TILE_ROWS: 0})
    if page.value(COMPRESSION, 1) != UNCOMPRESSED or min(pixel, width, height, across, down) < 1:
        return [], 1
    columns, rows = -(-width // across), -(-height // down)
    if len(starts) != columns * rows * planes:
        return [], 1
    found = []
    for number, start in enumerate(starts):
        plane, place = divmod(number, columns * rows)
        top, left = place // columns * down, place % columns * across
        bottom, right = min(top + down, height), min(left + across, width)
        first = plane * height
        found.append(
            Piece(
                int(start),
                -(-across * pixel // 8),
                down if is_tiled else bottom - top,
                first + top,
                first + bottom,
                left * pixel // unit,
                -(-right * pixel // unit),
            )
        )
    return sorted(found), unit // 8


def _stated(page: Directory, absent: dict[int, int]) -> list[int]:
    """The first values of some tags, or else those that stand there."""
    return [int(page.value(tag, value)) for tag, value in absent.items()]


def usual_tiff(data: bytes) -> bytes:
    """The picture as a classic TIFF whose directory has what Pillow asks for, and no more.

    A grey picture that states no photometric interpretation is taken for BlackIsZero, as libtiff
    takes it (tif_getimage.c, TIFFRGBAImageBegin). Whether samples stand in planes means nothing
    where a pixel has one (TIFF 6.0, section 8). Pixels stay where they are.

    Args:
        data: A file with one directory.

    Raises:
        struct.error: It ends within its directory.
        ValueError: Its values take more than the file.
    """
    order, page = _order(data), read_directory(data)
    entries, _ = _entries(data, page.start)
    tags: dict[int, tuple[int, int, bytes]] = {}
    left = len(data)
    for entry in entries:
        if entry.tag in _COPIED - tags.keys() and entry.end() <= len(data):
            if (left := left - entry.end() + entry.place) < 0:
                raise ValueError("values of tags overlap")
            tags[entry.tag] = _as_classic(entry, data)
    for tag, values in _usual_tags(page).items():
        tags.pop(tag, None)
        if values:
            tags[tag] = _SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values)
    pixels = data
    if page.value(FILL_ORDER, 1) == _LOWEST_BIT_FIRST and (turned := _with_turned_bits(data, page)):
        tags[FILL_ORDER] = _SHORT, 1, struct.pack(order + "H", 1)
        pixels = turned
    return _with_directory(pixels, order, tags)


def _as_classic(entry: _Entry, data: bytes) -> tuple[int, int, bytes]:
    """Kind, number and bytes of an entry's values; a BigTIFF's numbers of 64 bits get 32."""
    content = data[entry.place : entry.end()]
    if entry.kind not in _LONG8:
        return entry.kind, entry.number, content
    numbers = (min(number, 0xFFFFFFFF) for number in _unpack(entry.layout, data, entry.place))
    return _LONG, entry.number, struct.pack(f"{entry.layout[0]}{entry.number}I", *numbers)


def _usual_tags(page: Directory) -> dict[int, Sequence[int]]:
    """Tags that are to have other values, or none."""
    changed: dict[int, Sequence[int]] = {}
    samples, bits = page.value(SAMPLES, 1), page.value(BITS, 1)
    if 1 in (samples, samples - len(page.tags.get(EXTRA, ()))):
        changed[PHOTOMETRIC] = (page.value(PHOTOMETRIC, BLACK_IS_ZERO),)
    if samples == 1:
        changed[PLANES] = ()
    if _mode(page) in _READ_MODES:
        changed |= {EXTRA: (), BITS: (bits,) * samples}
    if {*page.tags.get(FORMAT, ())} <= _UNSIGNED:
        changed[FORMAT] = ()
    return changed


def _with_turned_bits(data: bytes, page: Directory) -> bytes | None:
    """The file with the bits of each byte of its pixels turned (TIFF 6.0, section 8, FillOrder)."""
    found = [(piece.start, piece.rows * piece.row_bytes) for piece in pieces(page)[0]]
    if page.value(COMPRESSION, UNCOMPRESSED) in _TURNED_FIRST:
        starts, sizes = (STARTS, SIZES) if STARTS in page.tags else (TILE_STARTS, TILE_SIZES)
        found = list(zip(page.tags.get(starts, ()), page.tags.get(sizes, ()), strict=False))
    if sum(size for _, size in found) > len(data):
        return None
    turned = bytearray(data)
    for start, size in found:
        place = slice(start, start + size)
        turned[place] = data[place].translate(_TURNED_BITS)
    return bytes(turned) if found else None


def _with_directory(data: bytes, order: str, tags: dict[int, tuple[int, int, bytes]]) -> bytes:
    """The file as a classic TIFF with this directory, at its end."""
    start = len(data) + len(data) % 2
    behind = start + 2 + 12 * len(tags) + 4
    directory, values = struct.pack(order + "H", len(tags)), b""
    for tag, (kind, count, content) in sorted(tags.items()):
        directory += struct.pack(order + "HHI", tag, kind, count)
        if len(content) > 4:
            directory += struct.pack(order + "I", behind + len(values))
            values += content + bytes(len(content) % 2)
        else:
            directory += content.ljust(4, b"\0")
    head = data[:2] + struct.pack(order + "HI", 42, start)
    return b"".join((head, data[8:], bytes(len(data) % 2), directory, bytes(4), values))


@dataclass(frozen=True)
class OpenCvTiff:
    """A TIFF that Pillow does not open, with what is asked of a `PIL.Image.Image`.

    Attributes:
        size: Width and height, upright.
        mode: Pillow's name of its pixels, or what they are where they are not read.
        tag_v2: Its tags.
    """

    size: tuple[int, int]
    mode: str
    tag_v2: dict[int, Any]
    format: ClassVar = "TIFF"


def open_for_opencv(data: bytes) -> OpenCvTiff:
    """What a TIFF says of itself.

    Raises:
        struct.error: It ends within its directory.
    """
    first = read_directory(data)
    size = first.value(WIDTH, 0), first.value(HEIGHT, 0)
    if first.value(ORIENTATION, 1) in _SIDEWAYS:
        size = size[::-1]
    tags = {tag: values[0] if tag in _SCALARS else values for tag, values in first.tags.items()}
    return OpenCvTiff(size, _mode(first), tags)


def count_pages(data: bytes) -> int:
    """How many directories there are; the last of a chain may point back to one before it.

    Raises:
        NotAssessedError: It ends within a directory.
    """
    at, seen = _first(data), set[int]()
    try:
        while at and at not in seen and len(seen) < _MOST_PAGES:
            seen.add(at)
            at = _following(data, at)
    except struct.error as error:
        raise NotAssessedError(Reason.TRUNCATED, "a page is missing") from error
    return len(seen)


def unread_compression(data: bytes) -> str:
    """Why OpenCV does not decode a TIFF of 16 bits, or nothing where its compression is read."""
    found = read_directory(data).value(COMPRESSION, UNCOMPRESSED)
    return "" if found in _OPENCV_READS else f"TIFF of a kind not read, compression {found}"


_READ_MODES = {"L", "I;16", "RGB"}


def _mode(page: Directory) -> str:
    """Pillow's name of grey or RGB pixels of 8 or 16 bits, else the kind in words."""
    samples = page.value(SAMPLES, 1)
    photometric = page.value(PHOTOMETRIC, BLACK_IS_ZERO if samples == 1 else "not stated")
    bits = page.tags.get(BITS, (1,))
    if (samples, len({*bits})) in ((1, 1), (3, 1)) and bits[0] in (8, 16):
        if samples == 1 and photometric in (0, 1):
            return "L" if bits[0] == 8 else "I;16"
        if samples == 3 and photometric == 2:
            return "RGB"
    kind = f"{samples} of {max(bits)} bits a pixel"
    if samples > 1 and page.value(PLANES, 1) == IN_PLANES:
        kind += " in separate planes"
    return f"TIFF of another kind: {kind}, photometric interpretation {photometric}"


def take_palette_of_8_bits(picture: Image.Image, palette: Sequence[int]) -> None:
    """Some writers put 8 bits into the palette's 16 (libtiff, tif_getimage.c: checkcmap).

    Args:
        picture: Whose pixels are indices.
        palette: As the file has it: all red values, then all green and all blue ones.
    """
    size, rest = divmod(len(palette), 3)
    if not rest and max(palette) < 256:
        colours = zip(palette[:size], palette[size : 2 * size], palette[2 * size :], strict=True)
        picture.putpalette(bytes(value for colour in colours for value in colour))
