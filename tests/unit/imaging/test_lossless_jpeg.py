"""JPEG lossless in DICOM files: point transform, restarts and what means nothing."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
import dicom_files
from codestreams import LosslessJpeg
from dicom_files import (
    JPEG,
    JPEG_12,
    LOSSLESS,
    LOSSLESS_SV1,
    by_dcmtk,
    compressed,
    dataset,
    written,
)
from pydicom import dcmread
from test_dicom_refusals import image, with_codestream
from test_dicom_sandbox import request

from deepcovid_edge.imaging.dicom.decoding import decoders
from deepcovid_edge.imaging.dicom.decoding.codestreams import read_codestream

Decode = Callable[..., Radiograph]

needs_dcmtk = pytest.mark.skipif(bool(dicom_files.dcmtk()), reason=str(dicom_files.dcmtk()))


# --- JPEG lossless ---------------------------------------------------------------------------


def lossless(stream: bytes, bits: int, pixels: NDArray[Any]) -> NDArray[Any]:
    """What is decoded, in this process: what a sandbox is for is tested elsewhere."""
    facts = {"rows": pixels.shape[0], "columns": pixels.shape[1]}
    found = read_codestream(stream, pixels.itemsize)
    assert found is not None
    return decoders.decode(request(LOSSLESS, bits=bits, **facts), found.data)


@pytest.mark.parametrize(("bits", "predictor"), [*product((8, 12, 16), range(1, 8))])
def test_lossless_jpeg_is_multiplied_by_its_point_transform(bits: int, predictor: int) -> None:
    pixels = image(bits, height=40, width=52)
    for point in range(bits):  # T.81, table B.3: 0 to 15
        stream = LosslessJpeg(bits, predictor, point).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point), point


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 39, 40, 65_535 // 52])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_is_read_across_restart_markers(bits: int, rows: int) -> None:
    pixels = image(bits, height=40, width=52)
    for predictor, point in product(range(1, 8), (0, 3)):
        stream = LosslessJpeg(bits, predictor, point, restart_rows=rows).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point)


NOTHING_MEANT: dict[str, dict[str, Any]] = {
    "DRI of 0": {"interval": 0},
    "DRI behind the last row": {"interval": 40 * 52},
    **{f"Se {se}": {"se": se} for se in (1, 7, 63, 255)},
    **{f"Ah {ah}": {"ah": ah} for ah in (1, 15)},
    "height behind the scan": {"height_behind": True},
    "height behind the scan, restarts": {"height_behind": True, "restart_rows": 4},
    "all at once": {"height_behind": True, "restart_rows": 7, "se": 63, "ah": 1, "point": 2},
}


@pytest.mark.parametrize("kind", NOTHING_MEANT)
def test_parameters_that_mean_nothing_change_nothing(kind: str) -> None:
    pixels = image(12, height=40, width=52)
    writer = LosslessJpeg(12, **NOTHING_MEANT[kind])
    found = lossless(writer.encode(pixels), 12, pixels)
    assert np.array_equal(found, pixels >> writer.point << writer.point)


def test_restart_interval_of_a_part_of_a_row_is_an_error_and_no_image() -> None:
    """T.81, H.1.1: a restart interval of JPEG lossless is a whole number of rows."""
    pixels = image(12, height=40, width=52)
    with pytest.raises(Exception, match="restart"):
        lossless(LosslessJpeg(12, interval=53).encode(pixels), 12, pixels)


@pytest.mark.parametrize(("syntax", "predictor"), [(LOSSLESS_SV1, 1), (LOSSLESS, 6)])
def test_file_with_point_transform_and_restarts_is_its_image(
    syntax: str, predictor: int, decode: Decode
) -> None:
    stream = LosslessJpeg(12, predictor, 2, restart_rows=16, se=63).encode(image(12))
    read = decode(with_codestream(stream, syntax))
    assert np.array_equal(read.pixels, image(12) >> 2 << 2)
    assert read.warnings == ()


@needs_dcmtk
@pytest.mark.parametrize("predictor", range(1, 8))
def test_dcmtk_reads_the_same_from_what_is_written_here(predictor: int, tmp_path: Path) -> None:
    stream = LosslessJpeg(12, predictor, 3, restart_rows=8).encode(image(12))
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    before.write_bytes(with_codestream(stream, LOSSLESS))
    subprocess.run(["dcmdjpeg", str(before), str(after)], check=True)
    assert np.array_equal(dcmread(after).pixel_array, image(12) >> 3 << 3)
    assert np.array_equal(lossless(stream, 12, image(12)), image(12) >> 3 << 3)


@needs_dcmtk
@pytest.mark.parametrize(("predictor", "point"), [(1, 1), (4, 3), (7, 5)])
def test_point_transform_that_dcmtk_wrote_is_undone(
    predictor: int, point: int, decode: Decode
) -> None:
    options = ("+sv", str(predictor), "+pt", str(point))
    data = by_dcmtk(written(dataset(image(12), stored=12)), LOSSLESS, *options)
    assert np.array_equal(decode(data).pixels, image(12) >> point << point)


def test_lossy_jpeg_is_read_across_restart_markers(decode: Decode) -> None:
    stream = io.BytesIO()
    Image.fromarray(image()).save(stream, "JPEG", quality=95, restart_marker_rows=2)
    plain = io.BytesIO()
    Image.fromarray(image()).save(plain, "JPEG", quality=95)
    assert np.array_equal(
        decode(with_codestream(stream.getvalue(), JPEG, 8)).pixels,
        decode(with_codestream(plain.getvalue(), JPEG, 8)).pixels,
    )


@pytest.mark.parametrize(("bits", "predictor"), [(8, 1), (12, 4), (16, 7)])
def test_gdcm_reads_the_same_where_imagecodecs_is_missing(
    bits: int, predictor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gdcm", reason="needs python-gdcm")
    monkeypatch.setattr(decoders, "_codec", lambda family: None)
    pixels = image(bits, height=40, width=52)
    for point, rows in product((0, 1, 5), (0, 8)):
        stream = LosslessJpeg(bits, predictor, point, restart_rows=rows, se=63).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point)


def test_twelve_bits_of_jpeg_name_the_extra_where_imagecodecs_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No plug-in of pydicom's that is used reads them: whole or not is not to be said."""
    monkeypatch.setattr(decoders, "_codec", lambda family: None)
    stream = compressed(image(12), 12, JPEG_12)
    for codestream in (stream, stream[:-2]):
        with pytest.raises(NotAssessedError, match=r"deepcovid-edge\[dicom\]") as caught:
            decoders.decode(request(JPEG_12), codestream)
        assert caught.value.reason is Reason.SYNTAX
