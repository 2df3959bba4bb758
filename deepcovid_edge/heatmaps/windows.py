"""Where the windows of an occlusion lie, and how what they say is brought to pixels.

Windows lie as in captum's `Occlusion`: the first at the image's corner, the last cut off at its
border, so that every pixel is hidden at least once; a pixel's value is the mean over the windows
that hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import UsageError
from deepcovid_edge.models.graph.receptive_field import Box, Span

BASELINES = ("black", "mean", "blurred")


@dataclass(frozen=True)
class OcclusionSettings:
    """Which windows are hidden, and how.

    Attributes:
        window: Side of a window, pixels of the network's input.
        stride: From one window to the next, pixels of the network's input.
        baseline: What a hidden window shows: `black`, the image's `mean` grey, or the image itself
            `blurred` by a Gaussian of half a window.
        budget_ms: Most milliseconds for one image; None for all windows, however long they take.
        incremental: Compute only what a window alters, where the backend can; the map is the same.
    """

    window: int = 32
    stride: int = 8
    baseline: str = "black"
    budget_ms: float | None = None
    incremental: bool = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"window: got {self.window}, expected 1 pixel or more")
        if not 1 <= self.stride <= self.window:
            raise UsageError(
                f"stride: got {self.stride}, expected 1 to the window's {self.window} pixels, or "
                "parts of the image would never be hidden"
            )
        if self.baseline not in BASELINES:
            raise UsageError(
                f"baseline: got {self.baseline!r}, expected one of {', '.join(BASELINES)}"
            )
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise UsageError(f"budget: got {self.budget_ms / 1000:g} s, expected more than 0")

    @property
    def first_spacing(self) -> int:
        """Windows from one of a first pass to the next: the widest power of two without gaps."""
        return 1 << (self.window // self.stride).bit_length() - 1


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows lie.

    Attributes:
        rows: Rows of the windows of each row of windows.
        columns: Columns of the windows of each column of windows.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @classmethod
    def over(cls, height: int, width: int, settings: OcclusionSettings) -> WindowGrid:
        """The windows over an input of this size.

        Raises:
            UsageError: A window is larger than the input.
        """
        if settings.window > min(height, width):
            raise UsageError(
                f"window: got {settings.window}, the network sees images of {height} x {width} "
                "pixels: choose a smaller one"
            )
        rows, columns = (_spans(length, settings) for length in (height, width))
        return cls(rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return len(self.rows), len(self.columns)

    @property
    def boxes(self) -> list[Box]:
        """All windows, row by row."""
        return [(rows, columns) for rows in self.rows for columns in self.columns]

    def spread(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Bring values of windows to pixels: the mean over the windows that hide a pixel.

        Args:
            values: One for each window, of `shape`.

        Returns:
            Of the shape of the network's input.
        """
        down, across = (_cover(spans) for spans in (self.rows, self.columns))
        total = down @ values.astype(np.float64) @ across.T
        mean: NDArray[np.float64] = total / np.outer(down.sum(axis=1), across.sum(axis=1))
        return mean.astype(np.float32)

    def union(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pixels that lie in any of the chosen windows; `chosen` is of `shape`."""
        down, across = (_cover(spans) for spans in (self.rows, self.columns))
        inside: NDArray[np.bool_] = down @ chosen.astype(np.float64) @ across.T > 0
        return inside


def _spans(length: int, settings: OcclusionSettings) -> tuple[Span, ...]:
    beyond = -(-(length - settings.window) // settings.stride)
    starts = [index * settings.stride for index in range(beyond + 1)]
    return tuple((start, min(start + settings.window, length)) for start in starts)


def _cover(spans: Sequence[Span]) -> NDArray[np.float64]:
    """Which pixels (rows) lie in which windows (columns), 0 or 1."""
    cover = np.zeros((spans[-1][1], len(spans)))
    for column, (first, last) in enumerate(spans):
        cover[first:last, column] = 1.0
    return cover


def occluded(image: NDArray[np.uint8], settings: OcclusionSettings) -> NDArray[np.uint8]:
    """What windows show of an image of shape (height, width) when all of it is hidden."""
    if settings.baseline == "blurred":
        blurred: NDArray[Any] = cv2.GaussianBlur(image, (0, 0), settings.window / 2)
        return blurred
    grey = 0 if settings.baseline == "black" else round(float(image.mean()))
    return np.full_like(image, grey)
