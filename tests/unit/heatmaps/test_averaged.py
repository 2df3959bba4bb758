"""Averaged activation maps: copies lie half a cell away, their maps are moved back."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.heatmaps.averaged import moved_inputs, of_averaged
from deepcovid_edge.heatmaps.heatmap import AVERAGED, of_activation
from deepcovid_edge.manifest import InputSpec

SPEC = InputSpec(96, 128)
CELLS = (6, 8)
"""Cells of 16 x 16 pixels."""


def spot(row: float, column: float) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:96, 0:128]
    away = (rows - row) ** 2 + (columns - column) ** 2
    grey: NDArray[np.uint8] = (255 * np.exp(-away / 50)).astype(np.uint8)
    return grey


def class_map(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a network might give: the mean of each cell."""
    tiles = image.reshape(CELLS[0], 16, CELLS[1], 16)
    means: NDArray[np.float32] = tiles.mean(axis=(1, 3), dtype=np.float32)
    return means


def averaged(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    others = moved_inputs(image, CELLS)
    return of_averaged(np.stack([class_map(one) for one in (image, *others)]), SPEC).values


def peak_error(values: NDArray[np.float32], row: int, column: int) -> float:
    found = np.unravel_index(int(values.argmax()), values.shape)
    return math.hypot(found[0] - row, found[1] - column)


def test_inputs_lie_half_a_cell_away_with_their_border_repeated() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 128), dtype=np.uint8)
    up, down, left, right = moved_inputs(image, CELLS)
    np.testing.assert_array_equal(up[:-8], image[8:])
    np.testing.assert_array_equal(down[8:], image[:-8])
    np.testing.assert_array_equal(left[:, :-8], image[:, 8:])
    np.testing.assert_array_equal(right[:, 8:], image[:, :-8])
    assert (down[:8] == image[0]).all()
    assert (left[:, -8:] == image[:, -1:]).all()


def test_maps_of_an_even_image_change_nothing() -> None:
    maps = np.full((5, *CELLS), 0.5, np.float32)
    found = of_averaged(maps, SPEC)
    assert found.method == AVERAGED
    assert found.cells is maps
    assert found.values.shape == (96, 128)
    assert found.values.dtype == np.float32
    assert (found.values == 0.5).all()


def test_a_map_is_moved_back_by_as_much_as_its_copy_was_moved() -> None:
    """Each map alone: its peak comes out where it was seen, less the way of its copy."""
    for place, (down, right) in enumerate(((0, 0), (-8, 0), (8, 0), (0, -8), (0, 8))):
        maps = np.zeros((5, *CELLS), np.float32)
        maps[place, 3, 4] = 1
        values = of_averaged(maps, SPEC).values
        alone = of_activation(maps[place], SPEC).values / 5
        back = np.roll(alone, (-down, -right), (0, 1))
        np.testing.assert_allclose(values[8:-8, 8:-8], back[8:-8, 8:-8], atol=1e-6)


def test_the_peak_lies_nearer_to_what_is_seen_than_that_of_one_map() -> None:
    places = [(row, column) for row in range(36, 60, 3) for column in range(50, 78, 3)]
    single, mean = (
        [peak_error(make(spot(*place)), *place) for place in places]
        for make in (lambda image: of_activation(class_map(image), SPEC).values, averaged)
    )
    assert np.mean(mean) < 0.6 * np.mean(single)
    assert max(mean) < max(single)
