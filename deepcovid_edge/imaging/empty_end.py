"""Uncompressed pixels that were never written: a copy that stopped, or lost pages on the way.

Such a copy reserved its length: zeros stand where nothing was written, or ones on erased flash.
Compressed files are checked elsewhere: their decoders or containers miss what is not there. Real
images have black and white rows too, so these are no proof. What tells a gap is that it begins, or
ends, in the midst of a row: up to there the row goes on as those beside it, and then nothing does.
Gaps are also made of sectors of a disk.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.formats.tiff import directory as tiff
from deepcovid_edge.reasons import Reason, WarningCode

_FILLS = {0x00: "zeros", 0xFF: "bytes FF"}
"""What stands where nothing was written, and its name."""
_MARGIN = 0.02
"""A row ends in its midst when at least this share of it stands before the end, and as much that
the rows above it have stands behind."""
_ALIKE = 0.9
"""Share of a row that is as the rows above it."""
_BACK = 4
"""Rows above that are compared: an edge that is not level moves from row to row."""
_LEAST_EMPTY = 0.01
_MOST_ZEROS = 0.001
"""An end that begins with a row is noted where it is that share of the rows, and where no more than
that share of the other pixels is zero."""
_FAR = 4
"""Distance of a byte from the value of a gap that noise about that value does not have."""
_LEAST_GAP, _SECTOR = 3584, 512
"""Bytes of a gap amid the pixels: a page of memory, less what stands between strips; and what all
gaps are a multiple of."""
_PROBE = 128
"""Of so many words of 8 bytes one is looked at first: a page has three of them."""
_LEAST_PROBES = 3
_MOST_STRETCHES = 64
"""Where more stretches of one value are as long as a page, they are a border: see `_stretches`."""


@dataclass(frozen=True)
class PixelBlock:
    """Where uncompressed pixels stand in a file, rows in the order of the file.

    Attributes:
        start: Offset of the first row, bytes.
        rows: Their number.
        row_bytes: Length of a row, bytes, with its padding.
        pixel_bytes: Length of a pixel, bytes.
    """

    start: int
    rows: int
    row_bytes: int
    pixel_bytes: int

    @property
    def size(self) -> int:
        """Length of all rows, bytes."""
        return self.rows * self.row_bytes

    def filled(self, data: bytes, rows: slice, fill: int = 0, least: int = 1) -> NDArray[np.bool_]:
        """Which pixels of some rows have a byte that is `least` steps from `fill`, or more.

        Returns:
            Of shape (rows, columns).
        """
        block = np.frombuffer(data, np.uint8, self.size, self.start).reshape(self.rows, -1)[rows]
        columns = self.row_bytes // self.pixel_bytes
        differs = (block[:, : columns * self.pixel_bytes] ^ np.uint8(fill)) >= least
        filled = differs[:, :: self.pixel_bytes]
        for byte in range(1, self.pixel_bytes):
            filled = filled | differs[:, byte :: self.pixel_bytes]
        return np.asarray(filled)

    def stops_midway(self, data: bytes, rows: slice, columns: slice, fill: int) -> bool:
        """Whether the last of some rows ends in its midst; upwards where it is the first of them.

        Both for what differs from `fill` at all, and without noise about it.
        """
        step = rows.step or 1
        for least in (1, _FAR):
            filled = self.filled(data, slice(rows.start, rows.stop), fill, least)[:, columns]
            if not _stops_midway(filled[::step, ::step]):
                return False
        return True


@dataclass(frozen=True)
class _Gap:
    """Bytes of one value, `fill`, in a block: from the offset `start` until before `end`."""

    block: PixelBlock
    start: int
    end: int
    fill: int

    def starts_midway(self, data: bytes) -> bool:
        """Whether the row in which they start goes on as those above it up to there."""
        row, column = self._first()
        if row < _BACK:
            return False
        last, behind = self._behind()
        columns = slice(behind if last == row else None)
        return column > 0 and self.block.stops_midway(
            data, slice(row - _BACK, row + 1), columns, self.fill
        )

    def ends_midway(self, data: bytes) -> bool:
        """Whether the row in which they end goes on as those below it from there."""
        row, _ = self._behind()
        if row + _BACK >= self.block.rows:
            return False
        first, column = self._first()
        columns = slice(column if first == row else None, None)
        return self.block.stops_midway(data, slice(row, row + _BACK + 1, -1), columns, self.fill)

    def is_of_sectors(self, *, starts: bool, ends: bool) -> bool:
        """Whether a side that is certain, or else their length, is at the end of a sector.

        A pixel beside them may hold a byte of their value.
        """
        slack, at = self.block.pixel_bytes, self.block.start
        return (
            (starts and -(at + self.start) % _SECTOR < slack + 1)
            or (ends and (at + self.end) % _SECTOR < slack + 1)
            or (self.end - self.start) % _SECTOR < 2 * slack + 1
        )

    def _first(self) -> tuple[int, int]:
        row, at = divmod(self.start, self.block.row_bytes)
        return row, -(-at // self.block.pixel_bytes)

    def _behind(self) -> tuple[int, int]:
        row, at = divmod(self.end, self.block.row_bytes)
        return row, at // self.block.pixel_bytes


def check_end(data: bytes, block: PixelBlock, *, zero_is_usual: bool = False) -> list[WarningCode]:
    """Look for pixels that were never written.

    Args:
        data: The bytes of the file.
        block: Where its pixels stand.
        zero_is_usual: Whether zero is the file's padding value: then only an end in the midst of a
            row counts.

    Raises:
        NotAssessedError: The pixels end in the midst of a row, or before they should, or have a
            gap.
    """
    if block.start + block.size > len(data):
        held = max(0, len(data) - block.start)
        raise NotAssessedError(Reason.TRUNCATED, f"{held} of {block.size} bytes")
    written = {}
    for fill in _FILLS:
        _check_gaps(data, block, fill)
        written[fill] = _check_last_row(data, block, fill)
    rows = written[0]
    if zero_is_usual or rows <= _BACK or block.rows - rows < _LEAST_EMPTY * block.rows:
        return []
    zeros = 1.0 - block.filled(data, slice(rows - 1)).mean()
    return [WarningCode.EMPTY_END] if zeros <= _MOST_ZEROS else []


def _check_last_row(data: bytes, block: PixelBlock, fill: int) -> int:
    """Rows up to the last that holds more than `fill`, which is not to end in its midst."""
    empty, written = bytes([fill]) * block.row_bytes, block.rows
    while written and data.startswith(empty, block.start + (written - 1) * block.row_bytes):
        written -= 1
    if _BACK < written < block.rows:
        rows = slice(written - 1 - _BACK, written)
        if block.stops_midway(data, rows, slice(None), fill):
            raise _cut_off(1.0 - written / block.rows, fill)
    return written


def _cut_off(share: float, fill: int) -> NotAssessedError:
    detail = f"the last {share:.0%} of the pixels are {_FILLS[fill]}"
    return NotAssessedError(Reason.TRUNCATED, detail)


def _stops_midway(rows: NDArray[np.bool_]) -> bool:
    """Whether the last of some rows goes on as those above it, and ends before they do."""
    here, above, before = rows[-1], rows[-2], rows[0]
    if not here.any():
        return False
    end = int(np.flatnonzero(here)[-1]) + 1
    behind, earlier = np.count_nonzero(above[end:]), np.count_nonzero(before[end:])
    return bool(
        min(end, behind) >= _MARGIN * here.size
        and behind >= _ALIKE * earlier
        and np.mean(here[:end] == above[:end]) >= _ALIKE
    )


def _check_gaps(data: bytes, block: PixelBlock, fill: int, *, is_tiled: bool = False) -> None:
    """Look for pages amid the pixels that were never written.

    A gap is certain by two of these: it starts in the midst of a row, it ends so, and its sides are
    those of sectors. One within a row, as a line that is drawn, and one of a tile needs all three.

    Raises:
        NotAssessedError: There is one.
    """
    for start, end in _stretches(data, block, fill):
        gap = _Gap(block, start, end, fill)
        if end == block.size:
            continue
        needed = 3 if is_tiled or end - start < block.row_bytes else 2
        if needed == 3 and not gap.is_of_sectors(starts=True, ends=True):
            continue
        starts, ends = gap.starts_midway(data), gap.ends_midway(data)
        if not (starts or ends):
            continue
        if starts + ends + gap.is_of_sectors(starts=starts, ends=ends) >= needed:
            detail = f"{end - start} bytes amid the pixels are {_FILLS[fill]}"
            raise NotAssessedError(Reason.TRUNCATED, detail)


def _stretches(data: bytes, block: PixelBlock, fill: int) -> list[tuple[int, int]]:
    """Where a page or more of bytes of one value stands on end: starts and ends in the block.

    Where there are many, as of a wide border, those that are shorter than a row are left out.
    """
    words = np.frombuffer(data, np.uint64, block.size // 8, block.start)
    sought = np.uint64(int.from_bytes(bytes([fill]) * 8, "little"))
    hits = np.flatnonzero(words[::_PROBE] == sought)
    if hits.size < _LEAST_PROBES:
        return []
    breaks = np.flatnonzero(np.diff(hits) > 1)
    firsts, lasts = hits[np.append(0, breaks + 1)], hits[np.append(breaks, -1)]
    least, shortest = _LEAST_PROBES, _LEAST_GAP
    if np.count_nonzero(lasts - firsts >= least - 1) > _MOST_STRETCHES:
        shortest = max(shortest, block.row_bytes)
        least = max(least, shortest // (8 * _PROBE) - 1)
    found = []
    for which in np.flatnonzero(lasts - firsts >= least - 1)[:_MOST_STRETCHES]:
        low = max(0, int(firsts[which]) - 1) * _PROBE
        high = min(words.size, (int(lasts[which]) + 1) * _PROBE + 1)
        other = low + np.flatnonzero(words[low:high] != sought)
        for before, behind in pairwise([low - 1, *other.tolist(), high]):
            if 8 * (behind - before + 1) > _LEAST_GAP:
                found.append(_widened(data, block, (8 * before + 8, 8 * behind), fill))
    return [(start, end) for start, end in found if end - start >= shortest]


def _widened(
    data: bytes, block: PixelBlock, stretch: tuple[int, int], fill: int
) -> tuple[int, int]:
    """A stretch of whole words with the bytes beside it that hold the same."""
    start, end = stretch
    while start > 0 and data[block.start + start - 1] == fill:
        start -= 1
    while end < block.size and data[block.start + end] == fill:
        end += 1
    return start, end


def check_tiff(data: bytes, page: tiff.Directory) -> list[WarningCode]:
    """Look for pixels of a TIFF file that were never written, or are not there.

    Raises:
        NotAssessedError: The pixels end in the midst of a row, or have a gap, or a strip or tile
            has no room for those it should hold.
    """
    pieces, unit = tiff.pieces(page)
    if not pieces:
        return []
    _check_room(data, page, pieces)
    if all(piece.row_bytes == (piece.right - piece.left) * unit for piece in pieces) and (
        [piece.top for piece in pieces] == [0, *(piece.bottom for piece in pieces[:-1])]
    ):
        rows = [piece.bottom - piece.top for piece in pieces]
        return check_end(*_joined(data, pieces, rows, unit))
    tiles, block = _joined(data, pieces, [piece.rows for piece in pieces], unit)
    warnings = {}
    for fill in _FILLS:
        _check_gaps(tiles, block, fill, is_tiled=True)
        warnings[fill] = _check_last_tile(data, pieces, unit, fill)
    return warnings[0]


def _joined(
    data: bytes, pieces: list[tiff.Piece], rows: list[int], unit: int
) -> tuple[bytes, PixelBlock]:
    """So many rows of each strip or tile as one block, in the file where they follow there."""
    width, start = pieces[0].row_bytes, pieces[0].start
    starts = start + width * np.cumsum([0, *rows[:-1]])
    if [piece.start for piece in pieces] != starts.tolist():
        found = zip(pieces, rows, strict=True)
        data = b"".join(data[piece.start : piece.start + width * count] for piece, count in found)
        start = 0
    return data, PixelBlock(start, sum(rows), width, unit)


def _check_last_tile(
    data: bytes, pieces: list[tiff.Piece], unit: int, fill: int
) -> list[WarningCode]:
    """Look at the last tile in the file that holds more than `fill`, where another follows it."""
    if _filled(data, pieces[-1], unit, fill)[-1].any():
        return []
    image = np.zeros((max(one.bottom for one in pieces), max(one.right for one in pieces)), bool)
    held = []
    for piece in pieces:
        filled = _filled(data, piece, unit, fill)
        image[piece.top : piece.bottom, piece.left : piece.right] = filled
        held.append(np.count_nonzero(filled))
    if not any(held):
        return []
    last = int(np.flatnonzero(held)[-1])
    return _check_last(image, pieces[: last + 1], fill)


def _check_last(
    image: NDArray[np.bool_], written: list[tiff.Piece], fill: int
) -> list[WarningCode]:
    """Look at the row in which the last of those tiles ends."""
    last = written[-1]
    columns = slice(last.left, last.right)
    row = last.top + int(np.flatnonzero(image[last.top : last.bottom, columns].any(axis=1))[-1])
    if row < _BACK:
        return []
    before = sum((one.bottom - one.top) * (one.right - one.left) for one in written[:-1])
    above = (row - last.top) * (last.right - last.left)
    empty = 1.0 - (before + above + last.right - last.left) / image.size
    if _stops_midway(image[row - _BACK : row + 1, columns]) and _is_step(image, last, row):
        raise _cut_off(empty, fill)
    there = np.count_nonzero(image) - np.count_nonzero(image[row, columns])
    zeros = 1.0 - there / max(1, before + above)
    return [WarningCode.EMPTY_END] if empty >= _LEAST_EMPTY and zeros <= _MOST_ZEROS else []


def _is_step(image: NDArray[np.bool_], last: tiff.Piece, row: int) -> bool:
    """Whether the zeros behind a row end, or begin, at the side of the tile that it is in.

    The tile to the left is whole, and the one to the right empty; an edge in the image goes on.
    """
    if last.right - last.left == image.shape[1]:
        return True
    below, above = image[row + 1 : last.bottom], image[last.top : row]
    left = last.left > 0 and len(below) and np.mean(below[:, last.left - 1]) >= _ALIKE
    if left or last.right == image.shape[1]:
        return bool(left)
    if not len(above):
        return _stops_midway(image[row - _BACK : row + 1])
    return bool(np.mean(above[:, last.right - 1]) >= _ALIKE and not above[:, last.right].any())


def _check_room(data: bytes, page: tiff.Directory, pieces: list[tiff.Piece]) -> None:
    """Check that no strip or tile goes on into the next one, or into the directory.

    Decoders of uncompressed pixels take whatever stands there.
    """
    ends = sorted({page.start, len(data), *(piece.start for piece in pieces)})
    for piece in pieces:
        size = (piece.bottom - piece.top) * piece.row_bytes
        after = bisect_right(ends, piece.start)
        room = ends[after] - piece.start if after < len(ends) else 0
        if room < size:
            raise NotAssessedError(Reason.TRUNCATED, f"{room} of {size} bytes")


def _filled(data: bytes, piece: tiff.Piece, unit: int, fill: int) -> NDArray[np.bool_]:
    """Which pixels of a tile hold more than `fill`, of shape (rows, columns)."""
    rows, columns = piece.bottom - piece.top, piece.right - piece.left
    block = PixelBlock(piece.start, rows, piece.row_bytes, unit)
    return block.filled(data, slice(None), fill)[:, :columns]


def of_bmp(data: bytes, size: tuple[int, int]) -> PixelBlock | None:
    """Where the pixels of a BMP file stand (Windows GDI), or None where they are compressed.

    Args:
        data: The bytes of the file.
        size: Width and height, pixels.
    """
    start, header = struct.unpack_from("<II", data, 10)
    bits, compression = (
        struct.unpack_from("<HI", data, 28)
        if header >= 40
        else (*struct.unpack_from("<H", data, 24), 0)
    )
    row = (size[0] * bits + 31) // 32 * 4
    if bits < 8 or compression not in (0, 3) or start + size[1] * row > len(data):
        return None
    return PixelBlock(start, size[1], row, bits // 8)
