"""Pixels that are not square are made square, as every kind of file states it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.heatmaps.heatmap import HeatMap, regions
from deepcovid_edge.imaging.aspect import MOST_RATIO, PixelShape, pixel_shape
from deepcovid_edge.imaging.radiograph import MAX_PIXELS, Radiograph
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import J2K, RLE, dataset, written
from pydicom.dataset import Dataset

Decode = Callable[..., Radiograph]

TRUE = (180, 198)
"""Rows and columns of the image with square pixels."""
ASPECT, SPACING = WarningCode.ASPECT, WarningCode.SPACING


def film(shape: tuple[int, int] = TRUE) -> NDArray[np.uint8]:
    """A smooth image: squeezed and stretched again it is the same up to a few grey levels."""
    y, x = (np.linspace(0, 1, count, endpoint=False) + 0.5 / count for count in shape)
    waves = np.sin(x * 6)[None, :] + np.cos(y * 4)[:, None] + x[None, :] + 2 * y[:, None]
    return np.asarray(np.rint((waves - waves.min()) / np.ptp(waves) * 255), np.uint8)


def squeezed(height: int, width: int) -> NDArray[np.uint8]:
    """The film on pixels of that height and width."""
    rows, columns = TRUE
    return film((round(rows * width / height), columns) if height > width else
                (rows, round(columns * height / width)))  # fmt: skip


def spaced(image: NDArray[Any], elements: dict[str, Any]) -> Dataset:
    return dataset(image, **elements)


def is_film(read: Radiograph) -> bool:
    return read.pixels.shape == TRUE and bool(
        np.abs(read.pixels * (255 / read.white) - film()).max() <= 8
    )


def jfif(data: bytes, unit: int, across: int, down: int) -> bytes:
    """A JPEG with another density; JFIF 1.02 puts it behind its name and version."""
    at = data.index(b"JFIF\0") + 7
    return data[:at] + struct.pack(">BHH", unit, across, down) + data[at + 5 :]


def exif(across: Any, down: Any, orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[282], block[283], block[296] = orientation, across, down, 2
    return block


def bmp(pictures: Any, image: NDArray[Any], across: int, down: int) -> bytes:
    data = bytes(pictures.opencv(image, ".bmp"))
    return data[:38] + struct.pack("<ii", across, down) + data[46:]


def tiff(pictures: Any, image: NDArray[Any], across: Any, down: Any, unit: int = 2) -> bytes:
    return bytes(pictures.encode(image, "TIFF", tiffinfo={282: across, 283: down, 296: unit}))


def phys(pictures: Any, image: NDArray[Any], across: int, down: int, unit: int = 1) -> bytes:
    chunk = (b"pHYs", struct.pack(">IIB", across, down, unit))
    return bytes(pictures.png(image, 0, before=[chunk]))


# A density counts pixels across and down: its first number is to its second as a pixel's height is
# to its width.
MAKERS: dict[str, Callable[[Any, NDArray[Any], int, int], bytes]] = {
    "jfif-inch": lambda p, i, h, w: jfif(p.encode(i, "JPEG", quality=98), 1, h, w),
    "jfif-cm": lambda p, i, h, w: jfif(p.encode(i, "JPEG", quality=98), 2, h, w),
    "jfif-no-unit": lambda p, i, h, w: jfif(p.encode(i, "JPEG", quality=98), 0, h, w),
    "jfif-colour": lambda p, i, h, w: jfif(p.encode(p.rgb(i), "JPEG", quality=98), 1, h, w),
    "jpeg-exif": lambda p, i, h, w: p.encode(i, "JPEG", quality=98, exif=exif(h, w)),
    "webp-exif": lambda p, i, h, w: p.encode(p.rgb(i), "WEBP", lossless=True, exif=exif(h, w)),
    "png-metre": lambda p, i, h, w: phys(p, i, h * 20, w * 20),
    "png-no-unit": lambda p, i, h, w: phys(p, i, h, w, 0),
    "png-16-bit": lambda p, i, h, w: phys(p, i.astype(np.uint16) * 257, h, w),
    "png-exif": lambda p, i, h, w: p.encode(i, "PNG", exif=exif(h, w)),
    "tiff-inch": tiff,
    "tiff-no-unit": lambda p, i, h, w: tiff(p, i, h, w, 1),
    "tiff-fraction": lambda p, i, h, w: tiff(p, i, Fraction(h, 7), Fraction(w, 7)),
    "bmp": lambda p, i, h, w: bmp(p, i, h * 10, w * 10),
    **{
        keyword: lambda _, i, h, w, keyword=keyword: written(  # type: ignore[misc]
            spaced(i, {keyword: [f"{h / 1000}", f"{w / 1000}"]})
        )
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    },
    "PixelAspectRatio": lambda _, i, h, w: written(dataset(i, PixelAspectRatio=[h, w])),
    "rle": lambda _, i, h, w: written(dataset(i, PixelAspectRatio=[h, w]), RLE),
    "j2k": lambda _, i, h, w: written(dataset(i, PixelAspectRatio=[h, w]), J2K),
    "colour": lambda p, i, h, w: written(dataset(p.rgb(i), PixelAspectRatio=[h, w])),
}


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (400, 100), (100, 110)])
@pytest.mark.parametrize("name", MAKERS)
def test_squeezed_image_is_stretched_as_its_file_states(
    name: str, height: int, width: int, pictures: Any, decode: Decode
) -> None:
    image = squeezed(height, width)
    read = decode(MAKERS[name](pictures, image, height, width), "image")
    assert is_film(read)
    assert read.file_shape == read.box_shape == image.shape
    assert ASPECT in read.warnings
    assert SPACING not in read.warnings


@pytest.mark.parametrize("name", MAKERS)
def test_square_pixels_are_left_as_they_are(name: str, pictures: Any, decode: Decode) -> None:
    for height, width in ((200, 200), (1000, 1009)):  # below 1 % pixels are square
        read = decode(MAKERS[name](pictures, film(), height, width))
        assert read.pixels.shape == read.box_shape == TRUE
        assert read.file_shape is None
        assert not {ASPECT, SPACING} & set(read.warnings)


def test_two_per_cent_are_not_square_and_contradict_square_ones() -> None:
    assert pixel_shape([(102, 100)]) == PixelShape(1.02, (ASPECT,))
    assert pixel_shape([(100, 102)]) == PixelShape(100 / 102, (ASPECT,))
    assert pixel_shape([(1, 1), (102, 100)]) == PixelShape(1.0, (SPACING,))
    assert pixel_shape([(1, 1), (1009, 1000)]) == PixelShape()


@pytest.mark.parametrize("name", MAKERS)
def test_shape_is_that_of_square_pixels(name: str, pictures: Any, decode: Decode) -> None:
    """300 x 130 pixels are no chest radiograph, unless they are twice as wide as high."""
    narrow = cv2.resize(film(), (130, 300))
    assert decode(MAKERS[name](pictures, narrow, 100, 200)).pixels.shape == (300, 260)
    whole = cv2.resize(film(), (200, 300))
    with pytest.raises(NotAssessedError) as caught:
        decode(MAKERS[name](pictures, whole, 300, 200))
    assert caught.value.reason is Reason.SHAPE
    assert "200 x 450" in caught.value.detail


# --- statements that are not usable -------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "0\\0",
        "0\\0.1",
        "-0.2\\0.1",
        "0.2",
        "nan\\0.1",
        "inf\\0.1",
        "wide\\high",
        "0,2\\0,1",
        "9\\1",
    ],
)
@pytest.mark.parametrize("keyword", ["PixelSpacing", "PixelAspectRatio"])
def test_unusable_spacing_is_ignored_with_a_warning(
    keyword: str, value: str, decode: Decode
) -> None:
    marker = "7" * (len(value) + len(value) % 2)
    data = written(spaced(film(), {keyword: marker})).replace(
        marker.encode(), value.encode().ljust(len(marker))
    )
    read = decode(data)
    assert (read.pixels.shape, read.warnings) == (TRUE, (SPACING,))


@pytest.mark.parametrize(("across", "down"), [(0, 0), (0, 100), (500, 100), (100, 500), (1, 65535)])
@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith(("jfif", "png-m"))])
def test_unusable_density_is_ignored_with_a_warning(
    name: str, across: int, down: int, pictures: Any, decode: Decode
) -> None:
    if (across, down) == (0, 0) and name == "jfif-no-unit":
        pytest.skip("equal numbers without a unit state nothing")
    read = decode(MAKERS[name](pictures, film(), across, down))
    assert (read.pixels.shape, read.warnings) == (TRUE, (SPACING,))


@pytest.mark.parametrize(("across", "down"), [(1000, -500), (0, 500), (9000, 100)])
def test_unusable_density_of_a_bmp_is_ignored_with_a_warning(
    across: int, down: int, pictures: Any, decode: Decode
) -> None:
    assert decode(bmp(pictures, film(), across, down)).warnings == (SPACING,)
    assert decode(bmp(pictures, film(), 0, 0)).warnings == ()


def test_resolution_with_a_zero_denominator_is_ignored_with_a_warning(
    pictures: Any, decode: Decode
) -> None:
    data = tiff(pictures, film(), 77, 77)
    broken = data.replace(struct.pack("<II", 77, 1), struct.pack("<II", 77, 0))
    assert broken != data
    assert decode(broken).warnings == (SPACING,)


# --- several statements -------------------------------------------------------------------------


def test_spacing_comes_before_aspect_ratio_and_calibrated_before_detector(decode: Decode) -> None:
    """PS3.3, C.7.6.3.1.7: the aspect ratio counts only where no spacing is given."""
    image = squeezed(300, 200)
    other: dict[str, Any] = {"ImagerPixelSpacing": ["0.1", "0.1"], "PixelAspectRatio": [1, 2]}
    read = decode(written(dataset(image, PixelSpacing=["0.3", "0.2"], **other)))
    assert is_film(read)
    assert read.warnings == (ASPECT, SPACING)  # as they contradict each other
    alike: dict[str, Any] = {"ImagerPixelSpacing": ["0.45", "0.3"], "PixelAspectRatio": [3, 2]}
    read = decode(written(dataset(image, PixelSpacing=["0.3", "0.2"], **alike)))
    assert is_film(read)
    assert read.warnings == (ASPECT,)


def test_spacing_that_is_not_usable_leaves_the_next_to_count(decode: Decode) -> None:
    data = dataset(squeezed(300, 200), PixelSpacing=["0", "0"], ImagerPixelSpacing=["0.3", "0.2"])
    read = decode(written(data))
    assert is_film(read)
    assert read.warnings == (ASPECT, SPACING)


def test_empty_spacing_states_nothing(decode: Decode) -> None:
    assert decode(written(dataset(film(), PixelSpacing=[], PixelAspectRatio=""))).warnings == ()


# --- with the orientation -----------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_resolution_is_of_the_pixels_as_they_lie_in_the_file(
    format: str, orientation: int, pictures: Any, decode: Decode
) -> None:
    """CIPA DC-008, 4.6.4: in the direction of ImageWidth, before the picture is turned."""
    from deepcovid_edge.imaging.orientation import TURNS

    image = squeezed(300, 200)
    flip, turns = TURNS.get(orientation, (False, 0))
    if format == "TIFF":
        info = {274: orientation, 282: 300, 283: 200, 296: 2}
        data = pictures.encode(image, format, tiffinfo=info)
    else:
        pixels = pictures.rgb(image) if format == "WEBP" else image
        data = pictures.encode(pixels, format, quality=98, exif=exif(300, 200, orientation))
    read = decode(data)
    expected = np.rot90(np.fliplr(film()) if flip else film(), turns)
    stored = np.rot90(image, turns)
    assert read.pixels.shape == expected.shape
    assert np.abs(read.pixels.astype(int) - expected).max() <= 6
    assert read.box_shape == stored.shape


@pytest.mark.parametrize(("rows", "columns"), ["LF", "RF", "LH", "RH", "FL", "FR", "HL", "HR"])
def test_patient_orientation_turns_pixels_with_their_shape(
    rows: str, columns: str, decode: Decode
) -> None:
    turned: dict[str, Any] = {"PatientOrientation": [rows, columns]}
    expected = decode(written(dataset(film(), **turned))).pixels
    image = squeezed(300, 200)
    read = decode(written(dataset(image, PixelSpacing=["0.3", "0.2"], **turned)))
    assert read.pixels.shape == expected.shape
    assert np.abs(read.pixels.astype(int) - expected).max() <= 6
    sideways = rows in "FH"
    assert read.box_shape == (image.shape[::-1] if sideways else image.shape)


# --- boxes, sizes, peers ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ResizeRule)
def test_regions_count_pixels_of_the_file(rule: ResizeRule, pictures: Any, decode: Decode) -> None:
    read = decode(MAKERS["png-metre"](pictures, squeezed(300, 200), 300, 200))
    spec = InputSpec(64, 64, rule)
    values = np.zeros((64, 64), np.float32)
    values[20:40, 10:30] = 1.0
    found = HeatMap("occlusion", values, values)
    (square,) = regions(found, read.pixels.shape, spec)
    (box,) = regions(found, read.pixels.shape, spec, read.box_shape)
    assert (box.x, box.width) == (square.x, square.width)
    assert abs(box.y - square.y / 1.5) <= 1
    assert abs(box.height - square.height / 1.5) <= 1


@given(
    st.floats(1 / MOST_RATIO, MOST_RATIO),
    st.tuples(st.integers(100, 12_000), st.integers(100, 8_000)),
)
def test_square_size_has_the_true_shape_and_no_more_pixels_than_allowed(
    ratio: float, shape: tuple[int, int]
) -> None:
    rows, columns = PixelShape(ratio).square(shape)
    assert rows * columns <= MAX_PIXELS
    assert rows / columns == pytest.approx(ratio * shape[0] / shape[1], rel=0.02)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.one_of(st.floats(), st.integers(), st.none())] * 2), max_size=4))
def test_whatever_is_stated_the_ratio_is_within_its_limits(stated: list[tuple[Any, Any]]) -> None:
    assert 1 / MOST_RATIO <= pixel_shape(stated).ratio <= MOST_RATIO


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="no dcm2pnm: apt-get install dcmtk")
@pytest.mark.parametrize(
    "elements",
    [
        {"PixelSpacing": ["0.3", "0.2"]},
        {"ImagerPixelSpacing": ["0.2", "0.3"]},
        {"NominalScannedPixelSpacing": ["0.3", "0.2"]},
        {"PixelAspectRatio": [2, 3]},
        {"PixelSpacing": ["0.3", "0.2"], "PixelAspectRatio": [1, 3]},
    ],
)
def test_dcmtk_makes_pixels_square_as_we_do(
    elements: dict[str, Any], tmp_path: Path, decode: Decode
) -> None:
    data = written(dataset(film(), **elements))
    Path(tmp_path, "film.dcm").write_bytes(data)
    command = ["dcm2pnm", "+a", "+Sxf", "1", "film.dcm", "film.pgm"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    match = re.match(rb"P5\s+(\d+)\s+(\d+)", Path(tmp_path, "film.pgm").read_bytes())
    assert match
    shown = int(match[2]) / int(match[1])
    rows, columns = decode(data).pixels.shape
    assert rows / columns == pytest.approx(shown, rel=0.01)
