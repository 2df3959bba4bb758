"""Pixels of a JPEG, or why they are not whole.

simplejpeg decodes strictly: a warning of libjpeg is an error. But libjpeg warns of the header as it
does of pixels, and tells of the first warning alone. So a JPEG with a warning loses what no pixel
depends on, and is decoded strictly again: damage behind a harmless warning is found too.

simplejpeg does not know all ways of sampling chroma, see `_of_other_sampling`.

Arithmetic coding gives libjpeg nothing to warn of: its decoder reads zeros behind the end of a scan
(ITU-T T.81, D.2.8). There it is counted how many of them it takes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.radiograph import ONE_GREY, check_area
from deepcovid_edge.reasons import Reason

_STRAY_BYTES = re.compile("([0-9]+) extraneous bytes before marker 0x([0-9a-f]{2})")
"""What libjpeg says of bytes behind the last pixel of a scan (jerror.h, JWRN_EXTRANEOUS_DATA)."""
_OTHER_SAMPLING = "Could not determine subsampling level"
"""What TurboJPEG says of chroma that is sampled in a way it has no name for."""
_HIT_MARKER = "premature end of data segment"
_MOST_TRIALS = 16
_FEW = 8
_READ_AHEAD = 8
"""Bytes that libjpeg has taken from a scan and does not count as left over (jdhuff.h, 64 bits)."""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Both are a marker with one byte FF: a search for all the fill bytes before it (T.81, B.1.1.2)
takes the square of their number."""
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a segment (ITU-T T.81, table B.1)."""
SOS, DRI = 0xDA, 0xDD
_EOI, _DNL, _APP0, _APP2, _APP14 = 0xD9, 0xDC, 0xE0, 0xE2, 0xEE
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_ARITHMETIC = {0xC9, 0xCA}
_MOST_SCANS = 500
"""As many as libjpeg-turbo's fuzzers decode (fuzz/decompress.cc); encoders write some ten."""
_MOST_SEGMENTS = 1 << 16
"""Segments of an image; 500 scans with their tables and a gigabyte of metadata have fewer."""
_FRAMES = {*_SEQUENTIAL, 0xC2, 0xCA}
_LOSSLESS = 0xC3
_ZEROS = bytes(64)
_FEW_ZEROS, _FLAT_ZEROS = 4, 16
"""Zeros that an arithmetic decoder takes behind a whole scan: those that it reads ahead, and those
that the encoder left out (T.81, D.1.8), which are more where the image ends in one grey."""
_FILL = b"\0\xff"
_MOST_FILL = 4
"""Bytes like padding that may belong to the last pixels: two of 1 with the zeros behind them."""
_LAST = (1, 4, 16)
"""How many of the last bytes are replaced, until a pixel changes: an encoder may end with some that
no pixel needs."""
_ELSE = bytes([0x5A, 0xA5, 0x33]) * 40
"""What they are replaced by."""
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
        NotAssessedError: A scan, or the end of one that is coded arithmetically, is missing; or
            there are more scans than an encoder writes.
        ValueError: Some of them are damaged or missing.
    """
    _check_scans(data)
    try:
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colours)
    except ValueError:
        data = jpeg_without_oddities(data)
        pixels = _decode_odd(data, colours)
    if not has_all_scans(data):
        raise NotAssessedError(Reason.TRUNCATED, "later scans of a progressive JPEG are missing")
    if _reads_on(data, pixels, colours):
        raise NotAssessedError(Reason.TRUNCATED, "codes of the last pixels are missing")
    return pixels[..., 0] if colours == "GRAY" else pixels


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG of very many scans: each takes as long as a whole picture of one."""
    count = sum(part.marker == SOS for part in segments(data))
    if count > _MOST_SCANS:
        raise NotAssessedError(Reason.DECODE, f"{count} scans; at most {_MOST_SCANS} are read")


