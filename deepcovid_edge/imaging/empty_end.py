"""Uncompressed pixels that end in zeros: a copy that reserved its length and then stopped.

Compressed files are checked elsewhere: their decoders or containers miss what is not there. Real
images end in black rows too, so black is no proof. What tells a copy that stopped is that it does
so in the midst of a row: up to there the row goes on as those above it, and nothing follows.
"""

from __future__ import annotations

import struct
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


def of_tiff(page: tiff.Directory) -> PixelBlock | None:
    """Where the pixels of a TIFF file stand (TIFF 6.0, section 8), or None: not in one piece."""
    starts, sizes = page.tags.get(tiff.STARTS, ()), page.tags.get(tiff.SIZES, ())
    if page.value(tiff.COMPRESSION, 1) != 1 or not starts or len(starts) != len(sizes):
        return None
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    samples, width = page.value(tiff.SAMPLES, 1), page.value(tiff.WIDTH, 0)
    planes = samples if page.value(tiff.PLANES, 1) == 2 else 1
    pixel = max(1, samples * max(page.tags.get(tiff.BITS, (1,))) // 8 // max(1, planes))
    row, rows = pixel * width, page.value(tiff.HEIGHT, 0) * planes
    if list(starts[1:]) != ends[:-1] or not row or sum(sizes) != row * rows:
        return None
    return PixelBlock(starts[0], rows, row, pixel)


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
