"""Random changes to training images, so that images of one source look less alike.

The caller seeds the generator with (seed, epoch, image), so a run that was killed and resumed sees
the same images as one that was not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_export.recipe import AugmentSettings

_WORKING_SIDES = (8 / 7, 2.0)
"""Range of the shorter side after a first reduction, in sides of the network's input. Images of one
source share their resolution, and the network must not learn it."""
_GRID = 4
_SOFTEST = 0.5
_MARGINS = (0.05, 0.17)
"""Least and largest share of a side between the image's edge and the hidden rectangle."""


def augment_with_mask(
    image: Radiograph,
    mask: NDArray[np.uint8] | None,
    how: AugmentSettings,
    side: int,
    draw: np.random.Generator,
) -> tuple[Radiograph, NDArray[np.uint8] | None]:
    """A changed copy of an image, still to be prepared, with a mask moved as the image is.

    Args:
        image: The image; with `how.square` already the square of that setting.
        mask: Of the image's shape, or None.
        how: How far the image is changed.
        side: Shorter side of the network's input.
        draw: The generator of this image and epoch.
    """
    low, high = (round(times * side) for times in _WORKING_SIDES)
    drawn = not how.square and how.resolution
    pixels = _reduce(image, int(draw.integers(low, high)) if drawn else high)
    map_x, map_y = _motion(pixels.shape, how, draw)
    beyond = _beyond(how, draw)
    if mask is not None:
        size = (pixels.shape[1], pixels.shape[0])
        reduced: NDArray[Any] = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        mask = _moved(reduced, map_x, map_y, cv2.BORDER_CONSTANT)
    pixels = _tone(_moved(pixels, map_x, map_y, beyond), how, draw)
    pixels = _degrade(pixels, how, draw)
    return replace(image, pixels=pixels, white=255), mask


def square_spec(side: int) -> InputSpec:
    """The square that `AugmentSettings.square` keeps, for a network of this shorter side."""
    whole = round(_WORKING_SIDES[0] * side)
    return InputSpec(whole, whole, ResizeRule.CENTRE_CROP)


def _reduce(image: Radiograph, side: int) -> NDArray[np.uint8]:
    scale = min(1.0, side / min(image.pixels.shape))
    pixels: NDArray[Any] = cv2.resize(
        image.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
    if image.white != 255:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / image.white)
    return pixels


def _motion(
    shape: tuple[int, ...], how: AugmentSettings, draw: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flip, crop, scale, stretch, shift, rotate and distort smoothly, as one map of places."""
    height, width = shape
    field = 1.0 - draw.uniform(0, how.crop, size=2)
    room = (1.0 - field) / 2
    shift = draw.uniform(-1, 1, size=2) * room * (width, height)
    angle = np.deg2rad(draw.uniform(-how.rotate, how.rotate))
    stretch = np.exp(draw.uniform(-how.stretch, how.stretch) / 2)
    mirror = -1.0 if draw.random() < how.flip else 1.0
    if how.zoom:
        field *= np.exp(draw.uniform(-how.zoom, how.zoom))
    if how.shift:
        shift += draw.uniform(-how.shift, how.shift, size=2) * (width, height)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([mirror * field[0] * stretch, field[1] / stretch])
    centre = np.array([width - 1, height - 1]) / 2
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32) - centre[0],
        np.arange(height, dtype=np.float32) - centre[1],
    )
    offset = centre + shift
    map_x = (linear[0, 0] * columns + linear[0, 1] * rows + offset[0]).astype(np.float32)
    map_y = (linear[1, 0] * columns + linear[1, 1] * rows + offset[1]).astype(np.float32)
    if how.distort:
        reach = how.distort * min(height, width)
        bends = draw.uniform(-reach, reach, size=(2, _GRID, _GRID)).astype(np.float32)
        map_x += cv2.resize(bends[0], (width, height), interpolation=cv2.INTER_CUBIC)
        map_y += cv2.resize(bends[1], (width, height), interpolation=cv2.INTER_CUBIC)
    return map_x, map_y


def _beyond(how: AugmentSettings, draw: np.random.Generator) -> int:
    """What lies beyond the image's border."""
    fills = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)
    return fills[draw.integers(len(fills))] if how.border else cv2.BORDER_CONSTANT


def _moved(
    pixels: NDArray[np.uint8],
    map_x: NDArray[np.float32],
    map_y: NDArray[np.float32],
    beyond: int,
) -> NDArray[np.uint8]:
    moved: NDArray[Any] = cv2.remap(pixels, map_x, map_y, cv2.INTER_LINEAR, borderMode=beyond)
    return moved


def _tone(
    pixels: NDArray[np.uint8], how: AugmentSettings, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """Gamma, contrast and brightness, as one table of 256 grey levels."""
    gamma = np.exp(draw.uniform(-how.gamma, how.gamma))
    gain = 1 + draw.uniform(-how.contrast, how.contrast)
    lift = draw.uniform(-how.contrast, how.contrast) / 2
    levels = np.linspace(0, 1, 256) ** gamma
    table = _to_grey(((levels - 0.5) * gain + 0.5 + lift) * 255)
    toned: NDArray[np.uint8] = table[pixels]
    return toned


def _degrade(
    pixels: NDArray[np.uint8], how: AugmentSettings, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """Softening, blur, noise and a JPEG round trip; the last three on half of the images each."""
    changed: NDArray[Any] = pixels
    if how.soften and draw.random() < how.soften:
        changed = _soften(changed, draw.uniform(_SOFTEST, 1.0))
    if how.blur and draw.random() < 0.5:
        changed = cv2.GaussianBlur(changed, (0, 0), draw.uniform(0.2, max(0.21, how.blur)))
    if how.noise and draw.random() < 0.5:
        grain = draw.standard_normal(changed.shape, dtype=np.float32)
        grain *= np.float32(draw.uniform(0, how.noise))
        changed = _to_grey(changed + grain)
    if how.jpeg and draw.random() < 0.5:
        quality = int(draw.integers(how.jpeg, 96))
        _, encoded = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded: NDArray[Any] | None = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        changed = changed if decoded is None else decoded
    return changed


def _to_grey(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The nearest grey levels."""
    levels: NDArray[np.uint8] = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return levels


def _soften(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Reduce and enlarge again, so that fine detail is lost."""
    rows, columns = pixels.shape
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    soft: NDArray[Any] = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return soft


def hides_lungs(how: AugmentSettings, draw: np.random.Generator) -> bool:
    """Draw whether the lungs are hidden this time."""
    return how.hide > 0 and draw.random() < how.hide


def hide_centre(pixels: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """A prepared image whose lungs are covered by a grey rectangle.

    A network that must answer such images with equal probabilities learns to ignore the frame, its
    letters and borders. The rectangle covers 66 % to 90 % of each side. Its grey is the mean of
    what stays visible, or in three of ten images a random one.
    """
    height, width = pixels.shape
    top, bottom, left, right = draw.uniform(*_MARGINS, size=4)
    inner = (
        slice(round(top * height), round((1 - bottom) * height)),
        slice(round(left * width), round((1 - right) * width)),
    )
    hidden: NDArray[np.uint8] = pixels.copy()
    around = float(pixels.sum(dtype=np.int64) - pixels[inner].sum(dtype=np.int64))
    grey = around / (pixels.size - pixels[inner].size)
    hidden[inner] = round(grey) if draw.random() < 0.7 else draw.integers(40, 220)
    return hidden