def is_grey_of_8_bits(data: bytes) -> bool:
    """Whether a JPEG has one component of 8 bits, coded in blocks (ITU-T T.81, B.2.2)."""
    frame = _frame(data)
    if frame is None:
        return False
    held = data[frame.start + 4 : frame.end]
    return len(held) > 5 and held[0] == 8 and held[5] == 1


def is_one_huffman_scan(data: bytes) -> bool:
    """Whether a JPEG is coded with the codes of Huffman, in one scan."""
    frame = _frame(data)
    is_huffman = frame is not None and frame.marker not in _ARITHMETIC
    return is_huffman and sum(part.marker == SOS for part in segments(data)) == 1


def with_8_bits(data: bytes) -> bytes:
    """A JPEG of 12 bits labelled as one of 8, which simplejpeg decodes: for its warnings alone.

    Its codes are the same, and so is the damage that libjpeg finds in them (T.81, F.1.2 and G.1).
    """
    frame = _frame(data)
    return data if frame is None else data[: frame.start + 4] + b"\x08" + data[frame.start + 5 :]


def _decode_odd(data: bytes, colours: str) -> NDArray[Any]:
    """Pixels of a JPEG that may have stray bytes behind its scans."""
    trials: Iterator[bytes] = iter(())
    for _ in range(_MOST_TRIALS):
        try:
            pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colours)
        except ValueError as error:
            if _OTHER_SAMPLING in str(error):
                return _of_other_sampling(data, colours)
            if stray := _STRAY_BYTES.search(str(error)):
                trials = _without_stray_bytes(data, int(stray[1]), int(stray[2], 16), colours)
            trial = next(trials, None)
            if trial is None:
                raise
            data = trial
        else:
            return pixels
    raise ValueError("many scans have bytes that no pixel needs")


def _of_other_sampling(data: bytes, colours: str) -> NDArray[Any]:
    """Pixels of a JPEG whose chroma is sampled by 4:1:0, 3:1 or the like.

    Pillow decodes it, and does not pass on what libjpeg warns of. In one scan without restarts the
    last pixels take the last bytes, and nothing behind them: else it is damaged, as codes have no
    fixed length. Others are not read.
    """
    parts = list(segments(data))
    if not is_one_huffman_scan(data) or any(part.marker == DRI for part in parts):
        raise ValueError("unusual chroma sampling: save it again without chroma subsampling")
    codes = data[: next(part.scan_end for part in parts if part.marker == SOS)]
    pixels = _by_pillow(data, "RGB")

    def is_changed(codes: bytes) -> bool:
        return not np.array_equal(pixels, _by_pillow(codes + _ELSE + bytes((0xFF, _EOI)), "RGB"))

    if is_changed(codes):
        raise NotAssessedError(Reason.TRUNCATED, "codes of the last pixels are missing")
    last = pixels[-8:, -8:]
    is_clamped = np.ptp(last) == 0 and last.flat[0] in (0, 255)  # other codes may be, too
    fewer = (codes[:-count].removesuffix(b"\xff") for count in _LAST)  # a 0 was stuffed
    if not (is_clamped or any(map(is_changed, fewer))):
        raise NotAssessedError(Reason.DECODE, "damaged: its end belongs to no pixel")
    return pixels if colours == "RGB" else _by_pillow(data, "L")[..., None]


def _by_pillow(data: bytes, mode: str) -> NDArray[Any]:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]).convert(mode))
    except Exception as error:  # Pillow raises nearly anything on a broken header
        raise ValueError(one_line(error)) from error


