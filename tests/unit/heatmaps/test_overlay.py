"""The picture of a heat map: its parts are where they belong and say what they must."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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
from deepcovid_edge.reasons import NOTICE, Reason, WarningCode

SPEC = InputSpec()
RUN = RunFacts("squeezenet1_1", "0" * 64, "onnxruntime-cpu", "int8", ("non", "covid"), "covid", 0.2)
GREY, MARGIN = 16, 16
CIVIDIS_ENDS = np.array([[0, 32, 77], [255, 234, 70]])
WHITE = (255, 255, 255)


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
    """The picture, its layout, and its two panels."""
    spec, result = more.get("spec", SPEC), more.get("result", record())
    picture = draw_overlay(radiograph, spec, found, places, result)
    layout = Layout.of(radiograph.pixels.shape, spec)
    rows = slice(MARGIN, MARGIN + PANEL_HEIGHT)
    panels = [picture[rows, left : left + layout.width] for left in layout.panels]
    return picture, layout, panels


def words(picture: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """The part of the picture that is beside its panels."""
    return picture[:, layout.text - 2 :]


def scale_bar(picture: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """A row of the scale's colours, from against to for."""
    text = picture[:, layout.text : layout.text + 420].astype(int)
    ends = np.abs(text[:, [0, -1]] - [CIVIDIS_ENDS]).sum(axis=(1, 2))
    return picture[int(ends.argmin()) + 3, layout.text : layout.text + 420]


def lightness(colours: NDArray[Any]) -> NDArray[np.float32]:
    """CIE L* of sRGB colours of shape (N, 3), 0 to 100."""
    lab: NDArray[Any] = cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)
    return lab[0, :, 0]


# --- colours and scale -------------------------------------------------------------------------


