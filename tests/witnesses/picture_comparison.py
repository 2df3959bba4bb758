"""One picture file, four readings, one outcome."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from deepcovid_edge.reasons import Reason, WarningCode
from witnesses.comparison import (
    AGREED,
    DISAGREED,
    EXPLAINED,
    REASON,
    TOLERANCE,
    UNWRITTEN,
    Outcome,
    is_blank,
    stretched,
)
from witnesses.explained import STRETCHED, Explanation
from witnesses.picture_readers import by_magick, by_opencv, by_pillow
from witnesses.pictures import KINDS, Kind, picture
from witnesses.readers import Reading, ours
from witnesses.tools import ToolError

OPENCV, PILLOW, MAGICK = "OpenCV", "Pillow", "GraphicsMagick"


@dataclass(frozen=True)
class ExplainedPicture(Explanation):
    """An explained disagreement about pictures.

    Attributes:
        applies: Whether a file has it, by its bytes.
    """

    applies: Callable[[bytes], bool]


def _png_with(chunk: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(b"\x89PNG") and chunk in data


def _bmp(data: bytes) -> tuple[int, int]:
    """Bits a pixel and compression, 0 and 0 where it is no BMP with an INFO header."""
    if not data.startswith(b"BM") or struct.unpack_from("<I", data, 14)[0] < 40:
        return 0, 0
    bits, compression = struct.unpack_from("<HI", data, 28)
    return bits, compression


def _tiff(data: bytes) -> dict[int, Any]:
    """Tags of a TIFF; empty for others."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    file, found = io.BytesIO(data), ImageFileDirectory_v2(data[:8])
    file.seek(found.next)
    found.load(file)
    return dict(found)


EXPLAINED_PICTURES = (
    ExplainedPicture(
        "transparent level of a PNG (tRNS)",
        (OPENCV, MAGICK),
        "OpenCV shows it opaque, GraphicsMagick that of coloured pixels. PNG, third edition, "
        "11.3.1.1: it is transparent.",
        _png_with(b"tRNS"),
    ),
    ExplainedPicture(
        "EXIF in a PNG or a WebP",
        (MAGICK,),
        "GraphicsMagick does not turn the picture. PNG, third edition, 11.3.3.2; WebP Container "
        "Specification, EXIF chunk; CIPA DC-008, tag 0x0112.",
        lambda data: _png_with(b"eXIf")(data) or (data[8:12] == b"WEBP" and b"EXIF" in data),
    ),
    ExplainedPicture(
        "BMP of 16 bits",
        (OPENCV, MAGICK),
        "They show a level of 5 bits times 8, so that white is 248 or less. Windows GDI, "
        "BITMAPINFOHEADER: 5 bits of relative intensity, 31 of which is all there is.",
        lambda data: _bmp(data)[0] == 16,
    ),
    ExplainedPicture(
        "BMP in RLE8",
        (OPENCV,),
        "OpenCV 5.0 loses its place in some. Windows GDI, Bitmap Compression.",
        lambda data: _bmp(data) == (8, 1),
    ),
    ExplainedPicture(
        "grey TIFF with an alpha",
        (OPENCV,),
        "OpenCV shows it opaque. TIFF 6.0, section 18, ExtraSamples.",
        lambda data: _tiff(data).get(277) == 2,
    ),
    ExplainedPicture(
        "TIFF of 16 bits, WhiteIsZero",
        (OPENCV, PILLOW),
        "They show it inverted, Pillow not at all with its highest bytes first. TIFF 6.0, section "
        "8, PhotometricInterpretation.",
        lambda data: _tiff(data).get(262) == 0 and _tiff(data).get(258) == (16,),
    ),
)


def compared_pictures(seed: int, numbers: Iterable[int]) -> Iterator[tuple[int, Outcome]]:
    """Draw pictures, write them, read each four times; GraphicsMagick reads all at once."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[int, tuple[Kind, bytes]] = {}
        for number in numbers:
            place = Path(folder, str(number))
            place.mkdir()
            try:
                files[number] = picture(seed, number, place)
            except ToolError as error:
                kind = KINDS[number % len(KINDS)]
                yield number, Outcome(UNWRITTEN, (f"{kind.name}: {error}",), {}, kind.writer)
        by_gm = by_magick([data for _, data in files.values()], Path(folder))
        for (number, (kind, data)), magick in zip(files.items(), by_gm, strict=True):
            others = {OPENCV: by_opencv(data), PILLOW: by_pillow(data), MAGICK: magick}
            yield number, _outcome_of(kind, data, ours(data, "picture"), others)


def _outcome_of(kind: Kind, data: bytes, own: Reading, others: dict[str, Reading]) -> Outcome:
    if own.grey is None:
        return _of_reason(kind, own, others)
    if kind.reason:
        return Outcome(DISAGREED, (f"{kind.name}: read, for {kind.reason}",), {}, kind.writer)
    doubts, notes, largest = [], [], {}
    for reader, reading in others.items():
        excuses = (e for e in EXPLAINED_PICTURES if reader in e.readers and e.applies(data))
        excuse = next(excuses, None)
        apart, note = _apart(own, reading)
        if apart is not None:
            largest[reader] = round(apart, 2)
        if apart is not None and apart <= TOLERANCE + kind.lossy:
            notes += note
        elif excuse:
            notes.append(excuse.name)
        else:
            what = reading.refused or f"{apart} at most"
            doubts.append(f"{kind.name}: {reader}: {what}")
    if doubts:
        return Outcome(DISAGREED, tuple(doubts), largest, kind.writer)
    names = tuple(dict.fromkeys(notes))
    return Outcome(EXPLAINED if names else AGREED, names, largest, kind.writer)


def _apart(own: Reading, reading: Reading) -> tuple[float | None, list[str]]:
    """Largest difference, None where there is no picture of the same size."""
    if own.grey is None or reading.grey is None or own.grey.shape != reading.grey.shape:
        return None, []
    other, notes = reading.grey, []
    if WarningCode.DEPTH.code in own.warnings:
        other, notes = stretched(own.grey, other), [STRETCHED.name]
    return float(np.abs(own.grey - other).max()), notes


def _of_reason(kind: Kind, own: Reading, others: dict[str, Reading]) -> Outcome:
    code = own.refused.partition(":")[0]
    shown = [reading.grey for reading in others.values() if reading.grey is not None]
    blank = code == Reason.BLANK.code and any(map(is_blank, shown))
    if code == kind.reason or blank:
        return Outcome(REASON, (code,), {}, kind.writer)
    return Outcome(DISAGREED, (f"{kind.name}: {own.refused}",), {}, kind.writer)
