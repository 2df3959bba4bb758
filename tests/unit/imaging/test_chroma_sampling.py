"""JPEG whose chroma is sampled in a way that simplejpeg does not know is read, unless damaged."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_once import drawn_phantom
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.formats.jpeg import decode_jpeg
from deepcovid_edge.imaging.reading import decode_radiograph

pytestmark = pytest.mark.skipif(
    shutil.which("cjpeg") is None, reason="cjpeg is missing: apt-get install libjpeg-turbo-progs"
)
END = b"\xff\xd9"
SAMPLINGS = {"4:1:0": "4x2,1x1,1x1", "3:1": "3x1,1x1,1x1", "4:4:1": "1x4,1x1,1x1"}
ROWS, COLUMNS = 296, 260
"""Parts of an MCU lie beyond the last row and column."""


def coded(sampling: str, *options: str) -> bytes:
    """A grey image with a detector's noise, coded as colours by libjpeg-turbo's own program."""
    values = drawn_phantom(0)[:ROWS, :COLUMNS] * 0.9
    values += np.random.default_rng(0).normal(0.0, 3.0, values.shape)
    pixels = np.clip(values, 0, 255).astype(np.uint8)
    source = b"P6\n%d %d\n255\n" % (COLUMNS, ROWS) + np.dstack([pixels] * 3).tobytes()
    arguments = ["-quality", "90", "-sample", SAMPLINGS[sampling], *options]
    run = subprocess.run(["cjpeg", *arguments], input=source, capture_output=True, check=True)
    return run.stdout


def decoded(data: bytes) -> NDArray[Any] | str:
    try:
        return decode_radiograph(FileBytes(Path("image.jpg"), data, "0" * 64)).pixels
    except NotAssessedError as error:
        return error.reason.code


@pytest.mark.parametrize("fill", [b"", bytes(40)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_whole_image_is_read(sampling: str, fill: bytes) -> None:
    data = coded(sampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    for whole in (data, data[:-2] + fill):
        found = decoded(whole)
        assert not isinstance(found, str)
        assert np.abs(found - expected).max() <= 1


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda data, at: data[:at],
    "cut, with an end": lambda data, at: data[:at] + END,
    "lost": lambda data, at: data[:at] + data[at + 512 :],
    "overwritten": lambda data, at: data[:at] + b"\xff" * 512 + data[at + 512 :],
    "twice": lambda data, at: data[:at] + data[at - 512 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_damaged_image_is_refused(sampling: str, damage: str) -> None:
    whole = coded(sampling)
    for share in (0.3, 0.5, 0.7, 0.9):
        found = decoded(DAMAGE[damage](whole, int(len(whole) * share)))
        assert isinstance(found, str), share
        assert damage != "cut" or found == "E_TRUNCATED"


@pytest.mark.parametrize("options", [("-progressive",), ("-restart", "2")])
def test_what_cannot_be_checked_is_refused_with_a_way_out(options: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="save it again without chroma subsampling"):
        decode_jpeg(coded("4:1:0", *options), "RGB")


def test_in_a_dicom_file_it_is_read_too() -> None:
    pytest.importorskip("pydicom", reason="needs extra dicom")
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs extra dicom")
    from dicom_files import JPEG
    from test_dicom_sandbox import request

    from deepcovid_edge.imaging.dicom.decoding import decoders

    asked = request(JPEG, bits=8, rows=ROWS, columns=COLUMNS, samples=3)
    data = coded("4:1:0")
    expected = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
    assert np.array_equal(decoders.decode(asked, data), expected)
    with pytest.raises(NotAssessedError, match="codes of the last pixels are missing"):
        decoders.decode(asked, data[: len(data) // 2] + END)
