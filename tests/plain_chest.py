"""Plain drawings of a chest for tests whose figures depend on what the images hold."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SIZES = ((1024, 1024), (1140, 960), (900, 1080))
"""Rows and columns of the phantoms, in turn."""


def draw_chest(seed: int, *, opacities: int = 0) -> NDArray[np.uint8]:
    """Draw a frontal chest phantom.

    Args:
        seed: Decides size, shape and noise.
        opacities: Number of hazy patches in the lungs.

    Returns:
        Grey pixels of shape (height, width), uint8.
    """
    draw = np.random.default_rng(seed)
    height, width = _SIZES[seed % len(_SIZES)]
    image = np.full((height, width), 12, np.float32)
    wobble = draw.uniform(0.94, 1.06, size=8)
    _ellipse(image, (0.5, 0.62), (0.46 * wobble[0], 0.58), 150)
    _ellipse(image, (0.5, 0.08), (0.10, 0.16), 140)
    lungs = np.zeros_like(image)
    for side, scale in ((-1, wobble[1]), (1, wobble[2])):
        _ellipse(lungs, (0.5 + side * 0.205, 0.47), (0.155 * scale, 0.32 * wobble[3]), 1)
    lungs = _soft(lungs, 0.006)
    image -= 105 * lungs
    _ribs(image, wobble)
    image[:, int(width * 0.47) : int(width * 0.53)] += 45
    heart = np.zeros_like(image)
    _ellipse(heart, (0.555, 0.63), (0.135 * wobble[4], 0.16 * wobble[5]), 1)
    image += 70 * _soft(heart, 0.012)
    for side in (-1, 1):
        diaphragm = np.zeros_like(image)
        _ellipse(diaphragm, (0.5 + side * 0.22, 0.93), (0.24, 0.17 * wobble[6]), 1)
        image += 60 * _soft(diaphragm, 0.01)
    for _ in range(opacities):
        patch = np.zeros_like(image)
        centre = (0.5 + draw.choice([-1, 1]) * draw.uniform(0.15, 0.27), draw.uniform(0.45, 0.68))
        _ellipse(patch, centre, (draw.uniform(0.04, 0.08), draw.uniform(0.04, 0.08)), 1)
        image += draw.uniform(45, 75) * _soft(patch, 0.03) * lungs
    grain = draw.normal(0, 4, image.shape)
    pixels = np.clip(_soft(image, 0.002) + grain, 0, 255).astype(np.uint8)
    _label(pixels)
    return pixels


def _ellipse(
    image: NDArray[np.float32], centre: tuple[float, float], axes: tuple[float, float], value: float
) -> None:
    """Fill an ellipse; centre (x, y) and half axes as shares of width and height."""
    height, width = image.shape
    middle = (round(centre[0] * width), round(centre[1] * height))
    half = (round(axes[0] * width), round(axes[1] * height))
    cv2.ellipse(image, middle, half, 0, 0, 360, value, thickness=-1)


def _ribs(image: NDArray[np.float32], wobble: NDArray[np.float64]) -> None:
    height, width = image.shape
    ribs = np.zeros_like(image)
    for number in range(9):
        y = round(height * (0.2 + 0.065 * number))
        for side in (-1, 1):
            middle = (round(width * (0.5 + side * 0.19)), y)
            half = (round(width * 0.2), round(height * 0.055 * wobble[7]))
            start, end = (200, 320) if side < 0 else (220, 340)
            cv2.ellipse(ribs, middle, half, side * 12, start, end, 1.0, round(height * 0.012))
    image += 26 * _soft(ribs, 0.003)


def _soft(mask: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    blurred: NDArray[Any] = cv2.GaussianBlur(mask, (0, 0), share * mask.shape[0])
    return blurred


def _label(pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape
    scale = width / 1100
    at = (round(width * 0.03), round(height * 0.97))
    cv2.putText(pixels, "SYNTHETIC", at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 2, cv2.LINE_AA)
