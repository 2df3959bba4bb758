"""Altered copies of training images, on which the out-of-distribution limits are fitted.

Copies to reject are turned or inverted, or so changed that little of the image is left; no other
pictures are needed (Hendrycks, Mazeika and Dietterich 2019, Deep Anomaly Detection with Outlier
Exposure, take pictures of another collection). Copies to accept look as another hospital might send
them.

All functions take a prepared image of shape (height, width), uint8, and return one like it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]
_MOST_SHAPES = 12


def quarter_turns(count: int) -> Change:
    """Turn an image to the left by `count` times 90 degrees."""

    def turn(image: Pixels, _: np.random.Generator) -> Pixels:
        return _resize(np.rot90(image, count), image.shape)

    return turn


def invert(image: Pixels, _: np.random.Generator) -> Pixels:
    """Black for white."""
    inverted: Pixels = 255 - image
    return inverted


def shuffle(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Cut into 2 x 2 to 5 x 5 pieces and put together in another order."""
    pieces = int(draw.integers(2, 6))
    rows, columns = (np.linspace(0, side, pieces + 1).astype(int) for side in image.shape)
    boxes = [
        (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
        for i in range(pieces)
        for j in range(pieces)
    ]
    order = draw.permutation(len(boxes))
    while (order == np.arange(len(boxes))).sum() > len(boxes) // 2:
        order = draw.permutation(len(boxes))
    shuffled = np.empty_like(image)
    for place, source in zip(boxes, order, strict=True):
        shuffled[place] = _resize(image[boxes[source]], shuffled[place].shape)
    return shuffled


def enlarge(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Enlarge a detail, 15 to 40 % of each side, to the full size."""
    share = draw.uniform(0.15, 0.4)
    sides = [max(2, round(share * side)) for side in image.shape]
    top, left = (
        int(draw.integers(0, whole - part)) for whole, part in zip(image.shape, sides, strict=True)
    )
    return _resize(image[top : top + sides[0], left : left + sides[1]], image.shape)


def scramble(image: Pixels, draw: np.random.Generator) -> Pixels:
    """The same spatial frequencies in random places."""
    strength = np.abs(np.fft.fft2(image.astype(np.float64)))
    phase = np.angle(np.fft.fft2(draw.standard_normal(image.shape)))
    wave = np.fft.ifft2(strength * np.exp(1j * phase)).real
    return _grey((wave - wave.mean()) / (wave.std() or 1.0) * image.std() + image.mean())


def drown(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Replace half or more of the signal by noise, fine to coarse."""
    grain: NDArray[Any] = draw.standard_normal(image.shape, dtype=np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), float(2 ** draw.uniform(-2, 5)))
    grain = (grain - grain.mean()) / grain.std() * draw.uniform(20, 80) + 128
    share = draw.uniform(0.5, 1.0)
    return _grey((1 - share) * image + share * grain)


def draw_shapes(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Replace the image by a few discs, rectangles and lines, or nothing, on one grey."""
    height, width = image.shape
    picture: NDArray[Any] = np.full(image.shape, draw.integers(0, 256), np.uint8)
    for _ in range(int(draw.integers(0, _MOST_SHAPES))):
        grey, kind = int(draw.integers(0, 256)), int(draw.integers(0, 3))
        start, end = (
            (int(draw.integers(0, width)), int(draw.integers(0, height))) for _ in range(2)
        )
        if kind == 0:
            cv2.circle(picture, start, int(draw.integers(2, height // 2)), grey, -1)
        elif kind == 1:
            cv2.rectangle(picture, start, end, grey, -1)
        else:
            cv2.line(picture, start, end, grey, int(draw.integers(1, max(2, height // 10))))
    return _grey(cv2.GaussianBlur(picture, (0, 0), draw.uniform(0.3, 5)))


def vary(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Change frame, contrast and sharpness, as another hospital might send the image."""
    height, width = image.shape
    middle = ((width - 1) / 2, (height - 1) / 2)
    move: NDArray[Any] = cv2.getRotationMatrix2D(
        middle, draw.uniform(-8, 8), draw.uniform(0.85, 1.25)
    )
    move[:, 2] += draw.uniform(-0.08, 0.08, size=2) * np.array([width, height])
    moved = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_CONSTANT)
    levels = np.linspace(0, 1, 256) ** np.exp(draw.uniform(-0.7, 0.7))
    gain, lift = draw.uniform(0.5, 1.2), draw.uniform(-0.1, 0.2)
    toned = _grey(((levels - 0.5) * gain + 0.5 + lift) * 255)[moved]
    soft = cv2.GaussianBlur(toned, (0, 0), draw.uniform(0.3, 1.2)).astype(np.float32)
    amount = draw.uniform(-1, 1)  # below 0 softer, above 0 sharper
    return _grey(toned + amount * (toned.astype(np.float32) - soft))


TURNED: tuple[Change, ...] = (quarter_turns(1), quarter_turns(2), quarter_turns(3), invert)
UNRECOGNISABLE: tuple[Change, ...] = (shuffle, enlarge, scramble, drown, draw_shapes)


def _resize(pixels: NDArray[Any], shape: tuple[int, ...]) -> Pixels:
    if pixels.shape == shape:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    rows, columns = shape
    sized: NDArray[Any] = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return sized


def _grey(values: NDArray[Any]) -> Pixels:
    grey: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return grey
