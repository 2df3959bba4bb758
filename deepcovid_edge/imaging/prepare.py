"""Radiograph to network input: the one definition that training and the cart share."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Grey, Radiograph
from deepcovid_edge.imaging.resize import reduce_area
from deepcovid_edge.manifest import InputSpec, ResizeRule

_ROUNDING = 1e-9


def prepare(image: Radiograph, spec: InputSpec) -> NDArray[np.uint8]:
    """Bring an image to the network's shape and depth.

    Args:
        image: The image, grey, of any shape.
        spec: The network's input, from its manifest.

    Returns:
        Grey pixels of shape (spec.height, spec.width), uint8, 0 black and 255 white.
    """
    # A centre crop is taken first: the same picture as resizing first (Deep-COVID's Resize, then
    # CenterCrop) up to the rounding of the crop's edge, at the cost of the crop alone.
    seen = image.pixels[visible_field(image.pixels.shape, spec)]
    rows, columns = filled_field(image.pixels.shape, spec)
    shown = _reduced(seen, image.white, (rows.stop - rows.start, columns.stop - columns.start))
    if shown.shape == (spec.height, spec.width):
        return shown
    canvas = np.zeros((spec.height, spec.width), np.uint8)
    canvas[rows, columns] = shown
    return canvas


def on_image(
    box: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, ...],
    spec: InputSpec,
    box_shape: tuple[int, ...] | None = None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where on an image rows and columns of the network's input lie.

    Args:
        box: First and last (not included) row, and column, of the network's input.
        shape: Rows and columns of the image.
        spec: The network's input.
        box_shape: Rows and columns that the result counts, see `Radiograph.box_shape`; the image's
            own where not given.

    Returns:
        The same on the image, widened to whole pixels; a letterbox's border lies on its edge.
    """
    counted = box_shape or shape
    filled = filled_field(shape, spec)
    seen = visible_field(shape, spec)
    spans = []
    for axis, span in enumerate(box):
        first, length = filled[axis].start, filled[axis].stop - filled[axis].start
        scale = (seen[axis].stop - seen[axis].start) / length
        grown = counted[axis] / shape[axis]
        low, high = ((seen[axis].start + (edge - first) * scale) * grown for edge in span)
        inside = (
            max(math.floor(low + _ROUNDING), 0),
            min(math.ceil(high - _ROUNDING), counted[axis]),
        )
        spans.append((min(inside[0], counted[axis] - 1), max(inside[1], 1)))
    return spans[0], spans[1]


def visible_field(shape: tuple[int, ...], spec: InputSpec) -> tuple[slice, slice]:
    """Rows and columns of an image that the network sees: all but what a centre crop cuts off.

    Args:
        shape: Rows and columns of the image.
        spec: The network's input.
    """
    rows, columns = shape
    if spec.resize is not ResizeRule.CENTRE_CROP:
        return slice(0, rows), slice(0, columns)
    scale = min(rows / spec.height, columns / spec.width)
    height, width = round(spec.height * scale), round(spec.width * scale)
    top, left = (rows - height) // 2, (columns - width) // 2
    return slice(top, top + height), slice(left, left + width)


def filled_field(shape: tuple[int, ...], spec: InputSpec) -> tuple[slice, slice]:
    """Rows and columns of the network's input that show image: all but a letterbox's border.

    Args:
        shape: Rows and columns of the image.
        spec: The network's input.
    """
    if spec.resize is not ResizeRule.LETTERBOX:
        return slice(0, spec.height), slice(0, spec.width)
    rows, columns = shape
    scale = min(spec.height / rows, spec.width / columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _reduced(pixels: Grey, white: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture in another size, of 256 levels."""
    height, width = shape
    rows, columns = pixels.shape
    resized: NDArray[Any]
    # OpenCV has quick ways for pixels that fit into areas without being cut, and it enlarges.
    fits = rows % height == 0 and columns % width == 0
    if fits or rows < height or columns < width:
        resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    else:
        resized = reduce_area(pixels, shape)
    if resized.dtype == np.uint8 and white == 255:
        return np.ascontiguousarray(resized)
    # Rounds and saturates; resizing comes first, so that no 16-bit image is converted whole.
    levels: NDArray[Any] = cv2.convertScaleAbs(resized, alpha=255.0 / white)
    return levels
