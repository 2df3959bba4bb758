"""From stored words to grey levels: one table with an entry for every word that a pixel can be.

PS3.3, C.11.1 (modality LUT, rescale), C.11.2 (VOI LUT, window), C.7.6.3.1.2 (MONOCHROME1),
C.7.5.1.1.2 (padding). An image is never widened to floats: the table is.

| VOI of the file | grey levels |
| --- | --- |
| LUT | the first LUT; where its entries use fewer or more bits than it states, those, with a \
warning |
| window | the first window that does not leave the image black or white; `LINEAR`, \
`LINEAR_EXACT` or `SIGMOID` |
| none | all that the stored bits can hold; where an image uses a quarter of that or less, the \
smallest power of two that holds it, around zero or at an offset too, with a warning |
| window that is none (width too small) | as without, with a warning |

`PresentationLUTShape` is not looked at: it is INVERSE wherever a DX image is MONOCHROME1 (PS3.3,
C.8.11.3). Where it contradicts the photometric interpretation viewers differ, and C.7.6.3.1.2 goes
first; inverted images are what the out-of-distribution check looks for (`E_ORIENT`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.depth import bits_of, used_range
from deepcovid_edge.imaging.dicom.elements import Elements
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout
from deepcovid_edge.imaging.radiograph import Grey, check_exposure, grid
from deepcovid_edge.reasons import Reason, WarningCode

Values: TypeAlias = NDArray[np.float64]

_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_CENTRE, _WIDTH, _FUNCTION = 0x00281050, 0x00281051, 0x00281056
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_DESCRIPTOR, _DATA = 0x00283002, 0x00283006
_FAR = 1 << 31
"""Values farther from zero than this lie outside every LUT."""
_MOST_VIEWS = 64
"""Windows or VOI LUTs of a header that are tried, the others are passed over: manufacturers offer
fewer than ten, and each is tried on every word that a pixel can be."""
_STRIP = 64
"""Rows that are looked up at once: what NumPy widens stays in the cache."""


@dataclass(frozen=True)
class GreyLevels:
    """Grey levels of an image.

    Attributes:
        pixels: Of shape (rows, columns), uint8 or uint16, 0 black.
        white: The grey level of full white.
        sample: A grid of grey levels, without padding and what is hidden, on which exposure
            is assessed.
        warnings: What to know.
    """

    pixels: Grey
    white: int
    sample: NDArray[Any]
    warnings: list[WarningCode]


def grey_levels(
    words: NDArray[Any], header: DicomHeader, hidden: NDArray[np.bool_] | None = None
) -> GreyLevels:
    """Grey levels of an image of one channel.

    Args:
        words: Of shape (rows, columns), uint8 or uint16.
        header: The image's header.
        hidden: Of the same shape, True where a shutter hides a pixel: it says nothing of the range
            that the image uses, nor of its exposure.

    Raises:
        NotAssessedError: A LUT of the header is broken.
    """
    layout, elements = header.layout, header.elements
    stored = _stored_values(layout)
    is_padding = _is_padding(stored, elements, layout)
    seen = grid(words) & (len(stored) - 1)
    seen = seen.ravel() if hidden is None else seen[~grid(hidden)]
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
    return GreyLevels(_looked_up(whole, words), white, sample, list(dict.fromkeys(warnings)))


def window_in_words(elements: Elements) -> str:
    """The window of a header for people; empty where there is none."""
    for centre, width, _ in [] if elements.states(_VOI_LUT) else _windows(elements):
        if np.isfinite([centre, width]).all():
            return f"in the window of its header, centre {centre:g}, width {width:g}"
    return ""


def is_stated(elements: Elements) -> bool:
    """Whether a header says by itself which values are shown, whatever the pixels are."""
    if elements.items(_VOI_LUT):
        return True
    return _windowed(np.zeros(1), *_windows(elements)[0]) is not None


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


def _is_padding(
    stored: NDArray[np.int64], elements: Elements, layout: PixelLayout
) -> NDArray[np.bool_]:
    """Which of the stored values are padding (PS3.3, C.7.5.1.1.2)."""
    value = elements.number(_PADDING)
    if value is None:
        return np.zeros(len(stored), bool)
    limit = elements.number(_PADDING_LIMIT)
    ends = [value, value if limit is None else limit]
    if layout.signed:
        ends = [_signed(end, layout.allocated) for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def pads_with_zero(header: DicomHeader) -> bool:
    """Whether a stored zero is padding."""
    return bool(_is_padding(np.zeros(1, np.int64), header.elements, header.layout)[0])


def _displayed(
    stored: NDArray[np.int64],
    seen: NDArray[Any],
    elements: Elements,
    layout: PixelLayout,
    warnings: list[WarningCode],
) -> tuple[Values, int]:
    """Shares of full white, 0 to 1, of every stored word, and the grey level of full white."""
    modality = _modality(stored, seen, elements, layout, warnings)
    if luts := _luts(elements, _VOI_LUT):
        mapped, lut_bits = _by_first_lut_that_shows(luts, modality.values, seen, warnings)
        return mapped, _white(max(layout.stored, lut_bits))
    windowed = (_windowed(modality.values, *window) for window in _windows(elements))
    shares, is_first = _first_that_shows(windowed, seen)
    has_window = elements.states(_WIDTH) or elements.states(_CENTRE)
    if has_window and not is_first:
        warnings.append(WarningCode.WINDOW)
    if shares is not None:
        return shares, _white(layout.stored)
    shares, white = _in_used_bits(modality.levels, seen, modality.bits, warnings)
    return (1.0 - shares if modality.falls else shares), white


@dataclass(frozen=True)
class _Modality:
    """What the modality LUT or the rescale makes of every stored word.

    Attributes:
        values: For a window or a VOI LUT.
        levels: Whole numbers for the case that there is none: entries of the LUT, or what is
            stored, as a rescale changes no more than their direction.
        bits: That levels can have.
        falls: Whether values fall where levels rise.
    """

    values: Values
    levels: NDArray[np.int64]
    bits: int
    falls: bool = False


def _modality(
    stored: NDArray[np.int64],
    seen: NDArray[Any],
    elements: Elements,
    layout: PixelLayout,
    warnings: list[WarningCode],
) -> _Modality:
    if luts := _luts(elements, _MODALITY_LUT):
        entries, bits = _through(luts[0], stored, seen, warnings)
        return _Modality(entries.astype(np.float64), entries, bits)
    slope, intercept = elements.decimal(_SLOPE), elements.decimal(_INTERCEPT)
    slope = 1.0 if slope is None or not slope or not np.isfinite(slope) else slope
    intercept = 0.0 if intercept is None or not np.isfinite(intercept) else intercept
    ends = sorted(int(end) * slope + intercept for end in (stored.min(), stored.max()))
    if not np.isfinite(ends).all() or ends[0] == ends[1]:
        raise NotAssessedError(Reason.DECODE, f"rescale slope {slope:g}, intercept {intercept:g}")
    values = stored.astype(np.float64) * slope + intercept
    return _Modality(values, stored, layout.stored, falls=slope < 0)


def _luts(elements: Elements, tag: int) -> list[Elements]:
    """The LUTs of a sequence; an item in which nothing stands is none."""
    return [item for item in elements.items(tag) if item.raw(_DESCRIPTOR) or item.raw(_DATA)]


def _by_first_lut_that_shows(
    luts: Sequence[Elements], values: Values, seen: NDArray[Any], warnings: list[WarningCode]
) -> tuple[Values, int]:
    """Shares of full white by the first LUT that does not leave the image black or white.

    Returns:
        The shares, by the first LUT where all leave it so; and the bits that its entries use.
    """
    blank: list[tuple[Values, int, list[WarningCode]]] = []
    for lut in luts[:_MOST_VIEWS]:
        told: list[WarningCode] = []
        entries, bits = _through(lut, values, seen, told)
        shares = entries / ((1 << bits) - 1)
        if not seen.size or not _is_blank(shares[seen]):
            warnings += told + [WarningCode.WINDOW] * len(blank)
            return shares, bits
        blank = blank or [(shares, bits, told)]
    shares, bits, told = blank[0]
    warnings += told
    return shares, bits


def _through(
    item: Elements, values: NDArray[Any], seen: NDArray[Any], warnings: list[WarningCode]
) -> tuple[NDArray[np.int64], int]:
    """Entries of a LUT for every stored word, and the bits that all its entries use.

    PS3.3, C.11.1.1 and C.11.2.1.1: values below the first that is mapped take the first entry,
    values above the last take the last. Entries that are missing, or that are more than the LUT
    states, are an error only where pixels reach them.
    """
    described = item.numbers(_DESCRIPTOR)
    if len(described) < 3:
        raise NotAssessedError(Reason.DECODE, "a LUT without its description")
    count = described[0] or 1 << 16
    entries = _entries(item, count, packed=described[2] <= 8)
    whole = np.rint(np.clip(values, -_FAR, _FAR)).astype(np.int64)
    at = np.clip(whole - _first_mapped(described[1], count, whole, seen), 0, None)
    known = min(count, len(entries))
    if len(entries) not in (count, count + 1) and (not known or (at[seen] >= known).any()):
        raise NotAssessedError(Reason.DECODE, f"a LUT of {len(entries)} entries, {count} stated")
    top = int(entries[:known].max())
    bits = bits_of(top)
    if bits < described[2] <= 16 or top >> described[2]:
        warnings.append(WarningCode.DEPTH)
    entries = np.minimum(entries, (1 << bits) - 1)
    return entries[np.minimum(at, known - 1)].astype(np.int64), bits


def _first_mapped(stated: int, count: int, values: NDArray[np.int64], seen: NDArray[Any]) -> int:
    """The value that the first entry of a LUT stands for.

    It is signed where values can be negative: those of signed pixels, or of a rescale with a
    negative result; behind a modality LUT there are none (PS3.3, C.11.1.1.1 and C.11.2.1.1).
    Writers err, so the other reading is taken where more pixels lie within the LUT by it.
    """
    readings = (_signed(stated, 16), stated) if values.min() < 0 else (stated, _signed(stated, 16))
    of_pixels = values[seen]
    return max(
        readings, key=lambda first: np.count_nonzero((of_pixels - first).view(np.uint64) < count)
    )


def _entries(item: Elements, count: int, *, packed: bool) -> NDArray[Any]:
    """Entries of a LUT: words of 16 bits, or bytes where they may be packed and fit."""
    data = item.raw(_DATA)
    words = np.frombuffer(data, "<u2" if item.little else ">u2", len(data) // 2)
    if not packed or len(data) not in (count, count + count % 2):
        return words
    if not item.little:  # PS3.5, 7.3: bytes of a big-endian OW stand in swapped pairs
        data = words.astype("<u2").tobytes()
    return np.frombuffer(data, np.uint8, count)


def _first_that_shows(
    windowed: Iterable[Values | None], seen: NDArray[Any]
) -> tuple[Values | None, bool]:
    """Shares of full white by the first window that does not leave the image black or white.

    Returns:
        The shares, None where there is no window; where all leave it so, those of the first that is
        one: the image is blank. And whether it is the first of all.
    """
    blank: tuple[Values | None, bool] = (None, False)
    for number, shares in enumerate(windowed):
        if shares is None:
            continue
        if not seen.size or not _is_blank(shares[seen]):
            return shares, number == 0
        if blank[0] is None:
            blank = (shares, number == 0)
    return blank


def _is_blank(shares: Values) -> bool:
    try:
        check_exposure(np.rint(shares[None] * 255.0).astype(np.uint8), 255)
    except NotAssessedError:
        return True
    return False


def _windows(elements: Elements) -> list[tuple[float, float, str]]:
    """Centre, width and function; those of a window that is none are no numbers."""
    function = elements.word(_FUNCTION) or "LINEAR"
    pairs = zip(elements.decimals(_CENTRE), elements.decimals(_WIDTH), strict=False)
    return [(centre, width, function) for centre, width in islice(pairs, _MOST_VIEWS)]


def _windowed(values: Values, centre: float, width: float, function: str) -> Values | None:
    """Shares of full white (PS3.3, C.11.2.1.2 and C.11.2.1.3), or None where there is no window."""
    if not np.isfinite([centre, width]).all():
        return None
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
    levels: NDArray[np.int64], seen: NDArray[Any], bits: int, warnings: list[WarningCode]
) -> tuple[Values, int]:
    """Shares of full white without a window: of all levels, or of the few that an image uses."""
    black, white = min(0, int(levels.min())), _white(bits)
    top = black + (1 << bits) - 1
    if white > 255 and seen.size and (used := used_range(levels[seen])).bits < bits:
        warnings.append(WarningCode.DEPTH)
        black, white = used.black, (1 << used.bits) - 1
        top = black + white
    elif black < 0 and seen.size and levels[seen].min() >= 0:
        warnings.append(WarningCode.DEPTH)  # signed by name only: half of the levels is not used
        black = 0
    return np.clip((levels - black) / (top - black), 0.0, 1.0), white


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