def test_lightness_of_the_scale_rises_evenly_from_against_to_for() -> None:
    picture, layout, _ = drawn(image(), spot())
    bar = scale_bar(picture, layout)
    light = lightness(bar)
    assert np.diff(light).min() > -0.05  # one grey level of a colour is more
    steps = np.diff(light[:: len(bar) // 16])
    assert np.abs(steps / steps.mean() - 1).max() < 0.35  # the darkest sixteenth is the steepest
    grey = cv2.cvtColor(bar[None], cv2.COLOR_RGB2GRAY)[0].astype(int)  # as a printer has it
    assert np.diff(grey).min() >= -1
    assert np.ptp(bar[len(bar) // 2].astype(int)) <= 6  # zero is a grey without colour


def test_what_spoke_for_is_yellow_and_what_spoke_against_is_blue() -> None:
    _, _, panels = drawn(image(), spot(peak=2.0, low=-2.0))
    bright = panels[1][round(60 / 224 * PANEL_HEIGHT), round(90 / 224 * PANEL_HEIGHT)].astype(int)
    dark = panels[1][round(180 / 224 * PANEL_HEIGHT), round(40 / 224 * PANEL_HEIGHT)].astype(int)
    assert bright[0] > bright[2] + 80
    assert dark[2] > dark[0] + 40
    light = lightness(np.array([dark, panels[0][320, 600], bright]))
    assert light[0] + 15 < light[1] < light[2] - 15


@pytest.mark.parametrize("method", [OCCLUSION, ACTIVATION])
def test_unit_of_the_scale_differs_by_method(method: str) -> None:
    text = dict((style, line) for style, line in written(heat(1.0, method)))
    assert text["scale"] == UNITS[method]
    mine, layout, _ = drawn(image(), heat(1.0, method))
    other, _, _ = drawn(image(), heat(1.0, ACTIVATION if method == OCCLUSION else OCCLUSION))
    assert not np.array_equal(words(mine, layout), words(other, layout))


def test_map_of_zeros_leaves_the_image_as_it_is() -> None:
    _, _, panels = drawn(image(), heat(0.0))
    assert np.array_equal(panels[1], panels[0])


def test_map_that_holds_what_is_no_number_is_refused() -> None:
    for broken in (np.nan, np.inf):
        found = heat()
        found.values[3, 4] = broken
        with pytest.raises(NotAssessedError) as refused:
            drawn(image(), found)
        assert refused.value.reason is Reason.RESULT


def test_steps_between_windows_are_smoothed() -> None:
    found = heat()
    found.values[:, :112] = 1.0  # a step, where windows are 8 pixels apart
    _, _, panels = drawn(image(level=0.2), found)
    line = panels[1][320].astype(int)[:, 0]
    assert np.abs(np.diff(line)).max() < 0.12 * np.ptp(line)


# --- panels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_image_is_shown_in_its_own_grey_at_any_depth(white: int) -> None:
    _, _, panels = drawn(image(white=white, level=0.6), spot())
    assert np.abs(panels[0].astype(int) - 153).max() <= 1


def test_overlay_is_the_image_where_the_map_is_zero_and_follows_the_map_elsewhere() -> None:
    found = heat()
    found.values[:] = np.linspace(0, 1, 224, dtype=np.float32)
    _, _, panels = drawn(image(level=0.2), found)
    away = np.abs(panels[1].astype(int) - panels[0]).sum(axis=2)[320]
    assert away[0] < 12
    assert (np.diff(away) >= -2).all()
    assert away[-1] > 200


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
def test_what_a_centre_crop_cuts_off_is_dimmed_and_hatched_on_both_panels(
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
    assert "Hatched" in plain(written(found, shape=(rows, columns)))


@pytest.mark.parametrize("rule", [ResizeRule.SQUASH, ResizeRule.LETTERBOX])
def test_nothing_is_dimmed_where_the_network_sees_all(rule: ResizeRule) -> None:
    spec = InputSpec(resize=rule)
    _, layout, panels = drawn(image(400, 700), heat(1.0), spec=spec)
    assert layout.seen == layout.image
    assert (panels[0][layout.image] == 128).all()
    assert "Hatched" not in plain(written(heat(), shape=(400, 700), spec=spec))


def test_border_that_a_letterbox_adds_is_not_shown_on_the_image() -> None:
    found = heat(0.5)
    found.values[:40] = found.values[-40:] = -9.0  # a wide image fills the middle half
    spec = InputSpec(resize=ResizeRule.LETTERBOX)
    _, layout, panels = drawn(image(400, 800), found, spec=spec)
    shown = panels[1][layout.image].reshape(-1, 3).astype(int)
    assert (shown[:, 0] > shown[:, 2] + 80).all()  # all of it is the scale's farthest


# --- regions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_outline_is_seen_on_black_grey_and_white_images(level: float) -> None:
    found = spot()
    places = tuple(regions(found, (448, 448), SPEC))
    _, _, panels = drawn(image(level=level), found, places)
    row = panels[1][round(60 / 224 * PANEL_HEIGHT)].astype(int)
    for edge in (60, 120):
        at = round(edge / 224 * PANEL_HEIGHT)
        near = row[at - 8 : at + 9]
        assert (near.min(axis=1) > 225).any()  # white
        assert (near.max(axis=1) < 60).any()  # between black
    assert not (panels[0] != panels[0][0, 0]).any()  # the image stays as it is


@pytest.mark.parametrize(
    ("cell", "rows", "columns"),
    [(8, 40, 50), pytest.param(17, 16, 11, id="smaller than a cell of the map")],
)
def test_each_region_has_one_outline_and_its_number(cell: int, rows: int, columns: int) -> None:
    values = np.zeros((224, 224), np.float32)
    found = HeatMap(ACTIVATION, values, values[::cell, ::cell])
    found.values[20:60, 20:60] = 2.0
    found.values[150 : 150 + rows, 150 : 150 + columns] = 1.5
    places = tuple(regions(found, (448, 448), SPEC))
    assert len(places) == 2
    plain_panels = drawn(image(), found)[2]
    panels = drawn(image(), found, places)[2]
    changed = (panels[1] != plain_panels[1]).any(axis=2).astype(np.uint8)
    pieces, _ = cv2.connectedComponents(cv2.dilate(changed, np.ones((9, 9), np.uint8)))
    assert pieces - 1 == 2  # an outline with its tag each, and no dots
    assert changed.mean() < 0.05


@pytest.mark.parametrize("top", [0, 60])
def test_a_tag_covers_nothing_of_a_small_region(top: int) -> None:
    """A region at the upper border has its tag below it."""
    found = heat()
    found.values[top : top + 24, 90:130] = 2.0
    places = tuple(regions(found, (448, 448), SPEC))
    bare, marked = (drawn(image(), found, shown)[2][1] for shown in ((), places))
    first, last = (round((top + rows) / 224 * PANEL_HEIGHT) for rows in (4, 20))
    inside = np.s_[first:last, round(96 / 224 * PANEL_HEIGHT) : round(124 / 224 * PANEL_HEIGHT)]
    assert np.array_equal(bare[inside], marked[inside])
    tagged = (marked == WHITE).all(axis=2).sum()
    assert tagged > (drawn(image(), found, ())[2][1] == WHITE).all(axis=2).sum()


@pytest.mark.parametrize("corner", [(0, 0), (0, 184), (184, 0), (184, 184)])
def test_a_region_at_the_border_stays_in_its_panel(corner: tuple[int, int]) -> None:
    found = heat()
    found.values[corner[0] : corner[0] + 40, corner[1] : corner[1] + 40] = 2.0
    places = tuple(regions(found, (448, 448), SPEC))
    bare, layout, _ = drawn(image(), found)
    marked, _, _ = drawn(image(), found, places)
    beside = np.ones(bare.shape[:2], bool)
    left = layout.panels[1]
    beside[MARGIN : MARGIN + PANEL_HEIGHT, left : left + layout.width] = False
    beside[:, layout.text - 2 :] = False
    assert np.array_equal(bare[beside], marked[beside])
    assert (bare != marked).any()


def test_a_threshold_nearby_covers_nothing() -> None:
    """Near its threshold an image turns wherever a window is hidden; that is said in words."""
    turned = spot()
    near = HeatMap(OCCLUSION, turned.values, turned.cells, turned=np.ones((224, 224), bool))
    places = tuple(regions(near, (448, 448), SPEC))
    assert [place.turns for place in places] == [True]
    assert [place.turns for place in regions(turned, (448, 448), SPEC)] == [None]
    one = drawn(image(), near, places)[2][1]
    other = drawn(image(), turned, tuple(regions(turned, (448, 448), SPEC)))[2][1]
    assert np.array_equal(one, other)
    assert "Hiding part of 1 changes the result." in plain(written(near, places))
    assert "changes" not in plain(written(turned, places[:0]))


# --- words -------------------------------------------------------------------------------------


def written(
    found: HeatMap,
    places: Sequence[Region] = (),
    result: Prediction | None = None,
    shape: tuple[int, int] = (448, 448),
    spec: InputSpec = SPEC,
) -> tuple[tuple[str, str], ...]:
    return caption(shape, spec, found, places, result or record())


def plain(text: tuple[tuple[str, str], ...]) -> str:
    return " ".join(line for _, line in text)


def test_caption_says_what_the_record_says() -> None:
    made = {"window": 32, "stride": 8, "baseline": "black", "windows": 625, "evaluated": 60}
    places = (Region(0, 0, 9, 9, 2.0, None), Region(9, 9, 9, 9, 1.25, None))
    found = heat(2.0, facts=made)
    assert written(found, places, record(warnings=("W_UNVERIFIED", "W_DEPTH"))) == (
        ("verdict", "positive"),
        ("strong", "covid 0.750, positive from 0.200"),
        ("plain", "lung.png"),
        ("scale", "drop of the logit when hidden"),
        (
            "plain",
            "Outlined: the map has half of its highest value or more. "
            "Highest in 1:\N{NO-BREAK SPACE}+2, in 2:\N{NO-BREAK SPACE}+1.25.",
        ),
        ("plain", WarningCode.UNVERIFIED.sentence),
        ("plain", WarningCode.DEPTH.sentence),
        (
            "small",
            "Model squeezenet1_1, int8, onnxruntime-cpu. Map: occlusion, window 32, stride 8, "
            "baseline black, 60 of 625 windows evaluated.",
        ),
        ("strong", NOTICE),
    )


@pytest.mark.parametrize(
    ("probability", "verdict", "sentence"),
    [
        (0.2, "positive", "covid 0.200000, positive from 0.200000"),
        (0.19996, "negative", "covid 0.19996, positive from 0.20000"),
        (0.0, "negative", "covid 0.000, positive from 0.200"),
    ],
)
def test_rounding_never_contradicts_the_decision(
    probability: float, verdict: str, sentence: str
) -> None:
    first, second, *_ = written(heat(), (), record(probability))
    assert (first[1], second[1]) == (verdict, sentence)


@pytest.mark.parametrize(
    ("probability", "sentence"),
    [
        (0.3, "covid 0.3000, positive from 0.2999"),
        (0.2, "covid 0.200, between 0.100 and 0.300"),
        (0.0999, "covid 0.0999, negative below 0.1000"),
    ],
)
def test_the_limit_that_decided_stands_beside_the_probability(
    probability: float, sentence: str
) -> None:
    run = replace(RUN, indeterminate_range=IndeterminateRange(0.1, 0.2999))
    assert written(heat(), (), replace(record(probability), run=run))[1][1] == sentence


def test_no_region_is_said_in_words() -> None:
    assert regions(heat(-1.0), (448, 448), SPEC) == []
    assert "No region stands out." in plain(written(heat(-1.0), (), record(0.1)))


def test_all_words_are_drawn_beside_the_panels_and_fit() -> None:
    facts = {"window": 32, "stride": 8, "baseline": "black", "windows": 625, "evaluated": 60}
    facts |= {"expected_agreement": {"quantile_10": 0.9}}
    many = record(warnings=tuple(code.code for code in [*WarningCode][:6]))
    picture, layout, _ = drawn(image(448, 600), heat(1.0, facts=facts), result=many)
    beside = words(picture, layout)
    lit = beside.max(axis=2) > 150
    assert not lit[:, -15:].any()
    assert not lit[-14:].any()
    few, _, _ = drawn(image(448, 600), heat(1.0, facts=facts))
    assert (words(few, layout) > 150).sum() < lit.sum() * 3


def test_other_words_give_other_pixels_beside_the_panels_and_nowhere_else() -> None:
    one, layout, _ = drawn(image(), spot())
    other, _, _ = drawn(image(), spot(), result=record(path="images/lunge.png"))
    differ = np.nonzero((one != other).any(axis=(0, 2)))[0]
    assert differ.min() >= layout.text


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
def test_any_file_name_is_drawn(path: str) -> None:
    result = record(path=path)
    name = written(heat(), (), result)[2][1]
    assert name.isascii()
    assert name.isprintable()
    assert "folder" not in name
    picture, _, _ = drawn(image(), spot(), result=result)
    assert (picture[:, -9:] == GREY).all()


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
    result = record(warnings=("W_DEPTH",))
    picture = draw_overlay(radiograph, SPEC, found, (), result)
    with pytest.raises(NotAssessedError) as refused:
        decode(encode_overlay(picture))
    assert refused.value.reason is Reason.SHAPE


def test_threads_draw_what_one_draws() -> None:
    alone = drawn(image(), spot())[0]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: drawn(image(), spot())[0], range(8)))
    assert all(np.array_equal(picture, alone) for picture in together)
