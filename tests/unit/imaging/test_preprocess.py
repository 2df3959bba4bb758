"""Image to network input: geometry of the three rules, depth, and the published order of steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from deepcovid_edge.imaging.prepare import filled_field, on_image, prepare, visible_field
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec, ResizeRule

RULES = list(ResizeRule)
quick = settings(max_examples=60)


def image_of(pixels: NDArray[Any], white: int | None = None) -> Radiograph:
    full = int(np.iinfo(pixels.dtype).max) if white is None else white
    return Radiograph(pixels, full, "0" * 64, "PNG")


def waves(height: int, width: int) -> NDArray[np.uint8]:
    """An image whose finest detail outlives the reduction: half a period is 1/12 of the side."""
    y, x = np.mgrid[0:height, 0:width]
    bright = np.sin(12 * np.pi * x / width + 1) + np.cos(10 * np.pi * y / height) + x / width
    grey: NDArray[np.uint8] = np.rint((bright - bright.min()) / np.ptp(bright) * 255).astype(
        np.uint8
    )
    return grey


# --- shape and range ---------------------------------------------------------------------------


@quick
@given(
    rows=st.integers(100, 700),
    columns=st.integers(100, 700),
    height=st.integers(32, 300),
    width=st.integers(32, 300),
    rule=st.sampled_from(RULES),
    deep=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_image_becomes_the_networks_shape_within_its_own_range(
    rows: int, columns: int, height: int, width: int, rule: ResizeRule, deep: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    low, high = (40, 200) if not deep else (40 * 257, 200 * 257)
    pixels = draw.integers(low, high, (rows, columns)).astype(np.uint16 if deep else np.uint8)
    prepared = prepare(image_of(pixels), InputSpec(height, width, rule))
    assert prepared.shape == (height, width)
    assert prepared.dtype == np.uint8
    assert prepared.flags.c_contiguous
    assert prepared.max() <= 200
    drawn = prepared if rule is not ResizeRule.LETTERBOX else prepared[prepared > 0]
    assert drawn.min() >= 39


@quick
@given(
    rows=st.integers(100, 400),
    columns=st.integers(100, 400),
    level=st.integers(0, 255),
    rule=st.sampled_from([ResizeRule.CENTRE_CROP, ResizeRule.SQUASH]),
)
def test_level_of_an_even_image_is_kept(
    rows: int, columns: int, level: int, rule: ResizeRule
) -> None:
    prepared = prepare(image_of(np.full((rows, columns), level, np.uint8)), InputSpec(resize=rule))
    assert (prepared == level).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", [100, 101, 223])
def test_small_image_is_enlarged_and_shows_the_same(rule: ResizeRule, side: int) -> None:
    pixels = waves(side, side)
    prepared = prepare(image_of(pixels), InputSpec(resize=rule))
    assert prepared.shape == (224, 224)
    y, x = (np.indices((224, 224)) + 0.5) * side / 224 - 0.5
    where = (x.astype(np.float32), y.astype(np.float32))
    even: NDArray[Any] = cv2.remap(
        pixels, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    # INTER_AREA enlarges by areas, at most half a pixel of the image from linear interpolation.
    steepest = max(np.abs(np.diff(pixels.astype(int), axis=axis)).max() for axis in (0, 1))
    difference = np.abs(prepared - even.astype(int))
    assert difference.max() <= steepest
    assert difference.mean() <= 0.25 * steepest


@pytest.mark.parametrize("rule", RULES)
def test_image_of_the_networks_shape_is_passed_on_unchanged(rule: ResizeRule) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224)).astype(np.uint8)
    assert np.array_equal(prepare(image_of(pixels), InputSpec(resize=rule)), pixels)


@pytest.mark.parametrize("rule", RULES)
def test_image_itself_is_left_as_it_was(rule: ResizeRule) -> None:
    for pixels in (waves(300, 240), waves(300, 240).astype(np.uint16) * 257):
        kept = pixels.copy()
        pixels.flags.writeable = False  # as Pillow's pixels are
        prepare(image_of(pixels), InputSpec(resize=rule))
        assert np.array_equal(pixels, kept)


# --- centre crop -------------------------------------------------------------------------------


def resized_then_cropped(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The published order: shorter side to the network's size, then the centre."""
    rows, columns = pixels.shape
    scale = max(height / rows, width / columns)
    size = (round(columns * scale), round(rows * scale))
    resized: NDArray[Any] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return resized[top : top + height, left : left + width]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(448, 448), (1024, 831), (831, 1024), (900, 1800), (1800, 900), (601, 433), (225, 224)],
)
def test_centre_crop_is_the_published_resize_then_crop(rows: int, columns: int) -> None:
    pixels = waves(rows, columns)
    prepared = prepare(image_of(pixels), InputSpec()).astype(int)
    reference = resized_then_cropped(pixels, 224, 224).astype(int)
    difference = np.abs(prepared - reference)
    # Up to half a network pixel of shift, where the crop's edge is rounded.
    steepest = max(np.abs(np.diff(reference, axis=axis)).max() for axis in (0, 1))
    assert difference.max() <= 0.5 * steepest + 1.5
    assert difference.mean() <= 0.25 * steepest + 0.5


