"""The retired JPEG processes: progressive ones as DCMTK writes them, and arithmetic coding."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    JPEG_12,
    RETIRED_JPEG,
    by_dcmtk,
    dataset,
    dcmtk,
    frame_of,
    reason_of,
    written,
)
from test_dicom_refusals import with_codestream
from test_whole_scan import DAMAGE, noisy

from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES, Family

Decode = Callable[..., Radiograph]

EXTENDED, SPECTRAL, SPECTRAL_ARITHMETIC, FULL, FULL_ARITHMETIC = RETIRED_JPEG
PROGRESSIVE = {SPECTRAL: "+es", FULL: "+ep"}
"""DCMTK's options."""
ARITHMETIC = {
    EXTENDED: (),
    SPECTRAL_ARITHMETIC: ("-progressive",),
    FULL_ARITHMETIC: ("-progressive",),
}
"""Options of cjpeg."""

needs_dcmtk = pytest.mark.skipif(dcmtk() is not None, reason=str(dcmtk()))


@cache
def progressive(syntax: str, bits: int) -> tuple[NDArray[Any], bytes]:
    """An image, and a file of it that DCMTK compressed."""
    pixels = noisy(bits)
    window = {"WindowCenter": 1 << bits - 1, "WindowWidth": 1 << bits}
    data = written(dataset(pixels, stored=bits, **window))
    return pixels, by_dcmtk(data, JPEG_12, PROGRESSIVE[syntax])


@needs_dcmtk
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", PROGRESSIVE)
def test_progressive_processes_are_read(syntax: str, bits: int, decode: Decode) -> None:
    pixels, data = progressive(syntax, bits)
    read = decode(data)
    assert read.dicom is not None
    assert read.dicom.transfer_syntax_uid == syntax
    assert SYNTAXES[syntax].family is Family.JPEG
    apart = np.abs(read.pixels * (255 / read.white) - pixels * (255 / ((1 << bits) - 1)))
    assert apart.max() <= 2.0


@needs_dcmtk
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", PROGRESSIVE)
def test_a_damaged_progressive_scan_is_no_image(
    syntax: str, bits: int, damage: str, decode: Decode
) -> None:
    """libjpeg makes pixels of each of them."""
    pixels, data = progressive(syntax, bits)
    stream = DAMAGE[damage](frame_of(data).rstrip(b"\0"))
    rows, columns = pixels.shape
    damaged = with_codestream(stream, syntax, bits, Rows=rows, Columns=columns)
    assert reason_of(decode, damaged) in (Reason.DECODE, Reason.TRUNCATED)


@pytest.mark.skipif(shutil.which("cjpeg") is None, reason="needs libjpeg-turbo-progs")
@pytest.mark.parametrize("syntax", ARITHMETIC)
def test_arithmetic_processes_are_read(syntax: str, decode: Decode) -> None:
    pixels = noisy(8)
    plain = io.BytesIO()
    Image.fromarray(pixels).save(plain, "PPM")
    stream = subprocess.run(
        ["cjpeg", "-quality", "98", "-arithmetic", *ARITHMETIC[syntax]],
        input=plain.getvalue(),
        capture_output=True,
        check=True,
    ).stdout
    shape = {"Rows": pixels.shape[0], "Columns": pixels.shape[1]}
    read = decode(with_codestream(stream, syntax, 8, **shape))
    assert np.abs(read.pixels.astype(int) - pixels).max() <= 4
    cut = stream[: len(stream) // 2] + b"\xff\xd9"
    found = reason_of(decode, with_codestream(cut, syntax, 8, **shape))
    assert found in (Reason.DECODE, Reason.TRUNCATED)