def jpeg_without_oddities(data: bytes) -> bytes:
    """A JPEG that gives libjpeg nothing to warn of but its pixels; these stay as they are.

    An odd version of JFIF, an unknown transform of Adobe, an ICC profile, bytes between segments,
    and a sequential scan that states a part of the spectrum (libjpeg, jerror.h: JWRN_JFIF_MAJOR,
    JWRN_ADOBE_XFORM, JWRN_BOGUS_ICC, JWRN_EXTRANEOUS_DATA, JWRN_NOT_SEQUENTIAL). A height that
    stands behind the first scan is put where libjpeg looks for it.
    """
    kept = [b"\xff\xd8"]
    sequential = False
    data = _with_height(data)
    for part in segments(data):
        sequential |= part.marker in _SEQUENTIAL
        segment = data[part.start : part.end]
        if not (part.marker == _APP2 and segment.startswith(b"ICC_PROFILE\0", 4)):
            kept.append(_usual(part.marker, segment, sequential=sequential))
            kept.append(data[part.end : part.scan_end])
    return b"".join(kept)


def jpeg_with_end(data: bytes) -> bytes | None:
    """A JPEG that lacks only its end marker, with that marker.

    Zeros or bytes of 1 may stand in its place. The first of them may be of the last pixels.

    Returns:
        None where pixels are missing too.
    """
    bare = data.rstrip(_FILL)
    fill = data[len(bare) :][:_MOST_FILL]
    tails = (fill[:size].rstrip(b"\xff") for size in range(len(fill) + 1))
    for tail in dict.fromkeys(tails):
        ended = bare + tail + bytes((0xFF, _EOI))
        sides = _sides(ended)
        if sides is None:
            return None
        check_area(*sides)
        with suppress(ValueError, NotAssessedError):
            decode_jpeg(ended, "GRAY")
            return ended
    return None


def _frame(data: bytes) -> Segment | None:
    return next((part for part in segments(data) if part.marker in _FRAMES), None)


def _sides(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header. simplejpeg's own reader of it does not know 4:4:1."""
    data = _with_height(data)
    for part in segments(data):
        if part.marker in _FRAMES or part.marker == _LOSSLESS:
            height, width = (
                int.from_bytes(data[part.start + at : part.start + at + 2], "big") for at in (5, 7)
            )
            return width, height
    return None


def _with_height(data: bytes) -> bytes:
    """The height that stands behind the first scan put into the frame (T.81, B.2.5)."""
    frame = _frame(data)
    if frame is None or data[frame.start + 5 : frame.start + 7] != b"\0\0":
        return data
    for part in segments(data):
        if part.marker == _DNL:
            height = data[part.start + 4 : part.end]
            before = data[: frame.start + 5] + height + data[frame.start + 7 : part.start]
            return before + data[part.end :]
    return data


def _reads_on(data: bytes, pixels: NDArray[Any], colours: str) -> bool:
    """Whether an arithmetic decoder takes more zeros behind the last scan than a whole one needs.

    Zeros behind it change no pixel, and libjpeg says how many are left over.
    """
    frame = _frame(data)
    if frame is None or frame.marker not in _ARITHMETIC:
        return False
    end = max(part.scan_end for part in segments(data) if part.marker == SOS)
    codes = data[:end].rstrip(b"\0")
    if codes.endswith(b"\xff"):
        codes += b"\0"  # a stuffed byte
    warning, _ = _outcome(codes + _ZEROS + data[end:], colours)
    stray = _STRAY_BYTES.search(warning)
    taken = len(_ZEROS) - int(stray[1]) if stray else len(_ZEROS)
    ends_in_one_grey = np.ptp(pixels[-1], axis=0).max() <= ONE_GREY
    return taken > (_FLAT_ZEROS if ends_in_one_grey else _FEW_ZEROS)


def has_all_scans(data: bytes) -> bool:
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
    """The segments up to the end of the image; what stands between them is passed over.

    Raises:
        NotAssessedError: There are more than any image has.
    """
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if not found:
            return
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            yield Segment(marker, at - 2, at, at)
            return
        if marker in _ALONE:
            continue
        start, end = at - 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        ends = _SCAN_END.search(data, end) if marker == SOS else None
        at = end + len(data[end : ends.start()].rstrip(b"\xff")) if ends else end
        yield Segment(marker, start, end, at)
    raise NotAssessedError(Reason.DECODE, f"more than {_MOST_SEGMENTS} parts in a JPEG")
