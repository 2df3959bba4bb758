"""Readers' boxes on the model input, as a mask or as cells of an activation map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.datasets.layouts import Box
from deepcovid_edge.imaging.prepare import filled_field, visible_field
from deepcovid_edge.manifest import InputSpec

Mask = NDArray[np.uint8]
"""255 inside a box, 0 outside."""


def mask_of(boxes: Sequence[Box], shape: tuple[int, ...], spec: InputSpec | None = None) -> Mask:
    """The boxes of an image as a mask.

    Args:
        boxes: Fractions of the image.
        shape: Rows and columns of the image.
        spec: The model input, for a mask of what the model sees; None for the whole image.

    Returns:
        Of the image's shape, or of the model input's shape.
    """
    rows, columns = shape[:2]
    seen, filled = (slice(0, rows), slice(0, columns)), (slice(0, rows), slice(0, columns))
    size = (rows, columns)
    if spec is not None:
        seen, filled = visible_field((rows, columns), spec), filled_field((rows, columns), spec)
        size = (spec.height, spec.width)
    mask: Mask = np.zeros(size, np.uint8)
    for left, top, width, height in boxes:
        vertical = _span(top * rows, (top + height) * rows, seen[0], filled[0])
        horizontal = _span(left * columns, (left + width) * columns, seen[1], filled[1])
        mask[vertical, horizontal] = 255
    return mask


def _span(start: float, stop: float, seen: slice, filled: slice) -> slice:
    """Pixels of an image along one axis, as pixels of the model input."""
    scale = (filled.stop - filled.start) / (seen.stop - seen.start)
    first, last = (filled.start + (edge - seen.start) * scale for edge in (start, stop))
    ends = (min(max(round(edge), filled.start), filled.stop) for edge in (first, last))
    return slice(*ends)


def cells_of(mask: Mask, cells: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each cell of an activation map that lies in a box, of shape (rows, columns)."""
    rows, columns = cells
    shares: NDArray[Any] = cv2.resize(
        mask.astype(np.float32) / 255, (columns, rows), interpolation=cv2.INTER_AREA
    )
    return shares
