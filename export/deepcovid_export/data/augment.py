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
from deepcovid_export.recipe import AugmentSettings

_WORKING_SIDES = (8 / 7, 2.0)
"""Range of the shorter side after a first reduction, in sides of the network's input. Images of one
source share their resolution, and the network must not learn it."""
_GRID = 4
_MARGINS = (0.05, 0.17)
"""Least and largest share of a side between the image's edge and the hidden rectangle."""


def augment(
    image: Radiograph, how: AugmentSettings, side: int, draw: np.random.Generator
) -> Radiograph:
    """A changed copy of an image, still to be prepared for a network of this shorter side."""
    low, high = (round(times * side) for times in _WORKING_SIDES)
    pixels = _reduce(image, int(draw.integers(low, high)) if how.resolution else high)
    pixels = _move(pixels, how, draw)
    pixels = _tone(pixels, how, draw)
    pixels = _degrade(pixels, how, draw)
    return replace(image, pixels=pixels, white=255)


def _reduce(image: Radiograph, side: int) -> NDArray[np.uint8]:
    scale = min(1.0, side / min(image.pixels.shape))
    pixels: NDArray[Any] = cv2.resize(
        image.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
    if image.white != 255:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / image.white)
    return pixels


def _move(
    pixels: NDArray[np.uint8], how: AugmentSettings, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """Flip, crop, stretch, rotate and distort smoothly, in one resampling."""
    height, width = pixels.shape
    zoom = 1.0 - draw.uniform(0, how.crop, size=2)
    room = (1.0 - zoom) / 2
    shift = draw.uniform(-1, 1, size=2) * room * (width, height)
    angle = np.deg2rad(draw.uniform(-how.rotate, how.rotate))
    stretch = np.exp(draw.uniform(-how.stretch, how.stretch) / 2)
    mirror = -1.0 if draw.random() < how.flip else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([mirror * zoom[0] * stretch, zoom[1] / stretch])
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
    moved: NDArray[Any] = cv2.remap(
        pixels, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return moved


def _tone(
    pixels: NDArray[np.uint8], how: AugmentSettings, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """Gamma, contrast and brightness, as one table of 256 grey levels."""
    gamma = np.exp(draw.uniform(-how.gamma, how.gamma))
    gain = 1 + draw.uniform(-how.contrast, how.contrast)
    lift = draw.uniform(-how.contrast, how.contrast) / 2
    levels = np.linspace(0, 1, 256) ** gamma
    table = np.clip(((levels - 0.5) * gain + 0.5 + lift) * 255, 0, 255).astype(np.uint8)
    toned: NDArray[np.uint8] = table[pixels]
    return toned


def _degrade(
    pixels: NDArray[np.uint8], how: AugmentSettings, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """Blur, noise and a JPEG round trip, each on half of the images."""
    changed: NDArray[Any] = pixels
    if how.blur and draw.random() < 0.5:
        changed = cv2.GaussianBlur(changed, (0, 0), draw.uniform(0.2, max(0.21, how.blur)))
    if how.noise and draw.random() < 0.5:
        grain = draw.standard_normal(changed.shape, dtype=np.float32)
        grain *= np.float32(draw.uniform(0, how.noise))
        changed = np.clip(changed + grain, 0, 255).astype(np.uint8)
    if how.jpeg and draw.random() < 0.5:
        quality = int(draw.integers(how.jpeg, 96))
        _, encoded = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded: NDArray[Any] | None = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        changed = changed if decoded is None else decoded
    return changed


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
