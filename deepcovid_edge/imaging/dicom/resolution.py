"""Which resolution of a JPEG 2000 or HTJ2K picture is enough, and whether it shows the same.

These codestreams hold the picture halved once, twice and so on (ITU-T T.800, annex F). A model
input of 224 pixels needs no more of a detector's 3000 than a quarter. Model inputs that are made of
either differ by at most 0.8 grey levels of 255 on average, and by at most 10 in 999 of 1000 pixels.
The halved picture is taken where nothing but the wavelets' filters makes a difference:

| the whole picture is decoded | because |
| --- | --- |
| signed words, colour, tiles, an origin that is not 0, codings that differ within the picture | \
rare, so nobody checks it |
| the codestream has other bits than the header | bits above the stored ones would become values |
| fewer than `LEAST_BITS` bits, reversible | its filters round up, a third of a word a level |
| padding, a shutter, pixels that are not square, an image that lies on its side | their place \
or value is that of whole pixels |
| neither window nor VOI LUT | the grey levels depend on the highest words |
| a tone map that is steep, or that rises and falls | a mean is taken before it, not behind it |
| close to a limit of exposure | the whole picture decides |
| a codestream that does not end where it says | the decoder finds out what is missing |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.codestreams import (
    COC,
    COD,
    END,
    SIZ,
    SOT,
    Codestream,
    segments,
)
from deepcovid_edge.imaging.dicom.geometry import SHUTTER_TAGS
from deepcovid_edge.imaging.dicom.grey_levels import grey_levels, is_stated
from deepcovid_edge.imaging.dicom.header import DicomHeader
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES, Family
from deepcovid_edge.imaging.prepare import enough_halvings
from deepcovid_edge.imaging.radiograph import check_exposure
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import WarningCode

LEAST_BITS = 10
MAX_STEEPNESS = 2.5
"""Largest slope of the tone map over the picture's range of words, 1 for a straight line from black
to white. A window over two fifths of that range has 2.5."""
SLACK = 4.0
"""What exposure must keep from its limits, grey levels of 255: halving takes noise away."""

_PADDING = 0x00280120
_STEPS = 64
_EXTENDED = 0x8000
"""Bit of Rsiz: the codestream needs extensions of ITU-T T.801."""


@dataclass(frozen=True)
class _Coding:
    """How a codestream of one channel and one tile is coded.

    Attributes:
        shape: Rows and columns.
        bits: Bits of a word.
        halvings: Resolutions below the whole picture.
        is_reversible: Whether its filters are those of whole numbers.
    """

    shape: tuple[int, int]
    bits: int
    halvings: int
    is_reversible: bool


def safe_halvings(header: DicomHeader, codestream: Codestream, spec: InputSpec) -> int:
    """How often both sides of a picture may be halved while it is decoded for a model input."""
    family = SYNTAXES[codestream.syntax].family
    layout = header.layout
    shape = (layout.rows, layout.columns)
    most = enough_halvings(shape, spec)
    if (
        not most
        or family not in (Family.JPEG_2000, Family.HTJ2K)
        or _needs_all_pixels(header, codestream)
    ):
        return 0
    coding = _coding(codestream.data)
    if coding is None or (coding.shape, coding.bits) != (shape, layout.stored):
        return 0
    if coding.is_reversible and coding.bits < LEAST_BITS:
        return 0
    return min(most, coding.halvings)


def halvings_of(words: NDArray[Any], header: DicomHeader) -> int:
    """How often both sides of the words' picture were halved."""
    return round(header.layout.rows / len(words)).bit_length() - 1


def shows_the_whole(words: NDArray[Any], header: DicomHeader) -> bool:
    """Whether a halved picture shows what the whole one does."""
    ramp = np.arange(int(words.min()), int(words.max()) + 1).astype(words.dtype)
    try:
        image = grey_levels(words, header)
        check_exposure(image.sample, image.white, slack=SLACK)
        levels = grey_levels(ramp[None], header).pixels[0].astype(np.int64)
    except NotAssessedError:  # the whole picture decides, and says why
        return False
    if WarningCode.WINDOW in image.warnings:  # then the values of all pixels count
        return False
    steps = np.diff(levels)  # of a LUT, a single entry may stand out
    is_monotonic = (steps >= 0).all() or (steps <= 0).all()
    rises = np.diff(levels[np.linspace(0, len(levels) - 1, _STEPS + 1).astype(int)])
    return bool(is_monotonic and np.abs(rises).max() * _STEPS <= MAX_STEEPNESS * image.white)


def _needs_all_pixels(header: DicomHeader, codestream: Codestream) -> bool:
    elements, layout = header.elements, header.layout
    return (
        layout.signed
        or codestream.samples > 1
        or header.orientation not in ((), ("L", "F"))
        or bool(elements.raw(_PADDING) or any(elements.raw(tag) for tag in SHUTTER_TAGS))
        or header.pixel_shape.ratio != 1.0
        or not is_stated(elements)
    )


def _coding(codestream: bytes) -> _Coding | None:
    """What the headers of a codestream say (ITU-T T.800, annex A), or None for another kind."""
    found = {marker: (start, content) for marker, start, content in segments(codestream)}
    try:
        if COC in found or not _is_complete(codestream, found[SOT][0] - 4):
            return None
        return _of_headers(found[SIZ][1], found[COD][1])
    except (struct.error, KeyError):
        return None


def _is_complete(codestream: bytes, at: int) -> bool:
    """Whether parts of one tile, all coded as the main header says, reach to the end marker."""
    while codestream[at : at + 2] == bytes((0xFF, SOT)):
        tile, length = struct.unpack_from(">HI", codestream, at + 4)
        if tile or any(marker in (COD, COC) for marker, _, _ in segments(codestream, at + 12)):
            return False
        at += length or len(codestream)
    # A frame is padded to an even length (PS3.5, A.4).
    return codestream[at : at + 2] == END and len(codestream) - at <= 3


def _of_headers(size: bytes, coding: bytes) -> _Coding | None:
    extensions, *grid, channels, depth, across, down = struct.unpack_from(">H8IH3B", size)
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = grid
    style = struct.unpack_from(">BBHBBBBBB", coding)
    if (
        (channels, across, down) != (1, 1, 1)
        or any((left, top, tile_left, tile_top, extensions & _EXTENDED, depth & 0x80))
        or (tile_width < width or tile_height < height)
    ):
        return None
    halvings, is_reversible = style[4], style[8] == 1
    return _Coding((height, width), depth + 1, halvings, is_reversible)
