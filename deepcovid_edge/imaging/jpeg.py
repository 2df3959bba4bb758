"""Pixels of a JPEG, or why they are not whole.

simplejpeg decodes strictly: a warning of libjpeg is an error. But libjpeg warns of the header as it
does of pixels, and tells of the first warning alone. So a JPEG with a warning loses what no pixel
depends on, and is decoded strictly again: damage behind a harmless warning is found too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any, NamedTuple

import simplejpeg
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import check_area

_STRAY_BYTES = re.compile("([0-9]+) extraneous bytes before marker 0x([0-9a-f]{2})")
"""What libjpeg says of bytes behind the last pixel of a scan (jerror.h, JWRN_EXTRANEOUS_DATA)."""
_HIT_MARKER = "premature end of data segment"
_MOST_TRIALS = 16
_FEW = 8
_READ_AHEAD = 8
"""Bytes that libjpeg has taken from a scan and does not count as left over (jdhuff.h, 64 bits)."""
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a segment (ITU-T T.81, table B.1)."""
SOS = 0xDA
_EOI, _APP0, _APP2, _APP14 = 0xD9, 0xE0, 0xE2, 0xEE
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_FRAMES = {*_SEQUENTIAL, 0xC2, 0xCA}
_LEAST = {(_APP0, b"JFIF\0"): 18, (_APP14, b"Adobe"): 16}
"""Length of a segment with its marker (JFIF 1.02, page 5; Adobe Technical Note 5116, page 23)."""
_WHOLE_SPECTRUM = bytes((0, 63, 0))
"""Ss, Se, Ah and Al of a sequential scan (T.81, table B.3); decoders ignore others there."""


def decode_jpeg(data: bytes, colours: str) -> NDArray[Any]:
    """Pixels of a JPEG, of shape (H, W) or (H, W, 3).

    Args:
        data: The file.
        colours: `GRAY` or `RGB`.

    Raises:
        ValueError: Some of them are damaged or missing.
    """
    try:
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colours)
    except ValueError:
        pixels = _decode_odd(jpeg_without_oddities(data), colours)
    if not _has_all_scans(data):
        raise ValueError("truncated: later scans of a progressive JPEG are missing")
    return pixels[..., 0] if colours == "GRAY" else pixels


def is_grey_of_8_bits(data: bytes) -> bool:
    """Whether a JPEG has one component of 8 bits, coded in blocks (ITU-T T.81, B.2.2)."""
    frame = next((part for part in segments(data) if part.marker in _FRAMES), None)
    if frame is None:
        return False
    held = data[frame.start + 4 : frame.end]
    return len(held) > 5 and held[0] == 8 and held[5] == 1


def _decode_odd(data: bytes, colours: str) -> NDArray[Any]:
    """Pixels of a JPEG that may have stray bytes behind its scans."""
    trials: Iterator[bytes] = iter(())
    for _ in range(_MOST_TRIALS):
        try:
            pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colours)
        except ValueError as error:
            if stray := _STRAY_BYTES.search(str(error)):
                trials = _without_stray_bytes(data, int(stray[1]), int(stray[2], 16), colours)
            trial = next(trials, None)
            if trial is None:
                raise
            data = trial
        else:
            return pixels
    raise ValueError("many scans have bytes that no pixel needs")


def jpeg_without_oddities(data: bytes) -> bytes:
    """A JPEG that gives libjpeg nothing to warn of but its pixels; these stay as they are.

    An odd version of JFIF, an unknown transform of Adobe, an ICC profile, bytes between segments,
    and a sequential scan that states a part of the spectrum (libjpeg, jerror.h: JWRN_JFIF_MAJOR,
    JWRN_ADOBE_XFORM, JWRN_BOGUS_ICC, JWRN_EXTRANEOUS_DATA, JWRN_NOT_SEQUENTIAL).
    """
    kept = [b"\xff\xd8"]
    sequential = False
    for part in segments(data):
        sequential |= part.marker in _SEQUENTIAL
        segment = data[part.start : part.end]
        if not (part.marker == _APP2 and segment.startswith(b"ICC_PROFILE\0", 4)):
            kept.append(_usual(part.marker, segment, sequential=sequential))
            kept.append(data[part.end : part.scan_end])
    return b"".join(kept)


