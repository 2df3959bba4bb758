"""How many of its bits an image uses, where no window and no header says which.

A file of 16 bits often holds 10, 12 or 14: they begin at 0, lie around 0 in a signed image, or
begin at an offset. A burnt-in letter or marker at the file's own white does not count, nor does a
border of one value far from all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Grey, sampling_step
from deepcovid_edge.reasons import WarningCode

LEAST_BITS = 8
_MOST_16 = 65535
_FEW_16 = 14
"""Bits of a picture at an offset, at most: one that spans more was exported as it was displayed."""
STRAY = 0.001
"""Share of pixels above the white level, or below the black one, that does not count."""
MARKS = 0.03
"""Largest share of pixels that burnt-in letters and markers take."""
_APART, _ALIKE, _MOST, _FEW = 2, 0.1, 0.5, 0.25
"""Marks take at least that many bits more than the rest of the image. Most of them are alike up to
a tenth; or, where their edges are soft, few take less than that many bits more. The bright end of
an image does neither, as it thins out above its white level: half of an exponential tail is never
within a tenth of its median."""
_NO_BLACK = 0.1
"""An image whose darkest pixel lies that far up its bits has no black: they begin at an offset."""
_MOST_BORDER = 0.5
"""Largest share of pixels that a border of one value takes."""
_NEAR = 4
"""An image whose darkest pixel lies within a quarter of its range above a round number begins at
that number."""


@dataclass(frozen=True)
class UsedBits:
    """The values that an image uses.

    Attributes:
        black: The value of black.
        bits: White is black + 2^bits - 1.
    """

    black: int
    bits: int


def bits_of(top: int) -> int:
    """Bits of values up to a highest one, at least 1; 4096 has 12.

    Who reckons with 2^n where 2^n - 1 is meant, as in 4096 - v, comes to a value that is one beyond
    the bits: it is taken for their white.
    """
    return max(1, (top - 1).bit_length())


def used_bits(values: NDArray[Any]) -> int:
    """Bits of an image that begins at 0.

    Args:
        values: A sample of its pixels, at least one, none negative.

    Returns:
        The fewest, at least `LEAST_BITS`, that hold all values but stray ones and marks; see
        `bits_of`.
    """
    most = max(LEAST_BITS, bits_of(int(np.percentile(values, 100 * (1 - STRAY)))))
    for bits in range(LEAST_BITS, most):
        above = values[values > 1 << bits]
        if above.size <= MARKS * values.size:
            return bits if _are_marks(above, bits) else most
    return most


def _are_marks(above: NDArray[Any], bits: int) -> bool:
    middle = float(np.median(above))
    alike = np.abs(above - middle) <= _ALIKE * middle
    if int(middle).bit_length() < bits + _APART:
        return False
    near = np.count_nonzero(above < 1 << bits + _APART)
    return bool(np.count_nonzero(alike) >= _MOST * above.size or near <= _FEW * above.size)


def used_range(values: NDArray[np.int64]) -> UsedBits:
    """Where an image begins, and its bits.

    It begins at 0 where it can, else around 0, else at a round number or at its darkest pixel.

    Args:
        values: A sample of its stored values, at least one; they may be negative.

    Returns:
        The range; what lies beyond it, such as a border, is black or white.
    """
    values = _without_low_marks(_without_border(values))
    low, high = (int(np.percentile(values, 100 * share)) for share in (STRAY, 1 - STRAY))
    span = used_bits(np.maximum(values - low, 0))
    if low >= 0:
        bits = used_bits(values.clip(0))
        if span >= bits or low < _NO_BLACK * (1 << bits):
            return UsedBits(0, bits)
    elif high > -_NO_BLACK * low:
        # Around zero; or from a quarter below it, as the black of CT's 12 bits is -1024.
        for bits in (span, span + 1):
            for black in (-(1 << bits - 1), -(1 << bits - 2)):
                if _holds(values, black, low, bits):
                    return UsedBits(black, bits)
    for step in (1 << span, 1 << span - 1):
        black = low // step * step
        if low - black < (1 << span) // _NEAR and _holds(values, black, low, span):
            return UsedBits(black, span)
    return UsedBits(low, span)


def _holds(values: NDArray[np.int64], black: int, low: int, bits: int) -> bool:
    return black <= low and used_bits(np.maximum(values - black, 0)) <= bits


def _without_border(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values without the lowest, and without the highest, that lies farther off than all others."""
    for end in (int(values.min()), int(values.max())):
        rest = values[values != end]
        if rest.size < max(1.0, (1 - _MOST_BORDER) * values.size):
            continue
        low, high = np.percentile(rest, (100 * STRAY, 100 * (1 - STRAY)))
        if max(low - end, end - high) > high - low:
            values = rest
    return values


def _without_low_marks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values without marks at the low end, where those of an inverted image stand."""
    top = int(np.percentile(values, 100 * (1 - STRAY)))
    below = np.maximum(top - values, 0)
    bits = used_bits(below)
    return values[below <= 1 << bits]


def full_scale(grey: Grey, *, is_inverted: bool) -> tuple[Grey, int, list[WarningCode]]:
    """An image of 8 or 16 bits with the value of its full white.

    Black of an inverted image is 65535; other writers invert at the bits that they use.

    Args:
        grey: Pixels of shape (height, width), uint8 or uint16.
        is_inverted: Whether 0 is white; of 16 bits alone.
    """
    if grey.dtype == np.uint8:
        return grey, 255, []
    used = _range_of(grey)
    if is_inverted:
        turned = np.uint16(_MOST_16) - grey
        if (turned_range := _range_of(turned)).bits < used.bits:
            grey, used, is_inverted = turned, turned_range, False
    white = (1 << used.bits) - 1
    warnings = []
    if white < _MOST_16:
        grey = np.clip(grey, used.black, min(used.black + white, _MOST_16)) - np.uint16(used.black)
        warnings = [WarningCode.DEPTH]
    if is_inverted:
        grey = np.uint16(white) - grey
    return grey, white, warnings


def _range_of(grey: Grey) -> UsedBits:
    """The values that a picture uses; one without black begins at 0 unless it uses few of them."""
    step = sampling_step(grey)
    values = grey[::step, ::step].astype(np.int64).ravel()
    used = used_range(values)
    return UsedBits(0, used_bits(values)) if used.black and used.bits > _FEW_16 else used
