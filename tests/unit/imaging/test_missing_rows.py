"""Pictures whose container is whole and whose compressed pixels end too early."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_dicom_refusals import image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import ImageBytes
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import Reason

ADAM7 = [
    (0, 8, 0, 8),
    (0, 8, 4, 8),
    (4, 8, 0, 4),
    (0, 4, 2, 4),
    (2, 4, 0, 2),
    (0, 2, 1, 2),
    (1, 2, 0, 1),
]
COLOURS = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
HEIGHT, WIDTH = 133, 161


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(rows: NDArray[Any]) -> list[bytes]:
    """Rows with the byte of their filter, which is none."""
    big_endian = rows.astype(rows.dtype.newbyteorder(">"))
    return [b"\0" + row.tobytes() for row in big_endian] if rows.size else []


def png(pixels: NDArray[Any], colour: int, *, interlaced: bool, share: float = 1.0) -> bytes:
    """A PNG of which that share of the rows is there, to the end of one of them."""
    passes = ADAM7 if interlaced else [(0, 1, 0, 1)]
    rows = [
        row
        for top, down, left, across in passes
        for row in filtered(pixels[top::down, left::across])
    ]
    packed = zlib.compress(b"".join(rows[: int(len(rows) * share)]))
    header = struct.pack(
        ">IIBBBBB", pixels.shape[1], pixels.shape[0], 8 * pixels.itemsize, colour, 0, 0, interlaced
    )
    body = chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def pixels_of(mode: str, bits: int, *, black_end: bool) -> NDArray[Any]:
    grey = image(bits, height=HEIGHT, width=WIDTH)
    if black_end:
        grey[-20:] = 0
    full = np.full_like(grey, np.iinfo(grey.dtype).max)
    channels = {"L": [grey], "LA": [grey, full], "RGB": [grey] * 3, "RGBA": [grey] * 3 + [full]}
    return np.dstack(channels[mode]).squeeze()


def reason_of(data: bytes, name: str) -> Reason | None:
    try:
        read_radiograph(ImageBytes(name, data))
    except NotAssessedError as error:
        return error.reason
    return None


CASES = [*product(COLOURS, (8, 16), (False, True), (False, True))]


@pytest.mark.parametrize(("mode", "bits", "interlaced", "black_end"), CASES)
def test_a_png_with_all_rows_is_read(
    mode: str, bits: int, interlaced: bool, black_end: bool
) -> None:
    pixels = pixels_of(mode, bits, black_end=black_end)
    assert reason_of(png(pixels, COLOURS[mode], interlaced=interlaced), "a.png") is None


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
@pytest.mark.parametrize(("mode", "bits", "interlaced", "black_end"), CASES)
def test_a_png_that_lacks_rows_is_not_filled_with_black(
    mode: str, bits: int, interlaced: bool, black_end: bool, share: float
) -> None:
    pixels = pixels_of(mode, bits, black_end=black_end)
    short = png(pixels, COLOURS[mode], interlaced=interlaced, share=share)
    assert reason_of(short, "a.png") in (Reason.TRUNCATED, Reason.DECODE)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_jpeg_that_lacks_scans_is_not_read_blurred(mode: str) -> None:
    """The end marker behind an earlier scan makes it whole to libjpeg."""
    file = io.BytesIO()
    Image.fromarray(image(8, height=320, width=280)).convert(mode).save(
        file, "JPEG", quality=92, progressive=True
    )
    data = file.getvalue()
    assert reason_of(data, "a.jpg") is None
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for end in scans[1:]:
        assert reason_of(data[:end] + b"\xff\xd9", "a.jpg") is Reason.TRUNCATED
