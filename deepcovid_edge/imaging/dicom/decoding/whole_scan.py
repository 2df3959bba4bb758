"""Whether the pixels of a JPEG need its scans to the end, and nothing behind them.

libjpeg makes pixels of a damaged scan and only warns; imagecodecs does not pass that on. simplejpeg
does, of 8 bits of a DCT (`imaging.formats.jpeg`), and of 12 bits that are labelled as 8. Lossless
JPEG, and 12 bits in one scan, are decoded again. With more bytes behind the scan no pixel may
change: else the scan ended too early. With its last bits inverted the last pixels have to change,
and these alone: if none does, it ended too late. Codes have no fixed length, so after bytes that
were lost or overwritten hardly any scan ends with its last pixel.

The codes of lossless JPEG begin anew in every restart interval (ITU-T T.81, H.1.1), so all its
intervals are looked at together. In blocks of a DCT the last interval is: where one ends in white
or black, its last bits may change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.codestreams import END
from deepcovid_edge.imaging.formats.jpeg import DRI, SOS, Segment, segments
from deepcovid_edge.reasons import Reason

_LAST, _LAST_OF_DCT = (3, 6), (1, 4, 16)
"""How many of the last bytes are inverted, until a pixel changes: an encoder may end with some that
no pixel needs, and a pixel of a DCT may be white or black whatever its codes are. Inverted codes of
an even border are none, and stand for the same, up to 17 bits of them (libjpeg-turbo, jdhuff.c)."""
_ELSE = b"\x55" * 64
"""What the inverted bits need behind them."""
_RESTART, _RESTARTS = 0xD0, 0xF8
"""The second byte of a restart marker, and which of its bits say so (T.81, table B.1)."""
_FF, _SOF_LOSSLESS = 0xFF, 0xC3
_BLOCK, _WHITE = 8, 4095
_LEAST_BITS = 2
"""What a block of a DCT takes at the least."""


def check_by_last_bits(
    codestream: bytes,
    pixels: NDArray[Any],
    decode: Callable[[bytes], NDArray[Any] | None],
    *,
    dct: bool,
) -> None:
    """Look whether the last pixels are those of the last bits.

    Args:
        codestream: A JPEG with its end; of a DCT, of one channel.
        pixels: What it was decoded to, of shape (rows, columns), or (rows, columns, channels) where
            each channel has as many.
        decode: The decoder; None where it raised an error.
        dct: Whether it is coded in blocks; else pixel by pixel.

    Raises:
        NotAssessedError: They are not.
    """
    parts = list(segments(codestream))
    scans = [part for part in parts if part.marker == SOS]
    if len(scans) != 1 and (dct or len(scans) != pixels[0, 0].size):
        return
    if not (dct or _is_sampled_alike(codestream, parts)):
        return
    size = 0 if dct else _interval(codestream, parts)
    sides = [_intervals(codestream, scan, size) for scan in scans]
    count = -(-pixels.shape[0] * pixels.shape[1] // size) if size else 1
    if any(len(ends) != count for ends in sides):
        stated = number_of(count, "restart interval")
        detail = f"damaged: {stated} by its header, not as many in its scan"
        raise NotAssessedError(Reason.DECODE, detail)
    unseen = np.ones((len(scans), count), bool)
    for last in (0, *(_LAST_OF_DCT if dct else _LAST)):
        other = decode(_inverted(codestream, scans, sides, last))
        if other is None:  # one that raises errors has raised none for the scan as it is
            return
        planes = _planes(pixels != other, len(scans))
        reach = np.stack([_blocks(one) if dct else _reach(one, size) for one in planes])
        least = _LEAST_BITS if dct else planes[0].shape[2]  # a bit for each channel
        if (reach[unseen] > -(-8 * last // least)).any():  # of 0 bytes none
            raise NotAssessedError(Reason.TRUNCATED, "bytes of the last pixels are missing")
        unseen &= reach == 0
        if not unseen.any():
            return
    if dct and _is_clamped(pixels):
        return
    held = zip(_planes(pixels, len(scans)), unseen, strict=True)
    if any(left.any() and np.ptp(plane) for plane, left in held):  # one grey may have but one code
        raise NotAssessedError(Reason.DECODE, "damaged: its end belongs to no pixel")


def _is_clamped(pixels: NDArray[Any]) -> bool:
    """Whether the last block is black or white, which other codes may be too."""
    row, column = ((side - 1) // _BLOCK * _BLOCK for side in pixels.shape[:2])
    block = pixels[row:, column:]
    return bool(np.ptp(block) == 0 and block[0, 0] in (0, _WHITE))


def _planes(pixels: NDArray[Any], scans: int) -> list[NDArray[Any]]:
    """What each scan holds, of shape (rows, columns, channels)."""
    return np.split(np.atleast_3d(pixels), scans, axis=2)


def _is_sampled_alike(codestream: bytes, parts: list[Segment]) -> bool:
    """Whether a lossless JPEG has as many samples of each channel (T.81, B.2.2)."""
    frame = next((part for part in parts if part.marker == _SOF_LOSSLESS), None)
    return frame is not None and len({*codestream[frame.start + 11 : frame.end : 3]}) == 1


def _interval(codestream: bytes, parts: list[Segment]) -> int:
    """Pixels of a restart interval, 0 where there is but one (T.81, B.2.4.4)."""
    last = next((part for part in reversed(parts) if part.marker == DRI), None)
    return int.from_bytes(codestream[last.start + 4 : last.end], "big") if last else 0


def _intervals(codestream: bytes, scan: Segment, size: int) -> list[tuple[int, int]]:
    """Where the codes of each restart interval of a scan start and end."""
    if not size:
        return [(scan.end, scan.scan_end)]
    codes = np.frombuffer(codestream, np.uint8, scan.scan_end - scan.end, scan.end)
    ones = np.flatnonzero(codes[:-1] == _FF)
    marks = ones[codes[ones + 1] & _RESTARTS == _RESTART] + scan.end
    ends = [*marks.tolist(), scan.scan_end]
    starts = [scan.end, *(mark + 2 for mark in ends[:-1])]
    if starts[-1] == ends[-1]:  # a marker behind the last one too
        starts, ends = starts[:-1], ends[:-1]
    return list(zip(starts, ends, strict=True))


def _inverted(
    codestream: bytes, scans: list[Segment], sides: list[list[tuple[int, int]]], count: int
) -> bytes:
    """A JPEG whose intervals have their last bytes inverted, and more of them behind."""
    view, at = memoryview(codestream), 0
    pieces: list[bytes | memoryview] = []
    for start, end in (side for ends in sides for side in ends):
        first = max(start, end - count)
        if start < first < end and codestream[first - 1] == _FF:  # a 0 is stuffed (T.81, F.1.2.3)
            first -= 1
        last = np.frombuffer(codestream[first:end].replace(b"\xff\0", b"\xff"), np.uint8)
        pieces += [view[at:first], (~last).tobytes().replace(b"\xff", b"\xff\0"), _ELSE]
        at = end
    return b"".join([*pieces, view[at : scans[-1].scan_end], END])


def _reach(changed: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """How many pixels lie between the first that changed and the end, 0 where none did.

    Args:
        changed: Of shape (rows, columns, channels).
        size: Pixels of a restart interval, 0 for all.

    Returns:
        For each interval.
    """
    rows, columns, channels = map(int, changed.shape)
    pixels = rows * columns
    ends = np.minimum(np.arange(0, pixels, size or pixels) + (size or pixels), pixels)
    places = np.append(np.flatnonzero(changed) // channels, pixels)
    starts = np.append(0, ends[:-1])
    first = places[np.searchsorted(places, starts)]
    reach: NDArray[np.int64] = np.maximum(0, ends - first)
    return reach


def _blocks(changed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The same of a DCT: how many blocks, of all the image."""
    rows, columns, _ = map(int, changed.shape)
    if not changed.any():
        return np.zeros(1, np.int64)
    row, column = divmod(int(changed.argmax()), columns)
    high, wide = -(-rows // _BLOCK), -(-columns // _BLOCK)
    return np.array([high * wide - (row // _BLOCK * wide + column // _BLOCK)])
