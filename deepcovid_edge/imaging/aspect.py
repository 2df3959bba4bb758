"""Pixels that are not square: what a file states of them, and the image with square ones.

| file | where it is stated |
| --- | --- |
| DICOM | Pixel Spacing, Imager Pixel Spacing, Nominal Scanned Pixel Spacing, Pixel Aspect Ratio |
| JPEG | JFIF density, whatever its unit, then EXIF resolution |
| PNG | `pHYs`, whatever its unit, then EXIF resolution |
| TIFF | XResolution and YResolution, whatever their unit |
| BMP | pixels per metre |
| WebP | EXIF resolution |

The first usable statement counts. Below 1 % pixels are square. A side of more than `MOST_RATIO`
times the other, zeros, and what is not a number are not usable. A warning says so, and it says so
where statements contradict each other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import cv2
from numpy.typing import NDArray

from deepcovid_edge.imaging.formats.jpeg import SOS, segments
from deepcovid_edge.imaging.radiograph import MAX_PIXELS, Radiograph
from deepcovid_edge.imaging.signatures import png_chunks
from deepcovid_edge.reasons import WarningCode

MOST_RATIO = 4.0
_SQUARE = 1.01
_APP0 = 0xE0


@dataclass(frozen=True)
class PixelShape:
    """How high the pixels of a file are.

    Attributes:
        ratio: Height of a pixel divided by its width; 1 where they are square.
        warnings: What to know about it.
    """

    ratio: float = 1.0
    warnings: tuple[WarningCode, ...] = ()

    def turned(self) -> PixelShape:
        """The shape once rows have become columns."""
        return PixelShape(1.0 / self.ratio, self.warnings)

    def square(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of an image once its pixels are square.

        The coarser axis is enlarged, so that nothing is lost; the finer one is reduced where the
        image would become too large.
        """
        rows, columns = shape
        high, wide = max(self.ratio, 1.0), max(1.0 / self.ratio, 1.0)
        if rows * high * columns * wide > MAX_PIXELS:
            high, wide = 1.0 / wide, 1.0 / high
        return round(rows * high), round(columns * wide)


def pixel_shape(stated: Iterable[tuple[Any, Any]]) -> PixelShape:
    """The shape of pixels by all that a file states of it.

    Args:
        stated: Height and width of a pixel in any unit, the statement that counts most first.
    """
    ratios = [_ratio(*sides) for sides in stated]
    usable = [ratio for ratio in ratios if ratio is not None]
    ratio = usable[0] if usable else 1.0
    warnings = []
    if None in ratios or not all(_alike(ratio, other) for other in usable):
        warnings.append(WarningCode.SPACING)
    if _alike(ratio, 1.0):
        return PixelShape(1.0, tuple(warnings))
    return PixelShape(ratio, (WarningCode.ASPECT, *warnings))


def _ratio(height: Any, width: Any) -> float | None:
    try:
        sides = float(height), float(width)
    except (TypeError, ValueError, ArithmeticError):
        return None
    if not all(math.isfinite(side) and side > 0 for side in sides):
        return None
    ratio = sides[0] / sides[1] if sides[1] * MOST_RATIO >= sides[0] else math.inf
    return ratio if 1 / MOST_RATIO <= ratio <= MOST_RATIO else None


def _alike(one: float, other: float) -> bool:
    return max(one, other) < min(one, other) * _SQUARE


def in_square_pixels(image: Radiograph, shape: PixelShape) -> Radiograph:
    """The image with square pixels.

    Args:
        image: Upright.
        shape: Of its pixels, as they lie upright.
    """
    rows, columns = image.pixels.shape
    wanted = shape.square((rows, columns))
    if wanted == (rows, columns):
        return image
    smaller = wanted[0] <= rows and wanted[1] <= columns
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    pixels: NDArray[Any] = cv2.resize(image.pixels, wanted[::-1], interpolation=how)
    return replace(image, pixels=pixels, file_shape=(rows, columns))


def stated_by_container(name: str, data: bytes) -> list[tuple[Any, Any]]:
    """What the header of a JPEG, PNG or BMP file states: see `pixel_shape`.

    A density counts pixels per length, so its value across is to the one down as a pixel's height
    is to its width.

    Args:
        name: Format of the file.
        data: Its bytes.
    """
    read = {"JPEG": _jfif_density, "PNG": _png_density, "BMP": _bmp_density}.get(name)
    density = read(data) if read else None
    return [] if density is None else [density]


def _jfif_density(data: bytes) -> tuple[int, int] | None:
    """JFIF 1.02, "APP0 marker segment": 1:1 without a unit is what writers put that know none."""
    for part in takewhile(lambda part: part.marker != SOS, segments(data)):
        held = data[part.start + 4 : part.end]
        if part.marker == _APP0 and len(held) >= 14 and held.startswith(b"JFIF\0"):
            unit, across, down = struct.unpack_from(">BHH", held, 7)
            return None if unit == 0 and across == down else (across, down)
    return None


def _png_density(data: bytes) -> tuple[int, int] | None:
    """PNG, 11.3.4.3: pixels per unit, X and Y; it stands before the pixels."""
    for kind, at, length in png_chunks(data):
        if kind == b"IDAT":
            return None
        if kind == b"pHYs":
            across, down = struct.unpack_from(">II", data, at + 8) if length >= 8 else (0, 0)
            return across, down
    return None


def _bmp_density(data: bytes) -> tuple[int, int] | None:
    """BITMAPINFOHEADER (Windows GDI): pixels per metre, zeros where they are not stated."""
    (header,) = struct.unpack_from("<I", data, 14)
    across, down = struct.unpack_from("<ii", data, 38) if header >= 40 else (0, 0)
    return (across, down) if across or down else None
