"""Damage in the compressed pixels of a TIFF that libtiff passes over: it prints, and reads on.

It does so where the checksum of Deflate fails, where libjpeg warns, and where PackBits makes more
bytes than the rows take. So each strip or tile of these compressions is read here once more, for
that alone; those of others tell no damage.
"""

from __future__ import annotations

import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import simplejpeg

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.formats.jpeg import decode_jpeg, jpeg_with_end, segments
from deepcovid_edge.imaging.formats.tiff.directory import (
    BITS,
    COMPRESSION,
    HEIGHT,
    IN_PLANES,
    JPEG_TABLES,
    PHOTOMETRIC,
    PLANES,
    SAMPLES,
    SIZES,
    STARTS,
    STRIP_ROWS,
    TILE_ROWS,
    TILE_SIZES,
    TILE_STARTS,
    TILE_WIDTH,
    UNCOMPRESSED,
    WIDTH,
    Directory,
    read_directory,
)
from deepcovid_edge.imaging.radiograph import MAX_PIXELS
from deepcovid_edge.imaging.signatures import is_cut_off
from deepcovid_edge.reasons import Reason

_JPEG, _DEFLATE, _PACKBITS = 7, (8, 32946), 32773
"""TIFF 6.0, supplement 2 and section 9; the second of Deflate is its earlier number."""
_YCBCR = 6
_BLOCK = 1 << 16
"""Bytes that are inflated at once: they become 66 MB at most (zlib: 1032 to 1)."""
_SURPLUS = 1024
_MOST_TIMES = 16
"""How often each byte of a file may be read: tiles of one grey may share theirs."""
_MOST_TABLES = 8192
"""Bytes of the tables of all strips: 8 of Huffman and 4 of quantisation take under 4 KiB."""
_BLOCK_ROWS = 32
"""Rows of the highest blocks of a JPEG (ITU-T T.81, A.2.4): some writers fill the last ones."""
_MOST_PIXELS = 4 * MAX_PIXELS
"""Of all tiles, with what lies beside the picture."""
_FRAMES = {*range(0xC0, 0xCC)} - {0xC4, 0xC8}
"""Markers of a frame, coded with loss or without (ITU-T T.81, table B.1)."""
_TAKES = (*range(2, 130), 1, *[2] * 127)
_MAKES = (*range(1, 129), 0, *range(128, 1, -1))
"""Bytes that a run of PackBits takes, by its first one, and that it makes (TIFF 6.0, section 9)."""
_PADDING = b"\0\x80"
"""What may stand behind the runs: zeros, and the byte that means nothing."""
_STRAY = 4
"""Bytes of anything that may stand there too: some writers count a few too many."""
_COLOURS = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}
_END = b"\xff\xd9"


