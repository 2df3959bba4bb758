"""Pixels of a DICOM file as the words that stand in it, lengths and stray bits checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout, PixelPlace
from deepcovid_edge.imaging.dicom.resolution import safe_halvings
from deepcovid_edge.imaging.dicom.sandbox import Request, sandbox
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES, Family
from deepcovid_edge.imaging.radiograph import LOSSY_RATIO
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason, WarningCode

MAX_STRAY = 0.001
"""Largest share of pixels with bits above the stored ones."""

_PIXEL_DATA = 0x7FE00010
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_OVERSHOOT = 1.0625
_PADDING = 4096
"""Zeros behind the end of a codestream that are looked through for it."""


def read_words(
    header: DicomHeader, spec: InputSpec | None = None
) -> tuple[NDArray[Any], list[WarningCode]]:
    """The pixels as unsigned words, and what their compression gives to know.

    Args:
        header: The image's header.
        spec: The only model input that is made of them; None for all pixels.

    Returns:
        Of shape (rows, columns) or (rows, columns, 3), uint8 or uint16, native byte order; bits
        above the stored ones may be set in a few. Both sides may be halved, see `resolution`.

    Raises:
        NotAssessedError: The pixels are cut off, do not fit the header or cannot be decoded.
    """
    place, layout = header.place, header.layout
    if place is None or place.tag != _PIXEL_DATA:
        raise NotAssessedError(Reason.MODE, "floating point")
    warnings: list[WarningCode] = []
    syntax = SYNTAXES[header.facts.transfer_syntax_uid]
    if syntax.family is Family.NATIVE:
        words = _native(header, place)
    else:
        codestream = _codestream(header.data, place, syntax.family)
        if syntax.lossy and _ratio(layout, len(codestream)) > LOSSY_RATIO >= header.lossy_ratio:
            warnings.append(WarningCode.LOSSY)
        halvings = safe_halvings(header, codestream, spec) if spec else 0
        words = sandbox().decode(replace(_request(header), halvings=halvings), codestream)
        if syntax.lossy and not layout.signed:
            words = _without_overshoot(words, layout.stored)
    _check_stray_bits(words, layout)
    return words, warnings


def _request(header: DicomHeader) -> Request:
    layout = header.layout
    return Request(
        syntax=header.facts.transfer_syntax_uid,
        rows=layout.rows,
        columns=layout.columns,
        samples=layout.samples,
        allocated=layout.allocated,
        stored=layout.stored,
        signed=layout.signed,
        photometric=layout.photometric,
    )


def _ratio(layout: PixelLayout, compressed: int) -> float:
    size = layout.rows * layout.columns * layout.samples * ((layout.stored + 7) // 8)
    return size / max(1, compressed)


def _native(header: DicomHeader, place: PixelPlace) -> NDArray[Any]:
    layout, data = header.layout, header.data
    if layout.photometric == "YBR_FULL_422":
        raise NotAssessedError(Reason.MODE, "YBR_FULL_422, uncompressed")
    count = layout.rows * layout.columns * layout.samples
    size = count * layout.allocated // 8
    if place.length is None or place.length not in (size, size + size % 2):
        stated = "undefined" if place.length is None else str(place.length)
        raise NotAssessedError(Reason.LENGTH, f"{stated} bytes of pixels, {size} by the header")
    if place.start + size > len(data):
        raise NotAssessedError(Reason.TRUNCATED, f"{len(data) - place.start} of {size} bytes")
    words = _unsigned(data, place, layout, count, little=header.elements.little)
    if layout.samples == 1:
        return words.reshape(layout.rows, layout.columns)
    if layout.planar:
        return np.moveaxis(words.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    return words.reshape(layout.rows, layout.columns, layout.samples)


def _unsigned(
    data: bytes, place: PixelPlace, layout: PixelLayout, count: int, *, little: bool
) -> NDArray[Any]:
    """The words in native byte order, without a copy where they stand so."""
    if layout.allocated == 16:
        order = "<u2" if little else ">u2"
        words = np.frombuffer(data, order, count, place.start)
        return words.astype(np.uint16, copy=False)
    if little or place.kind != "OW":
        return np.frombuffer(data, np.uint8, count, place.start)
    # PS3.5, 7.3: bytes of a big-endian OW stand in swapped pairs.
    pairs = np.frombuffer(data, ">u2", (count + 1) // 2, place.start)
    return pairs.astype("<u2").view(np.uint8)[:count]


def _codestream(data: bytes, place: PixelPlace, family: Family) -> bytes:
    """The only frame's codestream (PS3.5, A.4: a table of offsets, then its fragments)."""
    if place.length is not None:
        raise NotAssessedError(Reason.LENGTH, "compressed pixels of a stated length")
    fragments: list[bytes] = []
    at = place.start
    while (tag := data[at : at + 4]) == _ITEM:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length
        if at > len(data):
            break
        fragments.append(data[at - length : at])
    if at + 8 > len(data):
        raise NotAssessedError(Reason.TRUNCATED, "compressed pixels without their end")
    if tag != _DELIMITER or len(fragments) < 2:
        raise NotAssessedError(Reason.DECODE, "compressed pixels are not in fragments")
    codestream = b"".join(fragments[1:])
    # ITU-T T.81, T.87, T.800, T.814: each of them ends in FFD9, and none of their decoders that
    # were tried notices all ends that are missing. Fragments are padded to an even length.
    if family is not Family.RLE and not codestream[-_PADDING:].rstrip(b"\0").endswith(b"\xff\xd9"):
        raise NotAssessedError(Reason.TRUNCATED, f"{family.value} without its end")
    return codestream


def _without_overshoot(words: NDArray[Any], stored: int) -> NDArray[Any]:
    """Words that lossy coding moved a little above full white, moved back to it."""
    highest = int(words.max())
    top = (1 << stored) - 1
    return np.minimum(words, words.dtype.type(top)) if top < highest <= top * _OVERSHOOT else words


def _check_stray_bits(words: NDArray[Any], layout: PixelLayout) -> None:
    """Refuse words with bits above the stored ones, a signed word's copies of its sign apart."""
    if layout.stored == layout.allocated or not int(np.bitwise_or.reduce(words, None)) >> (
        layout.stored
    ):
        return
    high = np.arange(1 << layout.allocated) >> layout.stored
    stray = high != 0
    if layout.signed:
        sign = np.arange(1 << layout.allocated) >> (layout.stored - 1) & 1 == 1
        stray &= ~(sign & (high == high.max()))
    share = np.count_nonzero(stray[words]) / words.size
    if share > MAX_STRAY:
        detail = f"bits above {layout.stored} in {share:.1%} of the pixels"
        raise NotAssessedError(Reason.BITS, detail)
