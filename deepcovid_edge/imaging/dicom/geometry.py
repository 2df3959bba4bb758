"""Geometry of a DICOM image: the shape of its pixels, and the display shutter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.aspect import PixelShape, pixel_shape
from deepcovid_edge.imaging.dicom.elements import Elements
from deepcovid_edge.imaging.radiograph import Grey
from deepcovid_edge.reasons import WarningCode

_SPACINGS = (0x00280030, 0x00181164, 0x00182010)
"""Pixel Spacing, Imager Pixel Spacing and Nominal Scanned Pixel Spacing."""
_ASPECT_RATIO = 0x00280034
_SHAPE, _CENTRE, _RADIUS, _VERTICES = 0x00181600, 0x00181610, 0x00181612, 0x00181620
_LEFT, _RIGHT, _UPPER, _LOWER = 0x00181602, 0x00181604, 0x00181606, 0x00181608
_VALUE, _CIELAB = 0x00181622, 0x00181624
SHUTTER_TAGS = (_SHAPE, _LEFT, _RADIUS, _VERTICES)
"""Where none of them stands, there is no shutter."""
FRAME_SHUTTER_TAGS = (
    *(_SHAPE, _CENTRE, _RADIUS, _VERTICES),
    *(_LEFT, _RIGHT, _UPPER, _LOWER, _VALUE, _CIELAB),
)
TAGS = (*_SPACINGS, _ASPECT_RATIO, *FRAME_SHUTTER_TAGS)
LEAST_VISIBLE = 0.1
"""A shutter that leaves less of the image than this share makes no sense."""
_FARTHEST = 1 << 20
_MOST_VERTICES = 2_000
"""Corners of a polygon that makes sense: collimators have some ten. Time to fill a polygon grows
with the square of their number."""

Mask: TypeAlias = NDArray[np.bool_]


def stated_shape(elements: Elements) -> PixelShape:
    """The shape of the pixels.

    PS3.3, C.7.6.3.1.7: Pixel Aspect Ratio counts only where no spacing is given. Pixel Spacing,
    which may be calibrated, comes before those of detector and scanner (PS3.3, 10.7.1.3). All give
    the vertical size first.
    """
    stated = []
    for tag in (*_SPACINGS, _ASPECT_RATIO):
        if elements.raw(tag).strip(b" \0"):
            sides = elements.texts(tag)
            stated.append((sides[0], sides[1] if len(sides) > 1 else ""))
    return pixel_shape(stated)


@dataclass(frozen=True)
class Shutter:
    """What of an image is hidden, and as what.

    Attributes:
        hidden: Of shape (rows, columns), True where a pixel is not shown; None without a shutter.
        share: What is shown there: a share of full white.
        warnings: What to know about it.
    """

    hidden: Mask | None = None
    share: float = 0.0
    warnings: tuple[WarningCode, ...] = ()

    def over(self, image: Grey, white: int) -> Grey:
        """The image as it is shown, its own pixels left alone."""
        if self.hidden is None:
            return image
        shown: NDArray[Any] = image.copy()
        shown[self.hidden] = round(self.share * white)
        return shown


def display_shutter(elements: Elements, shape: tuple[int, int], pixels: PixelShape) -> Shutter:
    """The display shutter of an image (PS3.3, C.7.6.11).

    Several shapes leave what lies inside all of them. A shape that makes no sense is ignored, and
    so are all where they leave less than `LEAST_VISIBLE` of the image.

    Args:
        elements: Of the header.
        shape: Rows and columns.
        pixels: Their shape: a circle is round on the patient, and an ellipse of other pixels.
    """
    # There is one set of edges, of a circle and of vertices: a name that comes twice adds nothing.
    names = dict.fromkeys(name.upper() for name in elements.texts(_SHAPE) if name)
    if not any(elements.raw(tag) for tag in SHUTTER_TAGS):
        return Shutter()
    visible = np.ones(shape, bool)
    ignored = not names
    for name in names:
        try:
            inside = _INSIDE[name](elements, shape, pixels.ratio)
        except (KeyError, ValueError, OverflowError):
            ignored = True
            continue
        if inside.any():
            visible &= inside
        else:
            ignored = True
    if visible.mean() < LEAST_VISIBLE:
        visible, ignored = np.ones(shape, bool), True
    warnings = (WarningCode.SHUTTER,) if ignored else ()
    if visible.all():
        return Shutter(warnings=warnings)
    return Shutter(~visible, _share(elements), warnings)


def _share(elements: Elements) -> float:
    """A P-Value of 16 bits, else the lightness of CIELab (PS3.3, C.10.7.1.1), else black."""
    value = elements.number(_VALUE)
    if value is None:
        value = elements.number(_CIELAB) or 0
    return value / 65535.0


def _whole(elements: Elements, tag: int) -> list[int]:
    """The values of an integer string.

    Raises:
        ValueError: They are not numbers, or lie far away.
        OverflowError: One is infinite.
    """
    numbers = [round(float(text)) for text in elements.texts(tag)]
    if max(map(abs, numbers)) > _FARTHEST:
        raise ValueError(f"{max(map(abs, numbers))} is far outside of any image")
    return numbers


def _in_rectangle(elements: Elements, shape: tuple[int, int], _ratio: float) -> Mask:
    """Between the edges; rows and columns count from 1, and those of the edges are hidden."""
    left, right, upper, lower = (
        _whole(elements, tag)[0] for tag in (_LEFT, _RIGHT, _UPPER, _LOWER)
    )
    inside = np.zeros(shape, bool)
    inside[max(upper, 0) : max(lower - 1, 0), max(left, 0) : max(right - 1, 0)] = True
    return inside


def _in_circle(elements: Elements, shape: tuple[int, int], ratio: float) -> Mask:
    """Nearer to the centre than the radius, which counts pixels along a row."""
    (row, column), radius = _whole(elements, _CENTRE), _whole(elements, _RADIUS)[0]
    down = ((np.arange(shape[0]) + 1 - row) * ratio) ** 2
    across = (np.arange(shape[1]) + 1.0 - column) ** 2
    inside: Mask = across[None, :] < (max(radius, 0) ** 2 - down)[:, None]
    return inside


def _in_polygon(elements: Elements, shape: tuple[int, int], _ratio: float) -> Mask:
    """Inside of the outline, which is hidden as the edges of a rectangle are."""
    places = np.array(_whole(elements, _VERTICES)).reshape(-1, 2)
    if len(places) > _MOST_VERTICES:
        raise ValueError(f"{len(places)} corners, at most {_MOST_VERTICES} are drawn")
    outline = [np.ascontiguousarray(places[:, ::-1] - 1, np.int32)]
    inside = np.zeros(shape, np.uint8)
    cv2.fillPoly(inside, outline, 1)
    cv2.polylines(inside, outline, isClosed=True, color=0)
    return inside.view(bool)


_INSIDE: dict[str, Callable[[Elements, tuple[int, int], float], Mask]] = {
    "RECTANGULAR": _in_rectangle,
    "CIRCULAR": _in_circle,
    "POLYGONAL": _in_polygon,
}
