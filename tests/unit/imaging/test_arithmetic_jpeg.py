"""JPEG coded arithmetically: libjpeg reads zeros behind its end and warns of nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_once import drawn_phantom
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.reading import decode_radiograph

pytestmark = pytest.mark.skipif(
    shutil.which("cjpeg") is None, reason="cjpeg is missing: apt-get install libjpeg-turbo-progs"
)
END = b"\xff\xd9"
KINDS = {
    "sequential": (),
    "progressive": ("-progressive",),
    "restarts": ("-restart", "4"),
}


def image(*, border: int = 0) -> NDArray[np.uint8]:
    """An image with a detector's noise, whose last rows may be black."""
    values = drawn_phantom(0)[:300, :260] * 0.9
    values += np.random.default_rng(0).normal(0.0, 3.0, values.shape)
    values[values.shape[0] - border :] = 0
    pixels: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def coded(pixels: NDArray[np.uint8], kind: str, quality: int = 90) -> bytes:
    """A JPEG by libjpeg-turbo's own program; no library at hand codes arithmetically."""
    rows, columns = pixels.shape
    source = b"P5\n%d %d\n255\n" % (columns, rows) + pixels.tobytes()
    options = ["-arithmetic", "-quality", str(quality), *KINDS[kind]]
    return subprocess.run(["cjpeg", *options], input=source, capture_output=True, check=True).stdout


def decoded(data: bytes) -> NDArray[Any] | str:
    try:
        return decode_radiograph(FileBytes(Path("image.jpg"), data, "0" * 64)).pixels
    except NotAssessedError as error:
        return error.reason.code


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda data, end: data[:end],
    "cut, with an end": lambda data, end: data[:end] + END,
    "zeros": lambda data, end: data[:end] + bytes(len(data) - end),
    "zeros, with an end": lambda data, end: data[:end] + bytes(len(data) - end) + END,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_scan_is_no_image(kind: str, damage: str) -> None:
    whole = coded(image(), kind)
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        found = decoded(DAMAGE[damage](whole, int(len(whole) * share)))
        assert isinstance(found, str), share
        assert damage.endswith("an end") or found == "E_TRUNCATED"


@pytest.mark.parametrize("quality", [50, 90, 98])
@pytest.mark.parametrize("border", [0, 9, 100, 180])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_scan_is_read(kind: str, border: int, quality: int) -> None:
    pixels = image(border=border)
    whole = coded(pixels, kind, quality)
    found = decoded(whole)
    assert not isinstance(found, str)
    assert np.abs(found.astype(int) - pixels).mean() < 6
    for lacking in (whole[:-2], whole[:-2] + bytes(50), whole[:-2] + b"\xff" * 50):
        assert np.array_equal(decoded(lacking), found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_scan_in_dicom_is_no_image(kind: str) -> None:
    pytest.importorskip("pydicom", reason="needs extra dicom")
    pytest.importorskip("imagecodecs", reason="needs extra dicom")
    from dicom_files import JPEG
    from test_dicom_sandbox import request

    from deepcovid_edge.imaging.dicom.decoding import decoders

    whole = coded(image(), kind)
    asked = request(JPEG, bits=8, rows=300, columns=260)
    assert np.array_equal(decoders.decode(asked, whole), decoded(whole))
    for share in (0.5, 0.8, 0.95):
        cut = whole[: int(len(whole) * share)]
        for damaged in (cut, cut + END, cut + bytes(len(whole) - len(cut))):
            with pytest.raises((NotAssessedError, ValueError)):
                decoders.decode(asked, damaged)