def jpeg_with_end(data: bytes) -> bytes | None:
    """A JPEG that lacks only its end marker, in whose place zeros stand, with that marker.

    Returns:
        None where the file does not end in zeros, or they stand in the place of pixels too.
    """
    held = data.rstrip(b"\0")
    if len(held) == len(data):
        return None
    stuffed = b"\0" if held.endswith(b"\xff") else b""
    ended = held + stuffed + bytes((0xFF, _EOI))
    try:
        width, height, *_ = simplejpeg.decode_jpeg_header(ended)
        check_area(width, height)
        decode_jpeg(ended, "GRAY")
    except ValueError:
        return None
    return ended


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans give each coefficient of each component to its last bit (T.81, G.1.1.1)."""
    missing: set[tuple[int, int]] = set()
    sequential = False
    for part in segments(data):
        held = data[part.start + 4 : part.end]
        if part.marker in _FRAMES:
            sequential = part.marker in _SEQUENTIAL
            if sequential and held[5] == 1:  # one scan of one component, or no pixels at all
                return True
            missing = set(product(held[6 : 6 + 3 * held[5] : 3], range(64)))
        elif part.marker == SOS:
            first, last, bits = _WHOLE_SPECTRUM if sequential else held[-3:]
            if bits & 0x0F == 0:
                missing -= set(product(held[1 : 1 + 2 * held[0] : 2], range(first, last + 1)))
    return not missing


def _without_stray_bytes(data: bytes, count: int, marker: int, colours: str) -> Iterator[bytes]:
    """A JPEG without the last bytes of a scan; each scan that this marker follows in turn.

    Where a damaged scan lost its place, and found it again, bytes are left over too. These are many
    and not all alike, or do not follow a byte that ends as a scan does.

    Args:
        data: From `jpeg_without_oddities`.
        count: How many bytes libjpeg did not need.
        marker: The one they stand before.
        colours: As for `decode_jpeg`.
    """
    for part, following in pairwise(segments(data)):
        if following.marker == marker and part.scan_end - part.end > count:
            head, rest = data[: part.scan_end - count], data[part.scan_end :]
            is_padding = count <= _FEW or len(set(data[part.scan_end - count : part.scan_end])) == 1
            if is_padding and _ends_as_a_scan(head, rest, colours):
                yield head + rest


def _ends_as_a_scan(head: bytes, rest: bytes, colours: str) -> bool:
    """Whether all bits are 1 that stand behind the last one that a pixel needs (T.81, F.1.2.3)."""
    for _ in range(_READ_AHEAD):
        if _HIT_MARKER in _outcome(head[:-1] + rest, colours)[0]:
            break
        head = head[:-1]
    if head.endswith(b"\xff\0"):  # a stuffed byte, whose bits are all 1
        return True
    whole = _outcome(head + rest, colours)
    for bit in range(8):
        changed = bytes([head[-1] ^ 1 << bit])
        if _outcome(head[:-1] + changed + rest, colours) != whole:
            return True  # a pixel needs this bit, and those before it are 1
        if not head[-1] >> bit & 1:
            return False
    return True


def _outcome(data: bytes, colours: str) -> tuple[str, bytes]:
    """The first warning, and the pixels."""
    warning = ""
    try:
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        warning = str(error)
        pixels = simplejpeg.decode_jpeg(data, colours, strict=False)
    return warning, pixels.tobytes()


def _usual(marker: int, segment: bytes, *, sequential: bool) -> bytes:
    """A segment as libjpeg knows it; empty for one that is too short to count."""
    if marker == _APP0 and segment[4:9] == b"JFIF\0" and segment[9:10] != b"\1":
        segment = segment[:9] + b"\1\1" + segment[11:]
    elif marker == _APP14 and segment[4:9] == b"Adobe" and segment[15:16] not in (b"\0", b"\1"):
        segment = segment[:15] + b"\1" + segment[16:]  # YCbCr, as libjpeg takes it
    elif marker == SOS and sequential:
        segment = segment[:-3] + _WHOLE_SPECTRUM
    length = int.from_bytes(segment[2:4], "big") + 2
    is_short = length < _LEAST.get((marker, segment[4:9]), 0)
    return b"" if is_short else segment


class Segment(NamedTuple):
    """A segment of a JPEG with its marker, and the pixels that follow a scan's header."""

    marker: int
    start: int
    end: int
    scan_end: int


def segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end of the image; what stands between them is passed over."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            yield Segment(marker, at - 2, at, at)
            return
        if marker in _ALONE:
            continue
        start, end = at - 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        ends = _SCAN_END.search(data, end) if marker == SOS else None
        at = ends.start() if ends else end
        yield Segment(marker, start, end, at)
