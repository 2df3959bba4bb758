"""Pixels of a DICOM file as the words that stand in it, lengths and stray bits checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.codestreams import (
    Codestream,
    is_begun,
    is_padding,
    read_codestream,
    with_end,
)
from deepcovid_edge.imaging.dicom.decoding.sandbox import Request, sandbox
from deepcovid_edge.imaging.dicom.header import OFFSETS, DicomHeader, PixelLayout, PixelPlace
from deepcovid_edge.imaging.dicom.resolution import safe_halvings
from deepcovid_edge.imaging.dicom.syntaxes import (
    DEFLATED,
    ENCAPSULATED,
    SYNTAXES,
    is_end_of_data_set,
    is_native,
)
from deepcovid_edge.imaging.radiograph import LOSSY_RATIO, is_coloured, sampling_step
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason, WarningCode

MAX_STRAY = 0.001
"""Largest share of pixels with bits above the stored ones."""

_PIXEL_DATA = 0x7FE00010
_ITEM = b"\xfe\xff\x00\xe0"
_OVERSHOOT = 1.0625
_HEAD = 1 << 16
_HALVED = "YBR_FULL_422"


@dataclass(frozen=True)
class Pixels:
    """Pixels as they stand in a file.

    Attributes:
        words: Of shape (rows, columns), or (rows, columns, 3) for R, G and B, uint8 or uint16,
            native byte order, the lowest stored bit first; bits above the stored ones may be set.
        syntax: UID of the transfer syntax that they stood in.
        warnings: What their compression gives to know.
        data: The bytes that uncompressed pixels stand in, else empty.
        start: Offset of the first of those pixels.
    """

    words: NDArray[Any]
    syntax: str
    warnings: tuple[WarningCode, ...] = ()
    data: bytes = b""
    start: int = 0


def read_words(header: DicomHeader, spec: InputSpec | None = None) -> Pixels:
    """The pixels as unsigned words, and what their compression gives to know.

    Args:
        header: The image's header.
        spec: The only model input that is made of them; None for all pixels. With it both sides may
            be halved, see `resolution`.

    Raises:
        NotAssessedError: The pixels are cut off, do not fit the header or cannot be decoded.
    """
    place, layout = header.place, header.layout
    if place is None or place.tag != _PIXEL_DATA:
        raise NotAssessedError(Reason.MODE, "floating point")
    if header.native_syntax == DEFLATED and place.length is not None:
        _check_behind(header, place.start + place.length)
    syntax = header.facts.transfer_syntax_uid
    ycc = layout.photometric.startswith("YBR_FULL")
    stream = _stream(header, place)
    found = read_codestream(stream, layout.allocated // 8)
    if found is None and stream and not (is_native(syntax) or _is_whole(layout, len(stream))):
        raise _unknown(stream)
    data, warnings = b"", tuple[WarningCode, ...]()
    if found is None:
        data, little = stream or header.data, header.elements.little or bool(stream)  # PS3.5, A.4
        place = replace(place, start=0, length=len(stream)) if stream else place
        words = _native(layout, place, data, little=little)
        syntax = ENCAPSULATED if stream else header.native_syntax
    else:
        if SYNTAXES[found.syntax].family is not SYNTAXES[syntax].family:
            syntax = found.syntax
        words, warnings = _decoded(header, replace(found, syntax=syntax), spec)
        ycc = ycc if found.ycc is None else found.ycc
    _check_stray_bits(words, layout)
    words = words >> layout.low_bit if layout.low_bit else words  # PS3.5, 8.1.1, until 2014
    if words.ndim == 3:  # of 8 stored bits, whatever they are allocated
        words = _rgb(words.astype(np.uint8, copy=False), ycc=ycc)
    return Pixels(words, syntax, warnings, data, place.start)


def _check_behind(header: DicomHeader, end: int) -> None:
    """Refuse deflated pixels with more behind them than a data set has.

    RFC 1951 has no checksum: damage shows in that there are more bytes, or fewer.
    """
    if not is_end_of_data_set(header.data, end, header.encoding):
        stray = number_of(len(header.data) - end, "byte")
        detail = f"damaged: {stray} behind the pixels that are no elements, once inflated"
        raise NotAssessedError(Reason.DECODE, detail)


def _decoded(
    header: DicomHeader, codestream: Codestream, spec: InputSpec | None
) -> tuple[NDArray[Any], tuple[WarningCode, ...]]:
    layout = replace(header.layout, samples=codestream.samples)
    if layout.samples not in (1, 3) or (layout.samples == 3 and layout.stored != 8):
        detail = f"{layout.samples} channels of {layout.stored} bits"
        raise NotAssessedError(Reason.MODE, detail)
    request = _request(layout, codestream.syntax)
    if spec:
        request = replace(request, halvings=safe_halvings(header, codestream, spec))
    words = sandbox().decode(request, codestream.data)
    if codestream.signed and not layout.signed and words.view(f"i{words.itemsize}").min() < 0:
        # Whether the window means values with or without their sign, nothing says.
        raise NotAssessedError(Reason.BITS, "samples below 0, without a sign by the header")
    if not SYNTAXES[codestream.syntax].lossy:
        return words, ()
    heavy = _ratio(layout, len(codestream.data)) > LOSSY_RATIO >= header.lossy_ratio
    words = _without_overshoot(words, layout)
    return words, (WarningCode.LOSSY,) if heavy else ()


def _request(layout: PixelLayout, syntax: str) -> Request:
    return Request(
        syntax=syntax,
        rows=layout.rows,
        columns=layout.columns,
        samples=layout.samples,
        allocated=layout.allocated,
        stored=layout.stored,
        signed=layout.signed,
        photometric="RGB" if layout.samples == 3 else "MONOCHROME2",
    )


def _ratio(layout: PixelLayout, compressed: int) -> float:
    size = layout.rows * layout.columns * layout.samples * ((layout.stored + 7) // 8)
    return size / max(1, compressed)


def _native(layout: PixelLayout, place: PixelPlace, data: bytes, *, little: bool) -> NDArray[Any]:
    """Uncompressed pixels."""
    stated = len(data) - place.start if place.length is None else place.length
    count = _count(layout, stated)
    size = count * layout.allocated // 8
    if place.length is not None and stated < size:
        raise NotAssessedError(Reason.LENGTH, f"{stated} bytes of pixels, {size} by the header")
    held = min(stated, len(data) - place.start)
    if held < size:
        raise NotAssessedError(Reason.TRUNCATED, f"{held} of {size} bytes")
    words = _unsigned(data, place, layout, held * 8 // layout.allocated, little=little)
    planes = layout.samples if layout.planar else 1
    rows = layout.rows * planes
    if held > size + size % 2 and not is_padding(words, rows, count // rows):
        detail = f"{stated} bytes of pixels, {size} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    words = words[:count]
    if layout.samples == 1:
        return words.reshape(layout.rows, layout.columns)
    if count == 2 * layout.rows * layout.columns:
        return _without_halving(words, layout)
    return _channels(words, layout)


def _channels(words: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Channels as the header says that they stand, unless a grey picture shows the other way."""
    ways = [
        words.reshape(layout.rows, layout.columns, 3),
        np.moveaxis(words.reshape(3, layout.rows, layout.columns), 0, -1),
    ]
    stated, other = ways[:: -1 if layout.planar else 1]
    return other if _is_grey(other) and not _is_grey(stated) else stated


