"""Display shutters of DICOM files: what lies outside is shown as the file says, or it is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import J2K, RLE, dataset, written
from test_dicom_refusals import image

from deepcovid_edge.imaging.dicom import geometry

Decode = Callable[..., Radiograph]

ROWS, COLUMNS = 128, 160
Y, X = np.mgrid[1 : ROWS + 1, 1 : COLUMNS + 1]
"""Rows and columns as a shutter counts them: from 1."""


def rectangle(left: Any, right: Any, upper: Any, lower: Any) -> dict[str, Any]:
    return {
        "ShutterShape": "RECTANGULAR",
        "ShutterLeftVerticalEdge": left,
        "ShutterRightVerticalEdge": right,
        "ShutterUpperHorizontalEdge": upper,
        "ShutterLowerHorizontalEdge": lower,
    }


def circle(row: int, column: int, radius: int) -> dict[str, Any]:
    return {
        "ShutterShape": "CIRCULAR",
        "CenterOfCircularShutter": [row, column],
        "RadiusOfCircularShutter": radius,
    }


def polygon(*places: int) -> dict[str, Any]:
    return {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": list(places)}


def together(*shutters: dict[str, Any]) -> dict[str, Any]:
    shapes = [shutter["ShutterShape"] for shutter in shutters]
    return {key: value for shutter in shutters for key, value in shutter.items()} | {
        "ShutterShape": shapes
    }


# name -> elements, which pixels are shown
SHUTTERS: dict[str, tuple[dict[str, Any], NDArray[np.bool_]]] = {
    "rectangle": (rectangle(20, 140, 10, 120), (X > 20) & (X < 140) & (Y > 10) & (Y < 120)),
    "one-edge": (rectangle(0, 140, 0, 129), X < 140),
    "beyond-the-image": (rectangle(-50, 140, -9, 900), X < 140),
    "circle": (circle(64, 80, 60), (X - 80) ** 2 + (Y - 64) ** 2 < 60**2),
    "circle-off-centre": (circle(0, 30, 100), (X - 30) ** 2 + Y**2 < 100**2),
    "polygon": (
        polygon(10, 20, 10, 140, 120, 140, 120, 20),
        (X > 20) & (X < 140) & (Y > 10) & (Y < 120),
    ),
    "diamond": (
        polygon(4, 80, 64, 20, 124, 80, 64, 140),
        np.abs(X - 80) + np.abs(Y - 64) < 60,
    ),
    "all-three": (
        together(
            rectangle(20, 150, 10, 120),
            circle(64, 80, 66),
            polygon(4, 80, 64, 20, 124, 80, 64, 140),
        ),
        (X > 20) & (Y > 10) & (Y < 120) & (np.abs(X - 80) + np.abs(Y - 64) < 60),
    ),
    "rectangle-and-circle": (
        together(rectangle(20, 150, 10, 120), circle(64, 80, 66)),
        (X > 20) & (Y > 10) & (Y < 120) & ((X - 80) ** 2 + (Y - 64) ** 2 < 66**2),
    ),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("value", "grey"), [(0, 0), (65535, 4095), (32768, 2048), (None, 0)])
@pytest.mark.parametrize("name", SHUTTERS)
def test_outside_is_shown_as_the_grey_of_the_file(
    name: str, value: int | None, grey: int, photometric: str, decode: Decode
) -> None:
    """A P-Value: it is not inverted with a MONOCHROME1 image (PS3.3, C.7.6.11)."""
    elements, visible = SHUTTERS[name]
    data: dict[str, Any] = {"stored": 12, "PhotometricInterpretation": photometric, **elements}
    if value is not None:
        data["ShutterPresentationValue"] = value
    read = decode(written(dataset(image(12), **data)))
    shown = 4095 - image(12) if photometric == "MONOCHROME1" else image(12)
    assert np.array_equal(read.pixels, np.where(visible, shown, grey))
    assert read.warnings == ()


@pytest.mark.parametrize("syntax", [RLE, J2K])
def test_compressed_images_have_shutters_too(syntax: str, decode: Decode) -> None:
    elements, visible = SHUTTERS["rectangle"]
    read = decode(written(dataset(image(12), stored=12, **elements), syntax))
    assert np.array_equal(read.pixels, np.where(visible, image(12), 0))


def test_shutter_of_a_colour_image_is_drawn(decode: Decode) -> None:
    elements, visible = SHUTTERS["circle"]
    data = dataset(np.dstack([image()] * 3), **elements, ShutterPresentationValue=65535)
    assert np.array_equal(decode(written(data)).pixels, np.where(visible, image(), 255))


def test_lightness_stands_in_for_a_value_that_is_absent(decode: Decode) -> None:
    elements, visible = SHUTTERS["rectangle"]
    data = dataset(image(), **elements, ShutterPresentationColorCIELabValue=[65535, 32896, 32896])
    assert np.array_equal(decode(written(data)).pixels, np.where(visible, image(), 255))


def test_hidden_part_says_nothing_of_range_and_exposure(decode: Decode) -> None:
    """A 12-bit film under a wide margin at the white of 16 bits."""
    words = image(12)
    visible = (X > 50) & (X < 120)
    words[~visible] = 65535
    shutter = rectangle(50, 120, 0, 129)
    read = decode(written(dataset(words, **shutter)))
    assert np.array_equal(read.pixels, np.where(visible, image(12), 0))
    assert (read.white, read.warnings) == (4095, (WarningCode.DEPTH,))


def test_shutter_turns_with_the_image(decode: Decode) -> None:
    shutter = rectangle(20, 140, 10, 129)
    elements = {**shutter, "PatientOrientation": ["H", "R"]}
    read = decode(written(dataset(image(12), stored=12, **elements)))
    upright = decode(written(dataset(image(12), stored=12, **shutter)))
    assert np.array_equal(read.pixels, np.rot90(upright.pixels))


def test_circle_is_round_on_pixels_that_are_not_square(decode: Decode) -> None:
    """Its radius counts pixels along a row: it reaches half as many rows of twice the height."""
    white = np.full((ROWS, COLUMNS), 200, np.uint8)
    white[::2] = 100
    elements = {**circle(64, 80, 70), "PixelSpacing": ["0.3", "0.2"], "ShutterPresentationValue": 0}
    shown = decode(written(dataset(white, **elements))).pixels > 50
    height, width = (int(np.count_nonzero(shown.any(axis=axis))) for axis in (1, 0))
    assert width == 139
    assert abs(height - width) <= 2


NONSENSE: dict[str, dict[str, Any]] = {
    "left-beyond-right": rectangle(140, 20, 10, 120),
    "left-is-right": rectangle(80, 80, 10, 120),
    "upper-beyond-lower": rectangle(20, 140, 120, 10),
    "outside": rectangle(500, 900, 10, 120),
    "all-zeros": rectangle(0, 0, 0, 0),
    "far-away": rectangle(-(1 << 30), 1 << 30, 0, 129),
    "an-edge-is-missing": {**rectangle(20, 140, 10, 120), "ShutterLowerHorizontalEdge": ""},
    "hardly-anything-left": rectangle(70, 90, 60, 70),
    "circle-without-radius": {**circle(64, 80, 60), "RadiusOfCircularShutter": ""},
    "circle-of-nothing": circle(64, 80, 0),
    "negative-radius": circle(64, 80, -60),
    "centre-of-one-number": {**circle(64, 80, 60), "CenterOfCircularShutter": 64},
    "polygon-of-two-places": polygon(10, 20, 120, 140),
    "polygon-of-half-a-place": polygon(10, 20, 10, 140, 120),
    "polygon-without-places": polygon(),
    "polygon-of-thousands-of-places": polygon(*[10, 20, 10, 140, 120, 140, 120, 20] * 501),
    "apart": together(rectangle(1, 40, 0, 129), circle(64, 150, 40)),
    "bitmap": {"ShutterShape": "BITMAP"},
    "unknown": {"ShutterShape": "OVAL"},
    "without-shape": {**rectangle(20, 140, 10, 120), "ShutterShape": ""},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written wrong here
@pytest.mark.parametrize("name", NONSENSE)
def test_shutter_without_sense_is_ignored_with_a_warning(name: str, decode: Decode) -> None:
    read = decode(written(dataset(image(12), stored=12, **NONSENSE[name])))
    assert np.array_equal(read.pixels, image(12))
    assert read.warnings == (WarningCode.SHUTTER,)


def test_of_several_shapes_those_with_sense_are_drawn(decode: Decode) -> None:
    elements = together(rectangle(20, 140, 10, 120), circle(64, 80, 0))
    read = decode(written(dataset(image(12), stored=12, **elements)))
    assert np.array_equal(read.pixels, np.where(SHUTTERS["rectangle"][1], image(12), 0))
    assert read.warnings == (WarningCode.SHUTTER,)


def test_a_shape_that_is_named_again_and_again_is_drawn_once(
    decode: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    circular = geometry._INSIDE["CIRCULAR"]

    def draw(*arguments: Any) -> NDArray[np.bool_]:
        drawn.append(arguments)
        return circular(*arguments)

    monkeypatch.setitem(geometry._INSIDE, "CIRCULAR", draw)
    elements, visible = SHUTTERS["circle"]
    elements = {**elements, "ShutterShape": ["CIRCULAR"] * 400}
    read = decode(written(dataset(image(12), stored=12, **elements)))
    assert np.array_equal(read.pixels, np.where(visible, image(12), 0))
    assert len(drawn) == 1


def test_shutter_around_the_whole_image_changes_nothing(decode: Decode) -> None:
    read = decode(written(dataset(image(12), stored=12, **rectangle(0, 161, 0, 129))))
    assert np.array_equal(read.pixels, image(12))
    assert read.warnings == ()
