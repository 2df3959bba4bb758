"""From stored words to grey levels: one table with an entry for every word that a pixel can be.

PS3.3, C.11.1 (modality LUT, rescale), C.11.2 (VOI LUT, window), C.7.6.3.1.2 (MONOCHROME1),
C.7.5.1.1.2 (padding). An image is never widened to floats: the table is.

| VOI of the file | grey levels |
| --- | --- |
| LUT | the first LUT |
| window | the first window; `LINEAR`, `LINEAR_EXACT` or `SIGMOID` |
| none | all that the stored bits can hold; where an image uses less than a quarter of that, the \
smallest power of two that holds it, with a warning |
| window that is none (width too small) | as without, with a warning |

`PresentationLUTShape` is not looked at: it is INVERSE wherever a DX image is MONOCHROME1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.elements import Elements
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout
from deepcovid_edge.imaging.radiograph import Grey, grid
from deepcovid_edge.reasons import Reason, WarningCode

Values: TypeAlias = NDArray[np.float64]

_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_CENTRE, _WIDTH, _FUNCTION = 0x00281050, 0x00281051, 0x00281056
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_DESCRIPTOR, _DATA = 0x00283002, 0x00283006
_STRIP = 64
"""Rows that are looked up at once: what NumPy widens stays in the cache."""


@dataclass(frozen=True)
class GreyLevels:
    """Grey levels of an image.

    Attributes:
        pixels: Of shape (rows, columns), uint8 or uint16, 0 black.
        white: The grey level of full white.
        sample: A grid of grey levels, without padding, on which exposure is assessed.
        warnings: What to know.
    """

    pixels: Grey
    white: int
    sample: NDArray[Any]
    warnings: list[WarningCode]


def grey_levels(words: NDArray[Any], header: DicomHeader) -> GreyLevels:
    """Grey levels of an image of one channel.

    Args:
        words: Of shape (rows, columns), uint8 or uint16.
        header: The image's header.

    Raises:
        NotAssessedError: A LUT of the header is broken.
    """
    layout, elements = header.layout, header.elements
    stored = _stored_values(layout)
    padding = _padding(elements, layout)
    is_padding = np.zeros(len(stored), bool)
    if padding is not None:
        is_padding = (stored >= padding[0]) & (stored <= padding[1])
    seen = grid(words).ravel() & (len(stored) - 1)
    seen = seen[~is_padding[seen]]
    warnings: list[WarningCode] = []
    shares, white = _displayed(stored, seen, elements, layout, warnings)
    if layout.photometric == "MONOCHROME1":
        shares = 1.0 - shares
    shares[is_padding] = 0.0
    kind = np.uint8 if white == 255 else np.uint16
    table = np.rint(shares * white).astype(kind)
    sample = table[seen] if seen.size else np.zeros(1, kind)
    whole = np.tile(table, (1 << layout.allocated) // len(table))
    return GreyLevels(_looked_up(whole, words), white, sample, warnings)


def is_stated(elements: Elements) -> bool:
    """Whether a header says by itself which values are shown, whatever the pixels are."""
    if elements.items(_VOI_LUT):
        return True
    window = _window(elements)
    return window is not None and _windowed(np.zeros(1), *window) is not None


def _stored_values(layout: PixelLayout) -> NDArray[np.int64]:
    """The value of each word of the stored bits."""
    count = 1 << layout.stored
    values = np.arange(count)
    if layout.signed:
        values[count // 2 :] -= count
    return values


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _padding(elements: Elements, layout: PixelLayout) -> tuple[int, int] | None:
    value = elements.number(_PADDING)
    if value is None:
        return None
    limit = elements.number(_PADDING_LIMIT)
    ends = [value, value if limit is None else limit]
    if layout.signed:
        ends = [_signed(end, layout.allocated) for end in ends]
    return min(ends), max(ends)


def _displayed(
    stored: NDArray[np.int64],
    seen: NDArray[Any],
    elements: Elements,
    layout: PixelLayout,
    warnings: list[WarningCode],
) -> tuple[Values, int]:
    """Shares of full white, 0 to 1, of every stored word, and the number of grey levels."""
    values, low, high = _modality(stored, seen, elements, layout)
    bits = layout.stored
    if luts := elements.items(_VOI_LUT):
        entries, first, lut_bits = _lut(luts[0], layout)
        voi = entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]
        return voi / ((1 << lut_bits) - 1), _white(max(bits, lut_bits))
    window = _window(elements)
    if window is not None:
        shares = _windowed(values, *window)
        if shares is not None:
            return shares, _white(bits)
    if elements.raw(_WIDTH).strip(b" \0") or elements.raw(_CENTRE).strip(b" \0"):
        warnings.append(WarningCode.WINDOW)
    shares = np.clip((values - low) / (high - low), 0.0, 1.0)
    return _in_used_bits(shares, seen, _white(bits), warnings)


def _modality(
    stored: NDArray[np.int64], seen: NDArray[Any], elements: Elements, layout: PixelLayout
) -> tuple[Values, float, float]:
    """Values behind the modality LUT, and the lowest and highest that there can be."""
    if luts := elements.items(_MODALITY_LUT):
        entries, first, bits = _lut(luts[0], layout)
        values = entries[np.clip(stored - first, 0, len(entries) - 1)]
        return values, 0.0, float((1 << bits) - 1)
    slope, intercept = elements.decimal(_SLOPE), elements.decimal(_INTERCEPT)
    slope = 1.0 if slope is None or not slope or not np.isfinite(slope) else slope
    intercept = 0.0 if intercept is None or not np.isfinite(intercept) else intercept
    lowest = int(stored.min())
    if layout.signed and seen.size and stored[seen].min() >= 0:
        lowest = 0  # signed by name only: half of what could be stored is not used
    ends = sorted((lowest * slope + intercept, int(stored.max()) * slope + intercept))
    if not np.isfinite(ends).all() or ends[0] == ends[1]:
        raise NotAssessedError(Reason.DECODE, f"rescale slope {slope:g}, intercept {intercept:g}")
    return stored.astype(np.float64) * slope + intercept, ends[0], ends[1]


def _lut(item: Elements, layout: PixelLayout) -> tuple[Values, int, int]:
    """Entries, the first value that is mapped, and bits of an entry (PS3.3, C.11.1.1)."""
    described = item.numbers(_DESCRIPTOR)
    if len(described) < 3:
        raise NotAssessedError(Reason.DECODE, "a LUT without its description")
    count = described[0] or 1 << 16
    first = _signed(described[1], 16) if layout.signed else described[1]
    data = item.raw(_DATA)
    if len(data) in (count, count + count % 2) and described[2] <= 8:
        entries = np.frombuffer(data, np.uint8, count)
    else:
        entries = np.frombuffer(data, "<u2" if item.little else ">u2")[:count]
    if len(entries) != count:
        raise NotAssessedError(Reason.DECODE, f"a LUT of {len(entries)} entries, {count} stated")
    bits = max(1, described[2], int(entries.max()).bit_length())
    return entries.astype(np.float64), first, min(bits, 16)


def _window(elements: Elements) -> tuple[float, float, str] | None:
    centre, width = elements.decimal(_CENTRE), elements.decimal(_WIDTH)
    if centre is None or width is None or not np.isfinite([centre, width]).all():
        return None
    return centre, width, elements.word(_FUNCTION) or "LINEAR"


def _windowed(values: Values, centre: float, width: float, function: str) -> Values | None:
    """Shares of full white (PS3.3, C.11.2.1.2 and C.11.2.1.3), or None where there is no window."""
    if function == "SIGMOID" and width > 0:
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < 1:
        return None
    if width == 1:  # a step: the formula's denominator is 0
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _in_used_bits(
    shares: Values, seen: NDArray[Any], white: int, warnings: list[WarningCode]
) -> tuple[Values, int]:
    """Stretch an image that uses less than a quarter of the grey levels, as a 16-bit PNG is."""
    if white == 255 or not seen.size:
        return shares, white
    level = int(np.percentile(shares[seen], 99.9) * white)
    used = (1 << max(8, level.bit_length())) - 1
    if used > white // 4:
        return shares, white
    warnings.append(WarningCode.DEPTH)
    return np.minimum(shares * white / used, 1.0), used


def _white(bits: int) -> int:
    return 255 if bits <= 8 else (1 << min(bits, 16)) - 1


def _looked_up(table: NDArray[Any], words: NDArray[Any]) -> Grey:
    if np.array_equal(table, np.arange(len(table))):
        return words
    pixels = np.empty(words.shape, table.dtype)
    for top in range(0, len(words), _STRIP):
        rows = slice(top, top + _STRIP)
        np.take(table, words[rows], out=pixels[rows], mode="clip")
    return pixels