@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 192), (192, 256)])
@pytest.mark.parametrize(("rows", "columns"), [(800, 500), (500, 800), (640, 640)])
def test_centre_crop_keeps_the_centre_and_the_aspect(
    rows: int, columns: int, height: int, width: int
) -> None:
    pixels = np.zeros((rows, columns), np.uint8)
    cv2.circle(pixels, (columns // 2, rows // 2), 100, 255, thickness=-1)
    prepared = prepare(image_of(pixels), InputSpec(height, width, ResizeRule.CENTRE_CROP))
    y, x = np.nonzero(prepared > 127)
    assert abs((y.min() + y.max()) / 2 - (height - 1) / 2) <= 1
    assert abs((x.min() + x.max()) / 2 - (width - 1) / 2) <= 1
    scale = max(height / rows, width / columns)
    assert np.ptp(y) + 1 == pytest.approx(201 * scale, abs=1.5)
    assert np.ptp(x) + 1 == pytest.approx(201 * scale, abs=1.5)


@pytest.mark.parametrize(("rows", "columns"), [(500, 800), (800, 500)])
def test_centre_crop_cuts_equal_margins_off_the_longer_side(rows: int, columns: int) -> None:
    pixels = np.full((rows, columns), 100, np.uint8)
    longer = 1 if columns > rows else 0
    edges = [(slice(None), slice(0, 149)), (slice(None), slice(651, 800))]
    for edge in edges:  # 150 pixels a side fall away: no trace of them remains
        pixels[edge if longer else edge[::-1]] = 255
    prepared = prepare(image_of(pixels), InputSpec())
    assert (prepared == 100).all()


# --- squash and letterbox ----------------------------------------------------------------------


def test_squash_takes_the_whole_image_to_the_shape() -> None:
    pixels = waves(700, 430)
    prepared = prepare(image_of(pixels), InputSpec(224, 160, ResizeRule.SQUASH))
    assert np.array_equal(prepared, cv2.resize(pixels, (160, 224), interpolation=cv2.INTER_AREA))
    blocks = waves(448, 672)
    means = blocks.reshape(224, 2, 224, 3).mean(
        axis=(1, 3)
    )  # area: the mean of what a pixel covers
    squashed = prepare(image_of(blocks), InputSpec(resize=ResizeRule.SQUASH))
    assert np.abs(squashed - means).max() <= 0.51


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [(800, 500, 224, 224), (500, 800, 224, 224), (431, 617, 224, 192), (200, 100, 32, 224)],
)
def test_letterbox_keeps_the_aspect_between_equal_black_bars(
    rows: int, columns: int, height: int, width: int
) -> None:
    pixels = np.maximum(waves(rows, columns), 60)
    prepared = prepare(image_of(pixels), InputSpec(height, width, ResizeRule.LETTERBOX))
    y, x = np.nonzero(prepared)
    inner_height, inner_width = int(np.ptp(y)) + 1, int(np.ptp(x)) + 1
    scale = min(height / rows, width / columns)
    assert abs(inner_height - rows * scale) <= 0.5
    assert abs(inner_width - columns * scale) <= 0.5
    assert inner_height == height or inner_width == width
    assert abs(y.min() - (height - 1 - y.max())) <= 1
    assert abs(x.min() - (width - 1 - x.max())) <= 1
    inner = prepared[y.min() : y.max() + 1, x.min() : x.max() + 1]
    whole = cv2.resize(pixels, (inner_width, inner_height), interpolation=cv2.INTER_AREA)
    assert np.array_equal(inner, whole)
    assert int(prepared.astype(int).sum()) == int(inner.astype(int).sum())


# --- depth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
def test_deep_levels_are_scaled_to_8_bits_and_rounded(bits: int) -> None:
    white = (1 << bits) - 1
    levels = np.linspace(0, white, 224 * 224).round().astype(np.uint16).reshape(224, 224)
    prepared = prepare(image_of(levels, white), InputSpec())
    assert np.abs(prepared - levels * (255.0 / white)).max() <= 0.501
    assert (prepared.min(), prepared.max()) == (0, 255)


def test_levels_above_white_saturate_and_do_not_wrap() -> None:
    pixels = np.full((224, 224), 4096, np.uint16)
    pixels[:100] = 65535
    pixels[100:120] = 4095
    assert (prepare(image_of(pixels, 4095), InputSpec()) == 255).all()


@pytest.mark.parametrize("rule", RULES)
def test_an_image_gives_the_same_input_at_8_12_and_16_bits(rule: ResizeRule) -> None:
    shallow = waves(601, 433)
    spec = InputSpec(resize=rule)
    expected = prepare(image_of(shallow), spec).astype(int)
    deep = prepare(image_of(shallow.astype(np.uint16) * 257), spec)
    twelve = prepare(image_of((shallow * (4095 / 255)).round().astype(np.uint16), 4095), spec)
    assert np.abs(deep - expected).max() <= 1
    assert np.abs(twelve - expected).max() <= 1


# --- back on the image --------------------------------------------------------------------------


def lit_span(lit: ArrayLike) -> tuple[int, int]:
    where = np.flatnonzero(lit)
    return int(where[0]), int(where[-1]) + 1


@quick
@given(
    rows=st.integers(100, 700),
    columns=st.integers(100, 700),
    height=st.integers(32, 300),
    width=st.integers(32, 300),
    rule=st.sampled_from(RULES),
    place=st.tuples(*(st.floats(0, 0.75) for _ in range(2)), *(st.floats(0.1, 0.5) for _ in "ab")),
)
def test_bright_block_is_found_back_where_it_was_marked_on_the_image(
    rows: int,
    columns: int,
    height: int,
    width: int,
    rule: ResizeRule,
    place: tuple[float, float, float, float],
) -> None:
    spec = InputSpec(height, width, rule)
    seen, filled = visible_field((rows, columns), spec), filled_field((rows, columns), spec)
    marked = []
    for field, start, length in zip(seen, place[:2], place[2:], strict=True):
        size = field.stop - field.start
        first = field.start + int(start * size)
        marked.append(slice(first, min(first + max(1, int(length * size)), field.stop)))
    pixels = np.zeros((rows, columns), np.uint8)
    pixels[tuple(marked)] = 255
    lit = prepare(image_of(pixels), spec) > 0
    assume(lit.any())  # else the block is thinner than what one grey level shows
    box = lit_span(lit.any(axis=1)), lit_span(lit.any(axis=0))
    for axis, found in enumerate(on_image(box, (rows, columns), spec)):
        size = filled[axis].stop - filled[axis].start
        pixel = (seen[axis].stop - seen[axis].start) / size
        # A pixel of the network's input that shows any of the block is in the box: it reaches up
        # to one such pixel beyond the block, and where it falls short no grey level was left.
        slack = pixel + 1 if pixel >= 1 else 2 * pixel + 1
        exact = marked[axis]
        assert abs(found[0] - exact.start) <= slack
        assert abs(found[1] - exact.stop) <= slack
        assert 0 <= found[0] < found[1] <= (rows, columns)[axis]


@quick
@given(
    rows=st.integers(100, 4000),
    columns=st.integers(100, 4000),
    height=st.integers(32, 300),
    width=st.integers(32, 300),
    rule=st.sampled_from(RULES),
)
def test_whole_input_lies_on_all_that_the_network_sees(
    rows: int, columns: int, height: int, width: int, rule: ResizeRule
) -> None:
    spec = InputSpec(height, width, rule)
    seen, filled = visible_field((rows, columns), spec), filled_field((rows, columns), spec)
    expected = tuple((part.start, part.stop) for part in seen)
    down, across = ((part.start, part.stop) for part in filled)
    assert on_image((down, across), (rows, columns), spec) == expected
    assert on_image(((0, height), (0, width)), (rows, columns), spec) == expected


@pytest.mark.parametrize("rule", RULES)
def test_boxes_side_by_side_leave_no_gap_on_the_image(rule: ResizeRule) -> None:
    shape, spec = (613, 694), InputSpec(resize=rule)
    spans = [on_image(((n, n + 1), (n, n + 1)), shape, spec) for n in range(224)]
    for axis in (0, 1):
        for before, after in pairwise(span[axis] for span in spans):
            assert before[0] <= after[0] <= before[1] <= after[1]


def test_box_in_a_letterbox_border_lies_on_the_images_edge() -> None:
    spec = InputSpec(resize=ResizeRule.LETTERBOX)  # a wide image fills rows 56 to 168
    assert on_image(((0, 40), (0, 224)), (400, 800), spec) == ((0, 1), (0, 800))
    assert on_image(((180, 224), (0, 112)), (400, 800), spec) == ((399, 400), (0, 400))
