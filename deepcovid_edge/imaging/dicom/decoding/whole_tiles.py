"""Whether the tiles of a JPEG 2000 or HTJ2K hold nothing that no encoder writes.

OpenJPEG makes pixels of damaged code-blocks without an error. Two things show such damage:

- Neither packet headers nor code-blocks have a byte above 8F behind one of FF (ITU-T T.800, B.10.1,
  C.2.2 and D.6; T.814, 7.1): only markers do.
- The arithmetic decoder takes zeros for one unlikely symbol after another, so they do not follow
  on one another for long. In packet headers they do: an empty packet is one, and a code-block of
  which a layer has nothing is a bit. Bits that bypass the arithmetic coder, and HTJ2K, are zero as
  long as the pixels are alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding.codestreams import (
    COC,
    COD,
    END,
    FILL,
    SIZ,
    SOT,
    segments,
)
from deepcovid_edge.reasons import Reason

_SOT, _SOD, _SOP = b"\xff\x90", b"\xff\x93", b"\xff\x91\0\4"
_SOP_SIZE = 6
_FF, _LAST_CODE, _EPH = 0xFF, 0x8F, 0x92
_BYPASS, _HT = 0x01, 0x40
"""Styles of code-blocks (T.800, table A.19; T.814, A.4)."""
_LEAST_ZEROS = 64
"""Zeros that do not follow on one another in code-blocks. Of 600 streams of OpenJPEG, of films and
of flat, noisy and drawn images in every style, none without bypass had half as many."""
_WHOLE_PRECINCTS = 0xFF
"""Exponents of precincts that are not stated: 2 to the power of 15 (T.800, table A.21)."""


@dataclass(frozen=True)
class _TilePart:
    """Where the packets of a tile-part stand: offsets of the first and behind the last."""

    start: int
    end: int
    recodes: bool
    """Whether its header states another coding than that of the codestream."""


def check_tiles(codestream: bytes) -> None:
    """Look for damage between the packets and in them.

    Args:
        codestream: A codestream with its end.

    Raises:
        NotAssessedError: There is some.
    """
    parts = list(_tile_parts(codestream))
    if not parts or codestream[parts[-1].end :][: len(END)] != END:  # lengths that are wrong
        return
    most = None if any(part.recodes for part in parts) else _most_zeros(codestream)
    if most is not None and not 0 <= most < len(codestream):  # by a header that is damaged
        most = None
    zeros = bytes(most + 1) if most is not None else None
    for part in parts:
        at = _code_of_a_marker(codestream, part)
        if at is None and zeros is not None:
            found = codestream.find(zeros, part.start, part.end)
            at = found if found >= 0 else None
        if at is not None:
            detail = f"damaged: what stands from byte {at} of the codestream on is no picture's"
            raise NotAssessedError(Reason.DECODE, detail)


def _tile_parts(data: bytes) -> Iterator[_TilePart]:
    """The tile-parts up to the last whose length leads to another, or to the end."""
    head = next((start for marker, start, _ in segments(data) if marker == SOT), None)
    at = len(data) if head is None else head - 4
    while data.startswith(_SOT, at) and at + 12 < len(data):
        (length,) = struct.unpack_from(">I", data, at + 6)
        end = at + length if length else len(data.rstrip(FILL)) - len(END)
        start, recodes = at + 12, False
        for marker, begin, content in segments(data, start):
            start, recodes = begin + len(content), recodes or marker in (COD, COC)
        if not data.startswith(_SOD, start) or end < start + len(_SOD):
            return
        yield _TilePart(start + len(_SOD), end, recodes)
        at = end


def _code_of_a_marker(data: bytes, part: _TilePart) -> int | None:
    """Offset of a byte FF before one that only a marker has; None if SOP and EPH alone have it."""
    codes = np.frombuffer(data, np.uint8, part.end - part.start, part.start)
    ones = np.flatnonzero(codes[:-1] == _FF)
    seconds = codes[ones + 1]
    sought = part.start + ones[(seconds > _LAST_CODE) & (seconds != _EPH)]
    behind = 0
    for at in map(int, sought):
        if data.startswith(_SOP, at):
            behind = at + _SOP_SIZE  # its number is any
        elif at >= behind:
            return at
    return None


def _most_zeros(data: bytes) -> int | None:
    """How many zeros may follow on one another in a tile-part; None if that is not known.

    T.800, A.5.1, A.6.1 and B.6 to B.10: one for each packet, and one for each 8 code-blocks of
    which the tag trees, or several layers, have nothing.
    """
    headers = {marker: content for marker, _, content in segments(data)}
    size, coding = headers[SIZ], headers[COD]
    if COC in headers or len(coding) < 10 or coding[8] & (_BYPASS | _HT):
        return None
    right, bottom, left, top, wide, high = struct.unpack_from(">6I", size, 2)
    components = int.from_bytes(size[34:36], "big")
    width, height = min(wide, right - left), min(high, bottom - top)
    layers, levels = int.from_bytes(coding[2:4], "big"), coding[5]
    stated = coding[10:] if coding[0] & 1 else b""
    if len(stated) not in (0, levels + 1):
        return None
    packets = blocks = row = 0
    for level in range(levels + 1):
        sides = (width >> levels - level, height >> levels - level)
        powers = _halves(stated[level] if stated else _WHOLE_PRECINCTS)
        columns, rows = ((side >> power) + 2 for side, power in zip(sides, powers, strict=True))
        # Each of three bands has half of the sides, and so has a precinct in it.
        across, down = (
            (side // 2 >> max(0, min(power - 1, nominal + 2))) + 2 * count
            for side, power, nominal, count in zip(
                sides, powers, coding[6:8], (columns, rows), strict=True
            )
        )
        packets += columns * rows
        blocks, row = blocks + 3 * across * down, max(row, across)
    bits = 4 * row if layers == 1 else 4 * layers * components * blocks // 3
    return _LEAST_ZEROS + layers * components * packets + bits // 8


def _halves(exponents: int) -> tuple[int, int]:
    """The two numbers of 4 bits in a byte, the lower one first: of the width and of the height."""
    return exponents & 15, exponents >> 4
