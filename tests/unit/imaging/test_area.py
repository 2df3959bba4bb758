"""Reduction by areas: against OpenCV's, against exact sums, and in any size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.resize import reduce_area
from deepcovid_edge.manifest import InputSpec


def drawn(rows: int, columns: int, seed: int = 0, *, deep: bool = False) -> NDArray[Any]:
    draw = np.random.default_rng(seed)
    if deep:
        return draw.integers(0, 1 << 16, (rows, columns)).astype(np.uint16)
    return draw.integers(0, 256, (rows, columns)).astype(np.uint8)


@settings(max_examples=80)
@given(
    size=st.tuples(st.integers(1, 1200), st.integers(1, 1200)),
    smaller=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    deep=st.booleans(),
)
def test_it_is_opencvs_area_before_rounding(
    size: tuple[int, int], smaller: tuple[float, float], deep: bool
) -> None:
    pixels = drawn(*size, deep=deep)
    height, width = (max(1, int(side * part)) for side, part in zip(size, smaller, strict=True))
    means = reduce_area(pixels, (height, width))
    expected = cv2.resize(
        pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    ).reshape(height, width)
    assert means.dtype == np.float32
    # OpenCV leaves out shares below a thousandth of a pixel, at either end of each area.
    assert np.abs(means - expected).max() <= 4e-3 * np.iinfo(pixels.dtype).max


@pytest.mark.parametrize(("side", "small"), [(7, 3), (10, 4), (29, 7), (5, 5), (9, 1)])
def test_a_pixel_is_the_mean_of_what_it_covers(side: int, small: int) -> None:
    pixels = drawn(side, side, seed=small)
    scale = Fraction(side, small)
    shares = [
        [
            max(Fraction(0), min((i + 1) * scale, Fraction(j + 1)) - max(i * scale, Fraction(j)))
            / scale
            for j in range(side)
        ]
        for i in range(small)
    ]
    expected = [
        [
            sum(
                down * across * int(pixels[row, column])
                for row, down in enumerate(shares[i])
                for column, across in enumerate(shares[j])
                if down and across
            )
            for j in range(small)
        ]
        for i in range(small)
    ]
    means = reduce_area(pixels, (small, small))
    assert means == pytest.approx(np.array(expected, dtype=float), abs=1e-4)


@pytest.mark.parametrize(
    "shape", [(768, 768), (649, 768), (1023, 997), (2140, 1760), (3000, 2500), (6001, 5003)]
)
def test_a_prepared_image_is_opencvs_but_for_means_between_two_levels(
    shape: tuple[int, int],
) -> None:
    pixels = cv2.GaussianBlur(drawn(*shape), (0, 0), 2).astype(np.uint8)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    crop = pixels[top : top + side, left : left + side]
    expected = cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA).astype(int)
    prepared = prepare(Radiograph(pixels, 255, "0" * 64, "PNG"), InputSpec())
    differs = np.abs(prepared - expected)
    assert differs.max() <= 1
    assert np.mean(differs > 0) <= 1e-3
    between = reduce_area(crop, (224, 224))[differs > 0]
    assert np.abs(between - np.floor(between) - 0.5) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shape", [(768, 649), (1023, 997), (2140, 1760)])
@pytest.mark.parametrize("deep", [False, True])
def test_sums_in_another_order_move_only_means_that_lie_between_two_levels(
    shape: tuple[int, int], deep: bool
) -> None:
    """What another processor's products may do: its order of sums is its own."""
    pixels = drawn(*shape, deep=deep)
    white = np.iinfo(pixels.dtype).max
    small = (round(shape[0] * 224 / min(shape)), round(shape[1] * 224 / min(shape)))
    means = reduce_area(pixels, small)
    turned = np.ascontiguousarray(pixels[::-1, ::-1])
    other = reduce_area(turned, small)[::-1, ::-1]
    assert np.abs(means - other).max() <= 1e-6 * white
    differs = np.abs(np.rint(means) - np.rint(other))
    assert differs.max() <= 1
    between = means[differs > 0]
    assert np.abs(between - np.floor(between) - 0.5).max(initial=0) <= 1e-6 * white


def test_a_part_of_an_image_is_reduced_as_its_copy() -> None:
    image = drawn(900, 800)
    part = image[50:750, 30:790]
    assert not part.flags.c_contiguous
    assert np.array_equal(reduce_area(part, (224, 224)), reduce_area(part.copy(), (224, 224)))


@pytest.mark.parametrize("level", [0, 1, 200, 4095, 65535])
def test_level_of_an_even_image_is_kept(level: int) -> None:
    even = np.full((1111, 777), level, np.uint16)
    np.testing.assert_allclose(reduce_area(even, (224, 224)), level, rtol=1e-6, atol=1e-12)
