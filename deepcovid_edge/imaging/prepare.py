"""Radiograph to network input: the one definition that training and the cart share."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Grey, Radiograph
from deepcovid_edge.imaging.resize import Span, reduce_area
from deepcovid_edge.manifest import InputSpec, ResizeRule

MARGIN = 2.5
"""Pixels that a halved picture keeps along each pixel of the model input. Model inputs of sharp
images of `val` then differ by 0.2 to 0.5 grey levels on average, and by 4 to 10 in one pixel of a
thousand; with 1.5 pixels by up to 0.6 and 15, and probabilities by up to 0.15."""

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
    seen = visible_field(image.whole_shape, spec)
    rows, columns = filled_field(image.whole_shape, spec)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    if image.halvings:
        shown = _levels(_reduced_more(image.pixels, seen, shape, image.halvings), image.white)
    else:
        shown = _levels(_reduced(image.pixels[seen], shape), image.white)
    if shown.shape == (spec.height, spec.width):
        return shown
    canvas = np.zeros((spec.height, spec.width), np.uint8)
    canvas[rows, columns] = shown
    return canvas


def enough_halvings(shape: tuple[int, ...], spec: InputSpec) -> int:
    """How often both sides of an image can be halved before it is prepared.

    Args:
        shape: Rows and columns of the image.
        spec: The network's input.
    """
    fields = zip(visible_field(shape, spec), filled_field(shape, spec), strict=True)
    scale = min((seen.stop - seen.start) / (to.stop - to.start) for seen, to in fields)
    return max(0, math.floor(math.log2(scale / MARGIN)))


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


def _reduced(pixels: Grey, shape: tuple[int, int]) -> NDArray[Any]:
    """The picture in another size."""
    height, width = shape
    rows, columns = pixels.shape
    # OpenCV has quick ways for pixels that fit into areas without being cut, and it enlarges.
    fits = rows % height == 0 and columns % width == 0
    if fits or rows < height or columns < width:
        resized: NDArray[Any] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return resized
    return reduce_area(pixels, shape)


def _reduced_more(
    pixels: Grey, seen: tuple[slice, slice], shape: tuple[int, int], halvings: int
) -> NDArray[np.float32]:
    """The part of a picture, halved before, that is seen, in another size."""
    # Its outermost pixels reach less far than those of the whole picture, by half a pixel at most.
    wider: NDArray[Any] = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    rows, columns = (_halved(span, halvings) for span in seen)
    return reduce_area(wider, shape, (rows, columns))


def _halved(span: slice, halvings: int) -> Span:
    """A span of the whole picture on the halved one, behind its border of one pixel."""
    # ISO/IEC 15444-1, F.3: pixel i of it lies where pixel i * 2**halvings of the whole one does.
    low, high = ((edge - 0.5) / (1 << halvings) + 1.5 for edge in (span.start, span.stop))
    return low, high


def _levels(resized: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """The picture in 256 levels."""
    if resized.dtype == np.uint8 and white == 255:
        return np.ascontiguousarray(resized)
    # Rounds and saturates; resizing comes first, so that no 16-bit image is converted whole.
    levels: NDArray[Any] = cv2.convertScaleAbs(resized, alpha=255.0 / white)
    return levels
