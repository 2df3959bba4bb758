"""Heat maps: where on the image the network looked, and which regions that makes.

Two kinds, both of the model as it runs, in any precision:

- `occlusion`: hide a window, classify again (`occlusion.py`). It shows what the network does.
- `activation`: the class activation map (Zhou et al., CVPR 2016) that the network gives beside its
  logits, at no cost. Its mean is the logit. As the logit is linear in the last features, the mean
  gradients that Grad-CAM weighs them with are the map's own weights, divided by the number of
  positions: up to that scale and the bias, the map is Grad-CAM's before its ReLU (Selvaraju et
  al., ICCV 2017, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.prepare import on_image
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.models.graph.receptive_field import Box

OCCLUSION, ACTIVATION = "occlusion", "activation"
METHODS = (OCCLUSION, ACTIVATION)
"""Values of `--heatmap` and `--method`."""
_MOST_REGIONS = 5
_HALF = 0.5
_SMALLEST = 0.002
"""A region covers at least this share of the network's input: less is the corner of a window."""


@dataclass(frozen=True)
class HeatMap:
    """Where the network looked on one image.

    Attributes:
        method: `occlusion` or `activation`.
        values: The map on the model input, of shape (height, width), float32. A higher value spoke
            more for the positive class. Occlusion: mean drop of its logit over the windows that
            hide a pixel. Activation: the class activation map, interpolated.
        cells: What `values` was made of, float32: the drop for each window, or the map as the
            network gives it.
        probability_drop: As `values`, of the probability; None for activation maps.
        turned: Pixels in windows whose hiding changes the decision; None for activation maps.
        facts: The settings of the map, as plain values.
    """

    method: str
    values: NDArray[np.float32]
    cells: NDArray[np.float32]
    probability_drop: NDArray[np.float32] | None = None
    turned: NDArray[np.bool_] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Region:
    """A place where the network looked, as a box on the image.

    Attributes:
        x: First column, in pixels of the original image, turned upright.
        y: First row.
        width: Columns.
        height: Rows.
        peak: The map's highest value inside.
        turns: Whether hiding a window that overlaps it changes the decision; None if that is not
            known.
    """

    x: int
    y: int
    width: int
    height: int
    peak: float
    turns: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The region as plain values."""
        return {
            "x": self.x,
            "y": self.y,
            "width": self.width,
            "height": self.height,
            "peak": round(self.peak, 4),
            "turns": self.turns,
        }


def of_activation(class_map: NDArray[np.float32], spec: InputSpec) -> HeatMap:
    """The heat map of one class, its cells laid out as equal tiles of the model input.

    This is usual for Grad-CAM, and training compares maps with boxes on the same tiles. The centres
    of the cells' receptive fields lie elsewhere: those of SqueezeNet 1.1 at pixel 16 i + 15 of 224,
    up to 8 pixels from the centres of the tiles; those of ResNet18 at 32 i, always 15.5 pixels.

    The interpolation is bicubic (Keys 1981, OpenCV's a = -0.75), so that a peak may lie between
    cells. A bilinear map peaks at the centre of one cell, whatever its neighbours say. On `val`
    more peaks lie in a reader's box than with bilinear interpolation.

    Args:
        class_map: The positive class's activation map, of shape (h, w).
        spec: The network's input.
    """
    size = (spec.width, spec.height)
    smooth: NDArray[Any] = cv2.resize(class_map, size, interpolation=cv2.INTER_CUBIC)
    return HeatMap(ACTIVATION, smooth, class_map)


def regions(
    found: HeatMap,
    shape: tuple[int, ...],
    spec: InputSpec,
    box_shape: tuple[int, ...] | None = None,
) -> list[Region]:
    """The places that spoke most for the positive class, the strongest first, at most five.

    They are where the map reaches half of its highest value. A map that does not reach half as far
    above zero as below it spoke against the positive class. It has no regions.

    Args:
        found: The heat map.
        shape: Rows and columns of the image.
        spec: The network's input, which says where on the image the map lies.
        box_shape: Rows and columns that regions count, see `Radiograph.box_shape`; the image's own
            where not given.
    """
    places = []
    for box, peak in _pieces(upper_half(found.values), found.values):
        turns = (
            None
            if found.turned is None
            else bool(found.turned[slice(*box[0]), slice(*box[1])].any())
        )
        (top, bottom), (left, right) = on_image(box, shape, spec, box_shape)
        places.append(Region(left, top, right - left, bottom - top, peak, turns))
    return sorted(places, key=lambda region: -region.peak)[:_MOST_REGIONS]


def upper_half(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a map reaches half of its highest value; nowhere if it speaks against on the whole."""
    lowest, highest, _, _ = cv2.minMaxLoc(values)
    if highest <= 0 or highest < -_HALF * lowest:
        return np.zeros(values.shape, bool)
    above: NDArray[np.bool_] = values >= np.float32(_HALF * highest)
    return above


def _pieces(mask: NDArray[np.bool_], values: NDArray[np.float32]) -> Iterator[tuple[Box, float]]:
    """Boxes of a mask's connected pieces that are large enough, each with its highest value.

    What lies in a piece's hole belongs to it. Outlines take a tenth of the time of labels.
    """
    marked = mask.view(np.uint8)
    outlines, _ = cv2.findContours(marked, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [_box(outline) for outline in outlines]
    least = _SMALLEST * mask.size
    for outline, box in zip(outlines, boxes, strict=True):
        (top, bottom), (left, right) = box
        if (bottom - top) * (right - left) < least:
            continue
        inside = marked[top:bottom, left:right]
        if any(other is not box and _overlap(other, box) for other in boxes):
            filled = np.zeros(inside.shape, np.uint8)
            cv2.drawContours(filled, [outline], -1, 1, cv2.FILLED, offset=(-left, -top))
            inside = inside & filled
        if np.count_nonzero(inside) >= least:
            yield box, cv2.minMaxLoc(values[top:bottom, left:right], inside)[1]


def _box(outline: NDArray[Any]) -> Box:
    left, top, width, height = cv2.boundingRect(outline)
    return (top, top + height), (left, left + width)


def _overlap(one: Box, other: Box) -> bool:
    return all(a[0] < b[1] and b[0] < a[1] for a, b in zip(one, other, strict=True))
