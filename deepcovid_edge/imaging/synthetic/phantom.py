"""Synthetic radiographs: drawn chest phantoms to try everything without a patient's image.

A phantom has two lungs with vessels and ribs, a heart, and perhaps patchy opacities near the border
of the lungs. It is drawn like a radiograph is taken: thickness of soft tissue, bone and air adds
up, and the film's curve makes grey levels of it. Phantoms are marked as synthetic in the picture
and in the file's metadata. They show no anatomy that a network should be measured by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK

_SIZES = ((1024, 1024), (1140, 960), (900, 1080))
"""Rows and columns of the phantoms, in turn."""
_Layer = NDArray[np.float32]

# Outline of the lung on the left of the picture: x from the middle line (0) to the side (1), y from
# the apex (0) to the costophrenic angle (1).
_LUNG = (
    *((0.22, 0.10), (0.34, 0.01), (0.52, 0.02), (0.70, 0.13), (0.83, 0.32), (0.91, 0.55)),
    *((0.96, 0.78), (0.98, 0.99), (0.84, 0.90), (0.62, 0.83), (0.40, 0.85), (0.25, 0.91)),
    *((0.22, 0.72), (0.24, 0.50), (0.20, 0.32), (0.19, 0.18)),
)


@dataclass(frozen=True)
class _Frame:
    """Where the chest lies in a phantom of its size, and how it is projected."""

    shape: tuple[int, int]
    turn: float
    width: float
    top: float
    height: float
    rib_slope: float
    exposure: float

    @classmethod
    def of(cls, shape: tuple[int, int], draw: np.random.Generator) -> _Frame:
        return cls(
            shape=shape,
            turn=draw.uniform(-0.05, 0.05),
            width=draw.uniform(0.36, 0.42),
            top=draw.uniform(0.12, 0.16),
            height=draw.uniform(0.64, 0.70),
            rib_slope=draw.uniform(0.16, 0.30),
            exposure=draw.uniform(0.9, 1.15),
        )

    def pixel(self, x: Any, y: Any) -> NDArray[np.float64]:
        """Pixels (column, row) of points; x from the middle line, -1 to 1, y from the apex."""
        rows, columns = self.shape
        x, y = np.asarray(x, float), np.asarray(y, float)
        across, down = x * self.width, y * self.height
        column = (0.5 + across - self.turn * (y - 0.5) * 0.3) * columns
        row = (self.top + down + self.turn * x * 0.3) * rows
        return np.stack([column, row], axis=-1)

    @property
    def unit(self) -> float:
        """Pixels of a hundredth of the height."""
        return self.shape[0] / 100


def draw_phantom(seed: int, *, opacities: int = 0) -> NDArray[np.uint8]:
    """Draw a frontal chest phantom.

    Args:
        seed: Decides size, shape, projection and noise.
        opacities: Number of patchy opacities in the lungs.

    Returns:
        Grey pixels of shape (height, width), uint8.
    """
    draw = np.random.default_rng(seed)
    frame = _Frame.of(_SIZES[seed % len(_SIZES)], draw)
    lungs = _lungs(frame, draw)
    tissue = _body(frame) - 0.54 * lungs + _heart(frame, draw)
    tissue += 0.06 * _vessels(frame, draw, lungs)
    tissue += _bones(frame, draw)
    tissue += _opacities(frame, draw, lungs, opacities)
    return _exposed(tissue, frame, draw)


def save_phantom(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a phantom, whole or reduced, as a PNG file that says what it is."""
    facts = PngInfo()
    facts.add_text("Description", f"{SYNTHETIC_MARK.decode()}, not a patient's image")
    Image.fromarray(pixels).save(path, pnginfo=facts)


def _blank(frame: _Frame) -> _Layer:
    return np.zeros(frame.shape, np.float32)


