"""Coarse to fine: evaluate few windows first, then more where the network looked.

A first pass evaluates every window of a coarse grid, wide enough apart to cover the image once.
What lies between is interpolated; the halves between neighbours are evaluated next, the strongest
first, and so on down to the finest grid. It asks nothing of the network but logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.heatmaps.windows import OcclusionSettings

_Rows: TypeAlias = tuple[tuple[float, float, float], ...]
EXPECTED: dict[str, _Rows] = {
    "black": (
        (0.0784, 0.98, 0.944),
        (0.2, 0.991, 0.981),
        (0.4, 0.995, 0.99),
        (0.6, 0.997, 0.994),
        (0.8, 0.999, 0.998),
    ),
    "mean": (
        (0.0784, 0.944, 0.894),
        (0.2, 0.977, 0.953),
        (0.4, 0.991, 0.984),
        (0.6, 0.994, 0.99),
        (0.8, 0.998, 0.996),
    ),
    "blurred": (
        (0.0784, 0.918, 0.865),
        (0.2, 0.969, 0.938),
        (0.4, 0.986, 0.98),
        (0.6, 0.993, 0.988),
        (0.8, 0.997, 0.995),
    ),
}
"""Baseline -> share of the windows evaluated, rank correlation with the whole map: median over
images, and what a tenth of them falls below; rounded down. Measured by
benchmarks/heatmaps/budget.py with SqueezeNet on images of val."""
_MEASURED = OcclusionSettings()
_ROUNDING = 1e-4


def expected_agreement(share: float, settings: OcclusionSettings) -> tuple[float, float] | None:
    """How far a map is likely to agree with the whole one when only a part was evaluated.

    Args:
        share: Share of evaluated windows, 0 to 1.
        settings: The windows.

    Returns:
        Rank correlation, median over images and what a tenth of them falls below, at the largest
        share measured that is not above this one; None where such windows were not measured.
    """
    if (settings.window, settings.stride) != (_MEASURED.window, _MEASURED.stride):
        return None
    reached = [row for row in EXPECTED[settings.baseline] if row[0] <= share + _ROUNDING]
    return reached[-1][1:] if reached else None


class Refinement:
    """The windows of one image that were evaluated so far, and an estimate of all others.

    Attributes:
        before: Logits of the whole image.
        evaluated: Which windows were evaluated, of `shape`.

    Args:
        shape: Rows and columns of windows.
        spacing: Windows from one of the first pass to the next, a power of two.
        before: Logits of the whole image, of shape (classes,).
        index: The class whose drop says where the network looked.
    """

    def __init__(
        self, shape: tuple[int, int], spacing: int, before: NDArray[np.float32], index: int
    ) -> None:
        self.evaluated = np.zeros(shape, bool)
        self._logits = np.zeros((*shape, len(before)))
        self.before, self._index = before, index
        spacings = [spacing >> halvings for halvings in range(spacing.bit_length())]
        self._levels = [tuple(_every(apart, length) for length in shape) for apart in spacings]
        level = np.zeros(shape, int)
        for number in reversed(range(len(spacings))):
            level[np.ix_(*self._levels[number])] = number
        self._level = level.ravel()

    def first_pass(self) -> list[int]:
        """The coarse windows, by their numbers row by row."""
        rows, columns = self._levels[0]
        numbers: list[int] = (rows[:, None] * self.evaluated.shape[1] + columns).ravel().tolist()
        return numbers

    def next(self) -> list[int]:
        """All windows left: coarser ones first, and of these the ones that matter most."""
        drop = (self.before[self._index] - self.estimate()[..., self._index]).ravel()
        left = np.flatnonzero(~self.evaluated.ravel())
        windows: list[int] = left[np.lexsort((-drop[left], self._level[left]))].tolist()
        return windows

    def add(self, windows: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Take the logits of evaluated windows, of shape (windows, classes)."""
        places = np.unravel_index(np.asarray(windows, int), self.evaluated.shape)
        self._logits[places] = logits
        self.evaluated[places] = True

    def estimate(self) -> NDArray[np.float64]:
        """Logits of every window, of shape (rows, columns, classes)."""
        rows, columns = self._levels[0]
        values = self._logits[np.ix_(rows, columns)]
        for finer in self._levels[1:]:
            down, across = _between(rows, finer[0]), _between(columns, finer[1])
            values = np.einsum("ij,jkc,lk->ilc", down, values, across)
            rows, columns = finer
            known = self.evaluated[np.ix_(rows, columns)]
            values[known] = self._logits[np.ix_(rows, columns)][known]
        return values


def _every(spacing: int, length: int) -> NDArray[np.int_]:
    """Every nth position, and the last."""
    return np.unique([*range(0, length, spacing), length - 1])


def _between(coarse: NDArray[np.int_], fine: NDArray[np.int_]) -> NDArray[np.float64]:
    """Linear interpolation from coarse positions to fine ones, as a matrix."""
    return np.stack([np.interp(fine, coarse, unit) for unit in np.eye(len(coarse))], axis=1)
