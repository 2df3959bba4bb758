"""Uncompressed pixels that end in zeros: a copy that reserved its length and then stopped.

Compressed files are checked elsewhere: their decoders or containers miss what is not there. Real
images end in black rows too, so black is no proof. What tells a copy that stopped is that it does
so in the midst of a row: up to there the row goes on as those above it, and nothing follows.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging import tiff
from deepcovid_edge.reasons import Reason, WarningCode

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

    def filled(self, data: bytes, rows: slice) -> NDArray[np.bool_]:
        """Which pixels of some rows are not zero, of shape (rows, columns)."""
        count = self.rows * self.row_bytes
        block = np.frombuffer(data, np.uint8, count, self.start).reshape(self.rows, -1)[rows]
        columns = self.row_bytes // self.pixel_bytes
        pixels = block[:, : columns * self.pixel_bytes]
        filled: NDArray[np.bool_] = pixels.reshape(-1, columns, self.pixel_bytes) != 0
        return np.asarray(filled.any(axis=2))


def check_end(data: bytes, block: PixelBlock, *, zero_is_usual: bool = False) -> list[WarningCode]:
    """Look for pixels that were never written.

    Args:
        data: The bytes of the file.
        block: Where its pixels stand.
        zero_is_usual: Whether zero is the file's padding value: then only an end in the midst of a
            row counts.

    Raises:
        NotAssessedError: The pixels end in the midst of a row, or before they should.
    """
    size = block.rows * block.row_bytes
    if block.start + size > len(data):
        held = max(0, len(data) - block.start)
        raise NotAssessedError(Reason.TRUNCATED, f"{held} of {size} bytes")
    last = data[block.start + (block.rows - 1) * block.row_bytes :][: block.row_bytes]
    if last.strip(b"\0"):
        return []
    filled = block.filled(data, slice(None))
    written = np.flatnonzero(filled.any(axis=1))
    if not written.size or written[-1] < _BACK:
        return []
    empty = block.rows - 1 - int(written[-1])
    if _stops_midway(filled[written[-1] - _BACK : written[-1] + 1]):
        detail = f"the last {empty / block.rows:.0%} of the pixels are zeros"
        raise NotAssessedError(Reason.TRUNCATED, detail)
    zeros = 1.0 - filled[: written[-1]].mean()
    noted = empty >= _LEAST_EMPTY * block.rows and zeros <= _MOST_ZEROS and not zero_is_usual
    return [WarningCode.EMPTY_END] if noted else []


def _stops_midway(rows: NDArray[np.bool_]) -> bool:
    """Whether the last of some rows goes on as those above it, and ends before they do."""
    here, above, before = rows[-1], rows[-2], rows[0]
    end = int(np.flatnonzero(here)[-1]) + 1
    behind, earlier = np.count_nonzero(above[end:]), np.count_nonzero(before[end:])
    return bool(
        min(end, behind) >= _MARGIN * here.size
        and behind >= _ALIKE * earlier
        and np.mean(here[:end] == above[:end]) >= _ALIKE
    )


def check_tiff(data: bytes, page: tiff.Directory) -> list[WarningCode]:
    """Look for pixels of a TIFF file that were never written, or are not there.

    Args:
        data: The bytes of the file.
        page: The directory of the picture.

    Raises:
        NotAssessedError: The pixels end in the midst of a row, or a strip or tile has no room for
            those it should hold.
    """
    pieces, unit = tiff.pieces(page)
    if not pieces:
        return []
    _check_room(data, page, pieces)
    if _filled(data, pieces[-1], unit)[-1].any():
        return []
    image = np.zeros((max(one.bottom for one in pieces), max(one.right for one in pieces)), bool)
    held = []
    for piece in pieces:
        filled = _filled(data, piece, unit)
        image[piece.top : piece.bottom, piece.left : piece.right] = filled
        held.append(np.count_nonzero(filled))
    if not any(held):
        return []
    last = int(np.flatnonzero(held)[-1])
    return _check_last(image, pieces[: last + 1])


def _check_last(image: NDArray[np.bool_], written: list[tiff.Piece]) -> list[WarningCode]:
    """Look at the last strip or tile in the file that holds more than zeros."""
    last = written[-1]
    columns = slice(last.left, last.right)
    row = last.top + int(np.flatnonzero(image[last.top : last.bottom, columns].any(axis=1))[-1])
    if row < _BACK:
        return []
    before = sum((one.bottom - one.top) * (one.right - one.left) for one in written[:-1])
    above = (row - last.top) * (last.right - last.left)
    empty = 1.0 - (before + above + last.right - last.left) / image.size
    if _stops_midway(image[row - _BACK : row + 1, columns]) and _is_step(image, last, row):
        detail = f"the last {empty:.0%} of the pixels are zeros"
        raise NotAssessedError(Reason.TRUNCATED, detail)
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


def _filled(data: bytes, piece: tiff.Piece, unit: int) -> NDArray[np.bool_]:
    """Which pixels of a strip or tile are not zero, of shape (rows, columns)."""
    rows, columns = piece.bottom - piece.top, piece.right - piece.left
    return PixelBlock(piece.start, rows, piece.row_bytes, unit).filled(data, slice(None))[
        :, :columns
    ]


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