def _soft(mask: _Layer, sigma: float) -> _Layer:
    """A Gaussian blur; a wide one is computed on a reduced layer."""
    shrink = max(1, int(sigma / 4))
    size = mask.shape[1] // shrink, mask.shape[0] // shrink
    small = mask if shrink == 1 else cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    blurred: NDArray[Any] = cv2.GaussianBlur(small, (0, 0), max(0.3, sigma / shrink))
    if shrink > 1:
        blurred = cv2.resize(blurred, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return blurred


def _filled(frame: _Frame, points: NDArray[np.float64]) -> _Layer:
    mask = _blank(frame)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    return mask


def _line(layer: _Layer, points: NDArray[np.float64], thickness: float, value: float = 1.0) -> None:
    whole = np.rint(points * 16).astype(np.int32)
    cv2.polylines(layer, [whole], False, value, max(1, round(thickness)), cv2.LINE_AA, 4)


def _smooth_outline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed Catmull-Rom curve through the points."""
    a, b, c, d = (np.roll(points, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    t = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
    curve = (curve + (3 * b - a - 3 * c + d) * t**3) / 2
    return curve.reshape(-1, 2)


def _body(frame: _Frame) -> _Layer:
    """Soft tissue: thickest in the middle and below, with shoulders and neck."""
    x = [-0.28, -0.30, -0.55, -1.05, -1.32, -1.30, -1.22, -1.20]
    y = [-0.40, -0.14, -0.06, 0.02, 0.18, 0.60, 1.00, 1.60]
    outline = frame.pixel([*x, *(-value for value in reversed(x))], [*y, *reversed(y)])
    body = _soft(_filled(frame, outline), 1.2 * frame.unit)
    rows = np.linspace(-1, 1, frame.shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, frame.shape[1], dtype=np.float32)[None]
    thickness = 0.62 + 0.10 * rows - 0.12 * columns**2
    spine = np.exp(-((columns / 0.09) ** 2)) * 0.26
    below = 1 / (1 + np.exp(-(rows - 0.62) * 14)) * 0.16
    layer: _Layer = (body * (thickness + spine + below)).astype(np.float32)
    return layer


def _lungs(frame: _Frame, draw: np.random.Generator) -> _Layer:
    lungs = _blank(frame)
    for side in (-1, 1):
        points = np.array(_LUNG) + draw.normal(0, 0.012, (len(_LUNG), 2))
        if side > 0:  # the heart takes of the left lung, on the right of the picture
            points[10:15, 0] += (0.14, 0.30, 0.24, 0.10, 0.02)
            points[11, 1] = 0.86
        outline = _smooth_outline(frame.pixel(side * points[:, 0], points[:, 1]))
        lungs = np.maximum(lungs, _filled(frame, outline))
    depth = _soft(lungs, 4 * frame.unit)
    layer: _Layer = _soft(lungs, 0.5 * frame.unit) * (0.55 + 0.45 * depth)
    return layer


def _heart(frame: _Frame, draw: np.random.Generator) -> _Layer:
    grown = draw.uniform(0.92, 1.1)
    x = np.array([-0.18, -0.24, -0.22, -0.10, 0.20, 0.46, 0.52, 0.38, 0.22, 0.16, 0.0])
    y = np.array([0.50, 0.64, 0.80, 0.90, 0.92, 0.88, 0.76, 0.60, 0.46, 0.34, 0.36])
    heart = _filled(frame, _smooth_outline(frame.pixel(grown * x, y)))
    knob = _filled(
        frame, _smooth_outline(frame.pixel([0.05, 0.2, 0.24, 0.05], [0.2, 0.2, 0.3, 0.36]))
    )
    airway = _blank(frame)
    _line(airway, frame.pixel([0, 0.01, 0.01], [-0.3, 0.0, 0.26]), 3.4 * frame.unit)
    layer: _Layer = 0.26 * _soft(heart, 1.1 * frame.unit) + 0.12 * _soft(knob, frame.unit)
    layer -= 0.10 * _soft(airway, 0.8 * frame.unit)
    return layer


def _vessels(frame: _Frame, draw: np.random.Generator, lungs: _Layer) -> _Layer:
    """Trees from both hila that branch and thin out towards the border of the lungs."""
    layer = _blank(frame)
    for side in (-1, 1):
        for angle in np.linspace(-1.2, 1.35, 8):
            start = (side * 0.24, 0.42 + 0.05 * angle)
            _branch(layer, frame, draw, start, (side, angle + draw.normal(0, 0.12)), 1.5, 5)
    hila = _soft(layer, 2.0 * frame.unit) * 1.3
    vessels: _Layer = (_soft(layer, 0.25 * frame.unit) + hila) * np.clip(lungs * 1.6, 0, 1)
    return vessels


def _branch(
    layer: _Layer,
    frame: _Frame,
    draw: np.random.Generator,
    start: tuple[float, float],
    way: tuple[float, float],
    thickness: float,
    depth: int,
) -> None:
    side, angle = way
    length = draw.uniform(0.10, 0.17)
    end = (start[0] + side * length * np.cos(angle), start[1] + 0.75 * length * np.sin(angle))
    _line(
        layer,
        frame.pixel(*zip(start, end, strict=True)),
        thickness * 0.8 * frame.unit,
        0.35 + 0.3 * thickness,
    )
    if depth:
        for turn in (-0.35, 0.32):
            after = (side, angle + turn + draw.normal(0, 0.10))
            _branch(layer, frame, draw, end, after, thickness * 0.62, depth - 1)


def _bones(frame: _Frame, draw: np.random.Generator) -> _Layer:
    """Ribs behind and in front, clavicles and the borders of the shoulder blades."""
    across = np.linspace(0.12, 1.06, 40)
    behind, front, others = [], [], []
    for side in (-1, 1):
        for number in range(10):
            y = -0.02 + 0.098 * number
            down = y + frame.rib_slope * (across - 0.12) ** 1.6 - 0.05 * np.sin(across * 3)
            behind.append(frame.pixel(side * across, down))
            if 1 < number < 8:
                up = y + 0.30 - 0.34 * (across - 0.12) ** 1.2
                front.append(frame.pixel(side * across[8:], up[8:]))
        lift = draw.normal(0, 0.01)
        clavicle = np.array([[0.10, 0.5, 0.85, 1.15], [0.1, 0.04, 0.03, -0.05]])
        blade = np.array([[1.0, 1.02, 1.1], [0.1, 0.32, 0.52]])
        others += [frame.pixel(side * x, y + lift) for x, y in (clavicle, blade)]
    return _tubes(frame, behind, 0.09) + _tubes(frame, front, 0.06) + _tubes(frame, others, 0.10)


def _tubes(frame: _Frame, lines: list[NDArray[np.float64]], value: float) -> _Layer:
    """Bones along lines: their cortex shows more than their marrow."""
    whole, marrow = _blank(frame), _blank(frame)
    for points in lines:
        _line(whole, points, 2.3 * frame.unit)
        _line(marrow, points, 1.4 * frame.unit)
    layer: _Layer = value * _soft(whole - 0.45 * marrow, 0.25 * frame.unit)
    return layer


def _opacities(frame: _Frame, draw: np.random.Generator, lungs: _Layer, count: int) -> _Layer:
    """Patches of ground glass, near the border and below, of varying strength and size."""
    layer = _blank(frame)
    grain = _soft(draw.normal(0, 1, frame.shape).astype(np.float32), 1.4 * frame.unit)
    grain /= np.abs(grain).max() or 1.0
    for number in range(count):
        side = 1 if (number + draw.integers(2)) % 2 else -1
        x, y = side * draw.uniform(0.42, 0.86), draw.uniform(0.30, 0.82)
        blob = _blank(frame)
        for _ in range(6):
            spot = frame.pixel(x + draw.normal(0, 0.08), y + draw.normal(0, 0.055))
            radius = draw.uniform(2.5, 6.0) * frame.unit
            cv2.circle(blob, (round(spot[0]), round(spot[1])), round(radius), 1.0, -1)
        patch = _soft(blob, draw.uniform(1.6, 2.8) * frame.unit)
        layer = np.maximum(layer, draw.uniform(0.40, 0.62) * patch)
    opacity: _Layer = layer * (1 + 0.5 * grain) * np.clip(lungs * 1.5, 0, 1)
    return opacity


def _exposed(tissue: _Layer, frame: _Frame, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Grey levels of the layers: scatter, the film's curve, noise of few photons, the label."""
    scattered = 0.88 * tissue + 0.12 * _soft(tissue, 8 * frame.unit)
    curve = 1 / (1 + np.exp(-(scattered - 0.46) * 5.2 * frame.exposure))
    noise = draw.normal(0, 1, frame.shape).astype(np.float32)
    noisy = curve + 0.020 * _soft(noise, 0.8) * (1.2 - curve)
    pixels = np.clip(8 + 240 * _soft(noisy.astype(np.float32), 0.6), 0, 255).astype(np.uint8)
    _label(pixels)
    return pixels


def _label(pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape
    scale = width / 1100
    at = (round(width * 0.03), round(height * 0.97))
    cv2.putText(pixels, "SYNTHETIC", at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 2, cv2.LINE_AA)
