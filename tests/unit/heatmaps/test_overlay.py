"""The picture of a heat map: its parts are where they belong and say what they must."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, OCCLUSION, HeatMap, Region, regions
from deepcovid_edge.heatmaps.overlay import (
    PANEL_HEIGHT,
    UNITS,
    Layout,
    caption,
    draw_overlay,
    encode_overlay,
)
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import IndeterminateRange, InputSpec, ResizeRule
from deepcovid_edge.reasons import NOTICE, Reason

SPEC = InputSpec()
RUN = RunFacts("squeezenet1_1", "0" * 64, "onnxruntime-cpu", "int8", ("non", "covid"), "covid", 0.2)
GREY = 16
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def record(probability: float = 0.75, path: str = "images/lung.png", **more: Any) -> Prediction:
    chances = {"non": 1 - probability, "covid": probability}
    return Prediction(path, RUN, probabilities=chances, **more)


def image(
    rows: int = 448, columns: int = 448, *, white: int = 255, level: float = 0.5
) -> Radiograph:
    kind = np.uint8 if white == 255 else np.uint16
    return Radiograph(np.full((rows, columns), round(level * white), kind), white, "0" * 64, "PNG")


def heat(level: float = 0.0, method: str = OCCLUSION, **more: Any) -> HeatMap:
    values = np.full((224, 224), level, np.float32)
    return HeatMap(method, values, values[::8, ::8], **more)


def spot(peak: float = 2.0, low: float = -1.0) -> HeatMap:
    """Rises to `peak` in a block, falls to `low` in another, zero elsewhere."""
    found = heat()
    found.values[40:80, 60:120] = peak
    found.values[160:200, 20:60] = low
    return found


def drawn(
    radiograph: Radiograph, found: HeatMap, places: tuple[Region, ...] = (), **more: Any
) -> tuple[NDArray[np.uint8], Layout, list[NDArray[np.uint8]]]:
    """The picture, its layout, and its panels without the tag row."""
    spec, said = more.get("spec", SPEC), more.get("said", record())
    picture = draw_overlay(radiograph, spec, found, places, said)
    shape = radiograph.pixels.shape
    layout = Layout.of(shape, spec, len(caption(shape, spec, found, places, said)))
    rows = layout.bar[0]
    panels = [picture[rows, left : left + layout.width] for left in layout.panels]
    return picture, layout, panels


def lightness(colours: NDArray[Any]) -> NDArray[np.float32]:
    """CIE L* of sRGB colours of shape (N, 3), 0 to 100."""
    lab: NDArray[Any] = cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)
    return lab[0, :, 0]


# --- colours and scale -------------------------------------------------------------------------


def test_lightness_of_the_scale_rises_evenly_from_against_to_for() -> None:
    picture, layout, _ = drawn(image(), spot())
    column = picture[layout.bar[0], layout.bar[1].start + 5][::-1]
    light = lightness(column)
    assert np.diff(light).min() > -0.05  # one grey level of a colour is more
    steps = np.diff(light[:: PANEL_HEIGHT // 16])
    assert np.abs(steps / steps.mean() - 1).max() < 0.35  # the darkest sixteenth is the steepest
    grey = cv2.cvtColor(column[None], cv2.COLOR_RGB2GRAY)[0].astype(int)  # as a printer has it
    assert np.diff(grey).min() >= -1
    assert len(np.unique(grey)) > 180


def test_zero_is_a_grey_without_colour_in_the_middle_of_the_scale() -> None:
    picture, layout, panels = drawn(image(), spot(peak=7.0, low=-0.5))
    middle = picture[layout.bar[0].start + PANEL_HEIGHT // 2, layout.bar[1].start].astype(int)
    assert np.ptp(middle) <= 6
    zero = panels[1][PANEL_HEIGHT // 2, 5].astype(int)
    assert np.abs(zero - middle).max() <= 2


def test_what_spoke_for_is_bright_and_yellow_and_what_spoke_against_dark_and_blue() -> None:
    _, _, panels = drawn(image(), spot(peak=2.0, low=-2.0))
    bright = panels[1][round(60 / 224 * 512), round(90 / 224 * 512)].astype(int)
    dark = panels[1][round(180 / 224 * 512), round(40 / 224 * 512)].astype(int)
    assert bright[0] > bright[2] + 100
    assert dark[2] > dark[0] + 50
    light = lightness(np.array([dark, panels[1][256, 500], bright]))
    assert light[0] + 20 < light[1] < light[2] - 20


def test_ends_of_the_scale_are_the_farthest_value_on_both_sides() -> None:
    picture, layout, panels = drawn(image(), spot(peak=2.0, low=-1.0))
    rows, columns = layout.bar
    highest = panels[1][round(60 / 224 * 512), round(90 / 224 * 512)]
    assert np.array_equal(picture[rows.start, columns.start], highest)
    half = panels[1][round(180 / 224 * 512), round(40 / 224 * 512)].astype(int)
    assert np.abs(picture[rows.start + 384, columns.start].astype(int) - half).max() <= 3


def test_scale_has_five_ticks_with_numbers_beside_them() -> None:
    picture, layout, _ = drawn(image(), spot())
    rows, columns = layout.bar
    for y in (0, 128, 256, 383, 511):
        line = rows.start + y
        assert (picture[line, columns.stop + 1] == 255).all()
        label = picture[max(line - 14, 0) : line + 15, columns.stop + 8 : columns.stop + 44]
        assert (label > 200).any()


@pytest.mark.parametrize("method", [OCCLUSION, ACTIVATION])
def test_unit_of_the_scale_differs_by_method(method: str) -> None:
    assert UNITS == {OCCLUSION: "drop of the logit when hidden", ACTIVATION: "class activation"}
    mine, layout, _ = drawn(image(), heat(1.0, method))
    other, _, _ = drawn(image(), heat(1.0, ACTIVATION if method == OCCLUSION else OCCLUSION))
    beside = layout.bar[0], slice(layout.bar[1].stop + 70, layout.bar[1].stop + 100)
    assert (mine[beside] > 200).any()
    assert not np.array_equal(mine[beside], other[beside])


def test_map_of_zeros_is_grey_and_has_a_scale() -> None:
    _, _, panels = drawn(image(), heat(0.0))
    assert np.ptp(panels[1].reshape(-1, 3), axis=0).max() == 0
    assert np.array_equal(panels[2], panels[0])


def test_map_that_holds_what_is_no_number_is_refused() -> None:
    for broken in (np.nan, np.inf):
        found = heat()
        found.values[3, 4] = broken
        with pytest.raises(NotAssessedError) as refused:
            drawn(image(), found)
        assert refused.value.reason is Reason.RESULT


# --- panels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_image_is_shown_in_its_own_grey_at_any_depth(white: int) -> None:
    _, _, panels = drawn(image(white=white, level=0.6), spot())
    assert np.abs(panels[0].astype(int) - 153).max() <= 1


def test_overlay_is_the_image_where_the_map_is_zero_and_follows_the_map_elsewhere() -> None:
    found = heat()
    found.values[:] = np.linspace(0, 1, 224, dtype=np.float32)
    _, _, panels = drawn(image(level=0.2), found)
    assert np.array_equal(panels[2][:, 0], panels[0][:, 0])
    away = np.abs(panels[2].astype(int) - panels[0]).sum(axis=2)[256]
    assert (np.diff(away) >= -2).all()
    assert away[-1] > 200
    assert np.abs(panels[1][256, -1].astype(int) - panels[2][256, -1]).max() > 20  # image is left


@pytest.mark.parametrize(
    ("rows", "columns"), [(600, 600), (800, 400), (400, 800), (100, 130), (3000, 2500)]
)
@pytest.mark.parametrize("rule", list(ResizeRule))
def test_panels_have_one_height_and_the_image_keeps_its_aspect(
    rows: int, columns: int, rule: ResizeRule
) -> None:
    picture, layout, panels = drawn(image(rows, columns), spot(), spec=InputSpec(resize=rule))
    assert picture.dtype == np.uint8
    assert picture.shape == (*layout.size, 3)
    assert {panel.shape[:2] for panel in panels} == {(PANEL_HEIGHT, layout.width)}
    height, width = (part.stop - part.start for part in layout.image)
    assert width / height == pytest.approx(columns / rows, rel=0.01)
    assert height == PANEL_HEIGHT or width == layout.width
    lit = panels[0].max(axis=2) > 20
    assert lit[layout.seen].all()
    lit[layout.image] = False
    assert not lit.any()


@pytest.mark.parametrize(("rows", "columns"), [(400, 800), (800, 400)])
def test_what_a_centre_crop_cuts_off_is_dimmed_and_hatched_on_every_panel(
    rows: int, columns: int
) -> None:
    found = heat(1.0)
    _, layout, panels = drawn(image(rows, columns, level=0.8), found)
    inside = np.zeros(panels[0].shape[:2], bool)
    inside[layout.image] = True
    inside[layout.seen] = False
    assert inside.sum() > 0.3 * inside.size * 0.5
    for panel in panels:
        cut = panel[inside].astype(int)
        assert np.ptp(cut, axis=1).max() == 0  # no colour of the map
        assert cut.max() < 0.5 * 0.8 * 255
        assert len(np.unique(cut)) == 2  # dimmed image, and lines over it
    assert (panels[0][layout.seen] == 204).all()
    assert any("Hatched" in line for line in caption((rows, columns), SPEC, found, (), record()))


@pytest.mark.parametrize("rule", [ResizeRule.SQUASH, ResizeRule.LETTERBOX])
def test_nothing_is_dimmed_where_the_network_sees_all(rule: ResizeRule) -> None:
    spec = InputSpec(resize=rule)
    _, layout, panels = drawn(image(400, 700), heat(1.0), spec=spec)
    assert layout.seen == layout.image
    assert (panels[0][layout.image] == 128).all()
    assert not any("Hatched" in line for line in caption((400, 700), spec, heat(), (), record()))


def test_border_that_a_letterbox_adds_is_not_shown_on_the_image() -> None:
    found = heat(0.5)
    found.values[:56] = found.values[-56:] = 9.0  # a wide image fills the middle half
    spec = InputSpec(resize=ResizeRule.LETTERBOX)
    picture, layout, panels = drawn(image(400, 800), found, spec=spec)
    shown = panels[1][layout.image].reshape(-1, 3)
    assert (shown == picture[layout.bar[0].start, layout.bar[1].start]).all()  # 0.5 is its farthest


# --- regions -----------------------------------------------------------------------------------


def framed(panel: NDArray[np.uint8], box: tuple[int, int, int, int]) -> bool:
    """Whether white lines between black ones run along the box, below its tag."""
    left, top, right, bottom = box
    y, x = (top + bottom) // 2, (left + right) // 2
    lines = [panel[y, left - 1 : left + 3], panel[y, right - 2 : right + 2][::-1]]
    lines.append(panel[bottom - 2 : bottom + 2, x][::-1])
    black, white = np.array(BLACK), np.array(WHITE)
    return all(np.array_equal(line, [black, white, white, black]) for line in lines)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_boxes_are_seen_on_black_grey_and_white_images(level: float) -> None:
    place = Region(100, 120, 200, 150, 2.0, None)
    _, layout, panels = drawn(image(level=level), spot(), (place,))
    assert layout.box(place) == (114, 137, 342, 308)
    assert framed(panels[1], layout.box(place))
    assert framed(panels[2], layout.box(place))
    assert not framed(panels[0], layout.box(place))  # the image stays as it is


def test_box_lies_where_the_map_says_on_the_image() -> None:
    found = spot()
    (place,) = regions(found, (448, 448), SPEC)
    _, layout, panels = drawn(image(), found, (place,))
    left, top, right, bottom = layout.box(place)
    yellow = (panels[1][..., 0].astype(int) - panels[1][..., 2]) > 150
    y, x = np.nonzero(yellow)
    assert (x.min() - left, right - x.max()) == pytest.approx((2, 2), abs=2)
    assert (y.min() - top, bottom - y.max()) == pytest.approx((2, 2), abs=2)


def test_each_box_has_its_own_number() -> None:
    places = tuple(Region(60 * n, 200, 40, 90, 1.0, None) for n in range(5))
    _, layout, panels = drawn(image(), spot(), places)
    tags = []
    for place in places:
        left, top, *_ = layout.box(place)
        tags.append(panels[2][top - 20 : top, left : left + 19])
    assert all((tag[2:-2, 2:-2] > 200).any() and (tag == 0).mean() > 0.4 for tag in tags)
    assert all(
        not np.array_equal(one, other) for k, one in enumerate(tags) for other in tags[k + 1 :]
    )


@pytest.mark.parametrize(
    "place", [(0, 0, 448, 448), (0, 0, 12, 12), (440, 440, 8, 8), (0, 400, 448, 48)]
)
def test_boxes_at_the_border_stay_in_their_panels(place: tuple[int, int, int, int]) -> None:
    plain, layout, _ = drawn(image(), spot())
    marked, _, panels = drawn(image(), spot(), (Region(*place, 1.0, None),))
    rows = layout.bar[0]
    beside = np.ones(plain.shape[1], bool)
    for left in layout.panels[1:]:
        beside[left - 1 : left + layout.width + 1] = False
    assert np.array_equal(plain[rows][:, beside], marked[rows][:, beside])
    assert not np.array_equal(drawn(image(), spot())[2][2], panels[2])


def test_windows_that_turn_the_decision_are_outlined_with_dashes() -> None:
    turned = np.zeros((224, 224), bool)
    turned[56:112, 56:168] = True
    found = heat(1.0, turned=turned)
    plain = drawn(image(), heat(1.0, turned=np.zeros((224, 224), bool)))[2]
    panels = drawn(image(), found)[2]
    assert np.array_equal(plain[0], panels[0])
    for panel, before in zip(panels[1:], plain[1:], strict=True):
        changed = (panel != before).any(axis=2)
        y, x = np.nonzero(changed)
        assert (y.min(), y.max()) == pytest.approx((128, 255), abs=4)
        assert (x.min(), x.max()) == pytest.approx((128, 383), abs=4)
        inside = changed[140:244, 140:372]
        assert 0.005 < inside.mean() < 0.03  # dots that say which side is meant, no filling
        assert inside.any(axis=1).mean() > 0.05
        along = panel[128, 150:360].astype(int)
        pink = (along[:, 0] > 200) & (along[:, 1] < 120)
        assert 0.25 < pink.mean() < 0.8
        assert (np.diff(pink.astype(int)) != 0).sum() > 20


# --- words -------------------------------------------------------------------------------------


def test_caption_says_what_the_record_says() -> None:
    made = {"window": 32, "stride": 8, "baseline": "black", "windows": 625, "evaluated": 60}
    places = (Region(0, 0, 9, 9, 2.0, None), Region(9, 9, 9, 9, 1.25, None))
    found = heat(2.0, facts=made)
    said = record(warnings=("W_UNVERIFIED", "W_DEPTH"))
    assert caption((448, 448), SPEC, found, places, said) == (
        "positive: covid 0.750, positive from 0.200",
        "lung.png",
        "squeezenet1_1, int8, onnxruntime-cpu; occlusion, window 32, stride 8, hidden: black, "
        "60 of 625 windows evaluated",
        "Boxes: from half of the map's highest value on; highest in 1: +2, 2: +1.25.",
        "Warnings: W_UNVERIFIED, W_DEPTH",
        NOTICE,
    )


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        (0.2, "positive: covid 0.200000, positive from 0.200000"),
        (0.19996, "negative: covid 0.19996, positive from 0.20000"),
        (0.0, "negative: covid 0.000, positive from 0.200"),
    ],
)
def test_rounding_never_contradicts_the_decision(probability: float, said: str) -> None:
    assert caption((448, 448), SPEC, heat(), (), record(probability))[0] == said


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        (0.3, "positive: covid 0.3000, positive from 0.2999"),
        (0.2, "indeterminate: covid 0.200, between 0.100 and 0.300"),
        (0.0999, "negative: covid 0.0999, negative below 0.1000"),
    ],
)
def test_the_limit_that_decided_stands_beside_the_probability(
    probability: float, said: str
) -> None:
    run = replace(RUN, indeterminate_range=IndeterminateRange(0.1, 0.2999))
    found = replace(record(probability), run=run)
    assert caption((448, 448), SPEC, heat(), (), found)[0] == said
    turned = heat(1.0, turned=np.ones((224, 224), bool))
    side = "below" if probability >= 0.2 else "above"
    assert f"takes it {side} 0.200" in caption((448, 448), SPEC, turned, (), found)[3]


def test_no_region_is_said_in_words() -> None:
    assert "No region stands out." in caption((448, 448), SPEC, heat(-1.0), (), record(0.1))
    assert regions(heat(-1.0), (448, 448), SPEC) == []


@pytest.mark.parametrize(("probability", "other"), [(0.9, "negative"), (0.1, "positive")])
def test_turned_decision_is_named(probability: float, other: str) -> None:
    turned = np.zeros((224, 224), bool)
    turned[:40, :40] = True
    found = heat(1.0, turned=turned)
    lines = caption((448, 448), SPEC, found, regions(found, (448, 448), SPEC), record(probability))
    assert lines[3].startswith(f"Dashed, dotted, boxed: hiding a window in there makes it {other}")
    assert ("1: +1" in lines[3]) == (other == "negative")  # else what spoke against turns it
    alone = caption((448, 448), SPEC, found, (), record(probability))[3]
    assert alone.startswith(f"Dashed, dotted: hiding a window in there makes it {other}. No region")


def test_every_line_of_the_caption_is_drawn_below_the_panels() -> None:
    picture, layout, _ = drawn(image(), spot())
    lines = caption((448, 448), SPEC, spot(), (), record())
    below = picture[layout.bar[0].stop + 10 :]
    for number, line in enumerate(lines):
        row = below[number * 22 : (number + 1) * 22]
        lit = np.nonzero((row > 200).any(axis=(0, 2)))[0]
        assert 8 <= lit.min() <= 14
        assert lit.max() < 16 * len(line)
        assert lit.max() > 4 * len(line)
    assert (below[len(lines) * 22 :] == GREY).all()


def test_other_words_give_other_pixels_below_the_panels_and_nowhere_else() -> None:
    one, layout, _ = drawn(image(), spot())
    other, _, _ = drawn(image(), spot(), said=record(path="images/lunge.png"))
    differ = np.nonzero((one != other).any(axis=(1, 2)))[0]
    first = layout.bar[0].stop + 10 + 22
    assert first <= differ.min() <= differ.max() < first + 22


@pytest.mark.parametrize(
    "path",
    [
        "images/" + "very_" * 100 + "long_001.png",
        "images/\u80ba\u90e8 \u0436.png",
        "images/torn\udcff.png",
        "images/two\nlines\x1b[31m.png",
        "folder\\image.png",
    ],
)
def test_any_file_name_is_drawn_in_one_line(path: str) -> None:
    said = record(path=path)
    name = caption((448, 448), SPEC, heat(), (), said)[1]
    assert name.isascii()
    assert name.isprintable()
    assert "folder" not in name
    picture, layout, _ = drawn(image(), spot(), said=said)
    assert (picture[layout.bar[0].stop + 10 :, -9:] == GREY).all()


def test_image_that_was_not_assessed_gets_no_picture() -> None:
    refused = replace(record(), probabilities=None, reason="E_BLANK")
    with pytest.raises(UsageError, match=r"images/lung\.png: was not assessed"):
        draw_overlay(image(), SPEC, spot(), (), refused)


# --- file --------------------------------------------------------------------------------------


def test_file_is_a_png_of_the_same_pixels_that_says_what_it_is_not() -> None:
    picture, _, _ = drawn(image(), spot())
    data = encode_overlay(picture)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        assert NOTICE in opened.info["Description"]
        assert np.array_equal(np.asarray(opened), picture)


@pytest.mark.parametrize(("rows", "columns"), [(200, 100), (600, 500), (500, 500), (100, 200)])
def test_picture_is_never_taken_for_an_image(
    rows: int, columns: int, decode: Callable[..., Radiograph]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (rows, columns)).astype(np.uint8)
    radiograph = Radiograph(noise, 255, "0" * 64, "PNG")
    found = heat(1.0, turned=np.ones((224, 224), bool))
    said = record(warnings=("W_DEPTH",))
    picture = draw_overlay(radiograph, SPEC, found, (), said)
    with pytest.raises(NotAssessedError) as refused:
        decode(encode_overlay(picture))
    assert refused.value.reason is Reason.SHAPE


def test_threads_draw_what_one_draws() -> None:
    alone = drawn(image(), spot())[0]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: drawn(image(), spot())[0], range(8)))
    assert all(np.array_equal(picture, alone) for picture in together)