@dataclass(frozen=True)
class _Grid:
    """Strips or tiles.

    Attributes:
        width: Of one, pixels.
        rows: Of one; the last strip may have fewer.
        last_rows: Least of the last one; those of a tile are always whole.
        row_bytes: Of a row of one once unpacked.
        number: How many there are.
        planes: How many planes they make.
    """

    width: int
    rows: int
    last_rows: int
    row_bytes: int
    number: int
    planes: int

    @property
    def size(self) -> int:
        """Most bytes of one once unpacked."""
        return self.rows * self.row_bytes

    def sizes(self, number: int) -> range:
        """Lengths that one may have once unpacked, bytes: some writers fill the last strip."""
        is_last = (number + 1) % (self.number // self.planes) == 0
        least = self.last_rows if is_last else self.rows
        return range(least * self.row_bytes, self.size + 1, self.row_bytes)


def check_compressed(data: bytes) -> None:
    """Refuse a TIFF whose pixels are damaged, where that shows.

    Args:
        data: A file whose size and tiles have been checked.

    Raises:
        NotAssessedError: A strip or a tile fails its checksum, libjpeg warns of it, or its runs
            are not as long as its rows.
        struct.error: The file ends within its directory.
    """
    page = read_directory(data)
    compression = page.value(COMPRESSION, UNCOMPRESSED)
    if compression not in (_JPEG, _PACKBITS, *_DEFLATE):
        return
    if compression == _PACKBITS and page.value(PHOTOMETRIC, 0) == _YCBCR:
        return  # its rows may lie in blocks
    grid = _grid(page)
    tables = bytes(page.tags.get(JPEG_TABLES, ())).rstrip(b"\0").removesuffix(_END)
    if len(tables) > _MOST_TABLES:
        raise NotAssessedError(Reason.DECODE, f"JPEG tables of {len(tables)} bytes")
    has_ends = bool(page.tags.get(SIZES) or page.tags.get(TILE_SIZES))
    for number, piece in enumerate(_pieces(data, page, grid.number)):
        try:
            if compression == _JPEG:
                _check_jpeg(tables + piece[2:] if tables else bytes(piece), grid)
            elif compression == _PACKBITS:
                _check_packbits(bytes(piece), grid.sizes(number), has_end=has_ends)
            else:
                _check_deflated(piece, grid.size)
        except (ValueError, zlib.error) as error:
            detail = f"strip or tile {number + 1} is damaged: {one_line(error)}"
            raise NotAssessedError(Reason.DECODE, detail) from error


def _grid(page: Directory) -> _Grid:
    width, height = page.value(WIDTH, 0), page.value(HEIGHT, 0)
    across, down = width, min(page.value(STRIP_ROWS, height), height)
    if is_tiled := STARTS not in page.tags:
        across, down = page.value(TILE_WIDTH, 0), page.value(TILE_ROWS, 0)
    if min(across, down) < 1:
        raise NotAssessedError(Reason.DECODE, f"strips or tiles of {across} x {down} pixels")
    samples = page.value(SAMPLES, 1)
    planes = samples if page.value(PLANES, 1) == IN_PLANES else 1
    number = -(-width // across) * -(-height // down)
    if number * across * down > _MOST_PIXELS:
        raise NotAssessedError(Reason.TOO_BIG, f"{number} tiles of {across} x {down} pixels")
    bits = max(page.tags.get(BITS, (1,))) * samples // planes
    last = down if is_tiled else (height - 1) % down + 1
    return _Grid(across, down, last, -(-across * bits // 8), number * planes, planes)


def _pieces(data: bytes, page: Directory, number: int) -> Iterator[memoryview]:
    """What stands in the file of each strip or tile; up to the next where no length is stated.

    Raises:
        NotAssessedError: They lie over each other, so that all take far more than the file.
    """
    starts = page.tags.get(STARTS) or page.tags.get(TILE_STARTS, ())
    sizes = page.tags.get(SIZES) or page.tags.get(TILE_SIZES, ())
    content, following = memoryview(data), [*sorted(starts), sys.maxsize]
    left = _MOST_TIMES * len(data)
    for at, start in enumerate(starts[:number]):
        size = sizes[at] if at < len(sizes) else 0
        end = start + size if size else following[bisect_right(following, start)]
        piece = content[start:end]
        if (left := left - len(piece)) < 0:
            raise NotAssessedError(Reason.DECODE, "strips or tiles overlap")
        yield piece


def _check_deflated(piece: memoryview, size: int) -> None:
    stream = zlib.decompressobj()
    left = 2 * size + _SURPLUS  # some writers fill the last strip
    for at in range(0, len(piece), _BLOCK):
        left -= len(stream.decompress(piece[at : at + _BLOCK], left + 1))
        if left < 0:
            raise ValueError("it is longer than its rows")
        if stream.eof:  # behind its checksum
            return
    raise ValueError("it lacks its checksum")


def _check_packbits(piece: bytes, sizes: range, *, has_end: bool) -> None:
    """Refuse runs that are longer or shorter than the rows (TIFF 6.0, section 9).

    Args:
        piece: The runs.
        sizes: Lengths that they may make, bytes.
        has_end: Whether they are known to end with the piece, but for padding.
    """
    least_end = min(len(piece) - 1, len(piece.rstrip(_PADDING)) - _STRAY) if has_end else 0
    end = min(len(piece), 2 * sizes[-1] + _SURPLUS)  # a byte becomes two at most
    least, most, size, at = sizes[0], sizes[-1], 0, 0
    while at < end and size < most:
        head = piece[at]
        at += _TAKES[head]
        size += _MAKES[head]
        if size >= least and least_end <= at <= len(piece) and size in sizes:
            return
    raise ValueError("it does not unpack to its rows")


def _check_jpeg(data: bytes, grid: _Grid) -> None:
    data = _labelled_8_bits(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # of two components or 4:4:1, or one that libtiff refuses
        return
    if width > grid.width or height > grid.rows + _BLOCK_ROWS:
        raise ValueError(f"it has {width} x {height} pixels")
    ended = jpeg_with_end(data) if is_cut_off(data) else data
    if ended is None:
        raise ValueError("it lacks its end")
    decode_jpeg(ended, _COLOURS.get(colours, "RGB"))


def _labelled_8_bits(data: bytes) -> bytes:
    """A JPEG of 12 or 16 bits as one that simplejpeg decodes; see `jpeg.with_8_bits`."""
    frame = next((part for part in segments(data) if part.marker in _FRAMES), None)
    return data if frame is None else data[: frame.start + 4] + b"\x08" + data[frame.start + 5 :]