def _is_grey(channels: NDArray[Any]) -> bool:
    """Whether channels are equal all over, or two of them 128, wherever it is looked."""
    step = sampling_step(channels)
    sample = channels[::step, ::step]
    return not np.ptp(sample, axis=2).any() or bool((sample[..., 1:] == 128).all())


def _without_halving(words: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Y, Cb and Cr of each pixel (PS3.3, C.7.6.3.1.2: Y, Y, Cb, Cr of two pixels in turn)."""
    if layout.columns % 2:
        raise NotAssessedError(Reason.MODE, "YBR_FULL_422 of an odd width")
    pairs = words.reshape(layout.rows, layout.columns // 2, 4)
    pixels = np.empty((layout.rows, layout.columns, 3), words.dtype)
    pixels[..., 0] = pairs[..., :2].reshape(layout.rows, layout.columns)
    pixels[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    return pixels


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


def _count(layout: PixelLayout, size: int) -> int:
    """Words of an uncompressed image of a size in bytes.

    YBR_FULL_422 has one Cb and Cr for two of Y (PS3.3, C.7.6.3.1.2). The label outlives a
    conversion in some files, which then hold three samples for each pixel.
    """
    pixels = layout.rows * layout.columns
    halved = layout.photometric == _HALVED and size < 3 * pixels
    return pixels * (2 if halved else layout.samples)


def _is_whole(layout: PixelLayout, size: int) -> bool:
    """Whether this is an uncompressed image's size in bytes, padded to an even one or not."""
    return 0 <= size - _count(layout, size) * layout.allocated // 8 <= 1


def _stream(header: DicomHeader, place: PixelPlace) -> bytes:
    """What stands in fragments, or a codestream that stands there as it is; else nothing."""
    data, length = header.data, place.length
    end = len(data) if length is None else min(place.start + length, len(data))
    in_items = data[place.start : place.start + 4] == _ITEM
    if length is None and (in_items or not is_native(header.facts.transfer_syntax_uid)):
        return _joined(header, place.start, end)
    if length is None or _is_whole(header.layout, length):
        return b""
    if in_items:
        return _joined(header, place.start, end)
    head = data[place.start : min(end, place.start + _HEAD)]
    if read_codestream(head, header.layout.allocated // 8) is None:
        return b""
    return data[place.start : end]


def _unknown(stream: bytes) -> NotAssessedError:
    """Why what stands in fragments is no codestream."""
    if len(stream) < 64 or (is_begun(stream) and with_end(stream) is None):
        return NotAssessedError(Reason.TRUNCATED, f"{len(stream)} bytes of compressed pixels")
    return NotAssessedError(Reason.DECODE, "compressed pixels of no known kind")


def _joined(header: DicomHeader, at: int, end: int) -> bytes:
    """The only frame's codestream (PS3.5, A.4: a table of offsets, then its fragments).

    What follows is not looked at: whether the codestream is whole, it says itself.
    """
    data, fragments = header.data, list[bytes]()
    while at + 8 <= end and data[at : at + 4] == _ITEM:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length
        fragments.append(data[at - length : min(at, end)])
    # Some leave the table out.
    has_table = bool(fragments) and read_codestream(fragments[0], 1) is None
    table, pieces = (fragments[0], fragments[1:]) if has_table else (b"", fragments)
    if not any(pieces):
        reason = Reason.TRUNCATED if at + 8 > len(data) else Reason.DECODE
        raise NotAssessedError(reason, "compressed pixels without a codestream")
    frames = max(
        _pointed_to(pieces, table, "I"),
        _pointed_to(pieces, header.elements.raw(OFFSETS), "Q"),
        sum(read_codestream(piece, 1) is not None for piece in pieces),
    )
    if frames > 1:
        raise NotAssessedError(Reason.FRAMES, f"{frames} compressed pictures")
    return b"".join(pieces)


def _pointed_to(pieces: list[bytes], table: bytes, number: str) -> int:
    """Pictures that a table of offsets points to: it may have every fragment, or the end as well.

    Args:
        pieces: The fragments.
        table: As it is stored.
        number: Letter of `struct` for one of its offsets.
    """
    count = min(len(table) // struct.calcsize(number), len(pieces) + 1)
    stated = {*struct.unpack_from(f"<{count}{number}", table)}
    starts = accumulate((8 + len(piece) for piece in pieces), initial=0)
    return sum(
        start in stated and is_begun(piece) for piece, start in zip(pieces, starts, strict=False)
    )


def _rgb(words: NDArray[Any], *, ycc: bool) -> NDArray[Any]:
    """R, G and B of the three channels that stand in a file.

    A grey picture shows what they are: they are equal, or two of them are 128 all over. Where it is
    not grey as it is labelled, but would be the other way, the label is wrong.
    """
    step = sampling_step(words)
    sample = words[::step, ::step]
    if is_coloured(_converted(sample, ycc=ycc)) and not is_coloured(
        _converted(sample, ycc=not ycc)
    ):
        ycc = not ycc
    return _converted(words, ycc=ycc)


def _converted(words: NDArray[Any], *, ycc: bool) -> NDArray[Any]:
    if not ycc:
        return words
    # PS3.3, C.7.6.3.1.2: the YCbCr of JPEG; OpenCV takes Cr before Cb.
    ordered = np.ascontiguousarray(words[..., [0, 2, 1]])
    pixels: NDArray[Any] = cv2.cvtColor(ordered, cv2.COLOR_YCrCb2RGB)
    return pixels


def _without_overshoot(words: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Words that lossy coding moved a little beyond an end of the range, moved back to it."""
    low, top, values = 0, (1 << layout.stored) - 1, words
    if layout.signed:
        low, top = -(1 << layout.stored - 1), (1 << layout.stored - 1) - 1
        values = words.view(f"i{words.itemsize}")
        if values.min() >= 0:  # coded without a sign: what lies above the top is negative
            return words
    most = round((top - low) * _OVERSHOOT)
    lowest, highest = int(values.min()), int(values.max())
    if (low <= lowest and highest <= top) or max(highest - low, top - lowest) > most:
        return words
    clipped: NDArray[Any] = np.clip(values, low, top).view(words.dtype)
    return clipped


def _check_stray_bits(words: NDArray[Any], layout: PixelLayout) -> None:
    """Refuse words with bits beside the stored ones, overlays and copies of a sign apart."""
    stored = (1 << layout.stored) - 1 << layout.low_bit
    unused = (1 << layout.allocated) - 1 & ~(stored | layout.overlays)
    if not unused or not int(np.bitwise_or.reduce(words, None)) & unused:
        return
    beside = np.arange(1 << layout.allocated) & unused
    stray = beside != 0
    if layout.signed:
        sign = np.arange(1 << layout.allocated) >> layout.high_bit & 1 == 1
        stray &= ~(sign & (beside == unused >> layout.high_bit << layout.high_bit))
    share = np.count_nonzero(stray[words]) / words.size
    if share > MAX_STRAY:
        detail = f"bits beside the stored {layout.stored}, the highest {layout.high_bit}"
        raise NotAssessedError(Reason.BITS, f"{detail}, in {share:.1%} of the pixels")
