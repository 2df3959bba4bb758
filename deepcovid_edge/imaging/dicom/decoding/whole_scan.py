"""Whether the pixels of a JPEG need its scan to the end, and nothing behind it.

libjpeg makes pixels of a damaged scan and only warns; imagecodecs does not pass that on. simplejpeg
does, of 8 bits of a DCT (`imaging.jpeg`), and of 12 bits that are labelled as 8. For lossless JPEG,
and for 12 bits in one scan, the scan is decoded once more with its last bits inverted. Then the
last pixels have to change, and these alone: if earlier ones do, the scan ended too early; if none
does, too late. Codes have no fixed length, so after bytes that were lost or overwritten hardly any
scan ends with its last pixel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.codestreams import END
from deepcovid_edge.imaging.jpeg import SOS, segments
from deepcovid_edge.reasons import Reason

_LAST = (1, 4, 16)
"""How many of the last bytes are inverted, until a pixel changes: an encoder may end with some that
no pixel needs, and a pixel of a DCT may be white or black whatever its codes are."""
_ELSE = b"\x55" * 64
"""What the inverted bits need behind them."""
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FF = 0xFF
_BLOCK = 8
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
        codestream: A JPEG of one channel with its end.
        pixels: What it was decoded to, of shape (rows, columns).
        decode: The decoder; None where it raised an error.
        dct: Whether it is coded in blocks; else pixel by pixel.

    Raises:
        NotAssessedError: They are not.
    """
    scans = [part for part in segments(codestream) if part.marker == SOS]
    if len(scans) != 1:
        return
    head = codestream[: scans[0].scan_end]
    for count in _LAST if dct else _LAST[:2]:
        start = max(scans[0].end, len(head) - count)
        other = decode(_inverted(head, start) + _ELSE + END)
        if other is None:  # one that raises errors has raised none for the scan as it is
            return
        changed = pixels != other
        if changed.any():
            if _reach(changed, dct=dct) > 8 * count // (_LEAST_BITS if dct else 1):
                raise NotAssessedError(Reason.TRUNCATED, "bytes of the last pixels are missing")
            return
    raise NotAssessedError(Reason.DECODE, "damaged: its end belongs to no pixel")


def _inverted(head: bytes, start: int) -> bytes:
    """A scan with its bits inverted from an offset on, or from its last marker on."""
    if head[start - 1] == _FF:  # a byte of 0 is stuffed behind it (T.81, F.1.2.3)
        start -= 1
    start = max([start, *(found.end() for found in _RESTART.finditer(head, start - 1))])
    last = np.frombuffer(head[start:].replace(b"\xff\0", b"\xff"), np.uint8)
    return head[:start] + (~last).tobytes().replace(b"\xff", b"\xff\0")


def _reach(changed: NDArray[np.bool_], *, dct: bool) -> int:
    """How many pixels, or blocks of a DCT, lie between the first that changed and the end."""
    rows, columns = map(int, changed.shape)
    first = int(changed.argmax())
    if not dct:
        return rows * columns - first
    row, column = divmod(first, columns)
    high, wide = -(-rows // _BLOCK), -(-columns // _BLOCK)
    return high * wide - (row // _BLOCK * wide + column // _BLOCK)
