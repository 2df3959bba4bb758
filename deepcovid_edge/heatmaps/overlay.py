"""The picture of a heat map: the image, the map over it, and beside them what they say.

The colours are cividis (Nuñez, Anderton and Renslow, PLOS ONE 13(7), 2018, e0199239): perceptually
uniform, alike for most colour-blind eyes, and even in lightness, so that a greyscale print keeps
the order of the values. Its middle is a neutral grey. The scale reaches as far below zero as above
it, so that grey always is zero, yellow (bright) spoke for the positive class and blue (dark)
against it. Each image has its own scale: colours of two images compare by their numbers alone.

The map is drawn smoothly between the places it was measured at; the map file keeps its values. The
picture is more than twice as wide as high, a shape that is never read as a radiograph.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE, Prediction
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, OCCLUSION, HeatMap, Region, upper_half
from deepcovid_edge.imaging.prepare import filled_field, visible_field
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import NOTICE, Reason, warning_sentence

UNITS = {OCCLUSION: "drop of the logit when hidden", ACTIVATION: "class activation"}
"""What the numbers of the scale are, by the map's method."""
PANEL_HEIGHT = 640
"""Rows of the image and of the map over it: legible on a cart's screen, and 11 cm in print."""
_PANEL_WIDTH = (460, 800)
_MARGIN, _TEXT_WIDTH, _BAR_HEIGHT = 16, 420, 18
_OPACITY = 0.8
"""Of the map where it is farthest from zero; none where it is zero, even between."""
_DIMMED, _HATCH, _HATCH_PERIOD = 0.35, 90, 12
_BACKGROUND, _WHITE, _SOFT, _BLACK = 16, (255, 255, 255), (190, 200, 210), (0, 0, 0)
_VERDICTS = {
    POSITIVE: (255, 138, 143),
    NEGATIVE: (127, 212, 146),
    INDETERMINATE: (211, 164, 240),
}
_NO_BREAK = "\N{NO-BREAK SPACE}"
_RGB = NDArray[np.uint8]
Style = Literal["verdict", "strong", "plain", "small", "scale"]
_SIZES: dict[Style, int] = {"verdict": 34, "strong": 19, "plain": 17, "small": 15, "scale": 15}


@dataclass(frozen=True)
class Layout:
    """Where what lies in the picture, pixels.

    Attributes:
        scale: Pixels of the picture for one of the image.
        box_scales: The same, down and across, for one that regions count.
        panels: First column of the image and of the map over it.
        width: Columns of a panel.
        image: Rows and columns of a panel that show the image.
        seen: Rows and columns of a panel that show what the network sees.
        text: First column of the words.
        size: Rows and columns of the picture.
    """

    scale: float
    box_scales: tuple[float, float]
    panels: tuple[int, int]
    width: int
    image: tuple[slice, slice]
    seen: tuple[slice, slice]
    text: int
    size: tuple[int, int]

    @classmethod
    def of(
        cls, shape: tuple[int, ...], spec: InputSpec, box_shape: tuple[int, ...] | None = None
    ) -> Layout:
        """The layout for an image of `shape`; see `heatmap.regions` for `box_shape`."""
        rows, columns = shape
        counted = box_shape or shape
        least, most = _PANEL_WIDTH
        scale = min(PANEL_HEIGHT / rows, most / columns)
        width = max(least, round(columns * scale))
        top = (PANEL_HEIGHT - round(rows * scale)) // 2
        left = (width - round(columns * scale)) // 2
        whole = slice(0, rows), slice(0, columns)
        text = 2 * (width + _MARGIN) + _MARGIN
        return cls(
            scale=scale,
            box_scales=(scale * rows / counted[0], scale * columns / counted[1]),
            panels=(_MARGIN, width + 2 * _MARGIN),
            width=width,
            image=_placed(whole, scale, top, left),
            seen=_placed(visible_field(shape, spec), scale, top, left),
            text=text,
            size=(PANEL_HEIGHT + 2 * _MARGIN, text + _TEXT_WIDTH + _MARGIN),
        )


def _placed(field: tuple[slice, slice], scale: float, top: int, left: int) -> tuple[slice, slice]:
    rows, columns = (
        slice(first + round(part.start * scale), first + round(part.stop * scale))
        for part, first in zip(field, (top, left), strict=True)
    )
    return rows, columns


def draw_overlay(
    image: Radiograph,
    spec: InputSpec,
    found: HeatMap,
    places: Sequence[Region],
    record: Prediction,
) -> NDArray[np.uint8]:
    """Draw the image, the map over it, and what they say.

    Returns:
        RGB pixels of shape (rows, columns, 3).

    Raises:
        UsageError: The image was not assessed.
        NotAssessedError: The map holds what is no number.
    """
    shape = image.whole_shape
    text = caption(shape, spec, found, places, record)
    layout = Layout.of(shape, spec, image.box_shape)
    field = filled_field(shape, spec)
    limit = _limit(found.values[field])
    grey = _grey(image, layout)
    levels = _smoothed(found.values, found)[field] / limit
    over = _overlaid(grey, _to_seen(levels, layout), layout)
    canvas = np.full((*layout.size, 3), _BACKGROUND, np.uint8)
    for left, panel in zip(layout.panels, (grey, over), strict=True):
        canvas[_MARGIN : _MARGIN + PANEL_HEIGHT, left : left + layout.width] = panel
    half = _smoothed(upper_half(found.values).astype(np.float32), found)[field]
    masks = _masks(_to_seen(half, layout), places, layout)
    _outline(canvas, masks, layout)
    picture = Image.fromarray(canvas)
    pen = _Pen(picture, layout)
    pen.numbers(masks)
    pen.write(text, record, limit)
    return np.asarray(picture)


def encode_overlay(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a PNG file whose metadata says what it is not."""
    facts = PngInfo()
    facts.add_text("Description", f"Heat map by deepcovid-edge. {NOTICE}")
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", pnginfo=facts, compress_level=1)
    return written.getvalue()


def caption(
    shape: tuple[int, ...],
    spec: InputSpec,
    found: HeatMap,
    places: Sequence[Region],
    record: Prediction,
) -> tuple[tuple[Style, str], ...]:
    """What stands beside the panels, each with its style, from top to bottom.

    Raises:
        UsageError: The image was not assessed.
    """
    if record.probability is None or record.decision is None:
        raise UsageError(f"{record.path}: was not assessed, so there is no heat map to draw")
    run = record.run
    lines: list[tuple[Style, str]] = [
        ("verdict", record.decision),
        ("strong", _decided(record, record.probability)),
        ("plain", _ascii(record.path.replace("\\", "/").rpartition("/")[2])),
        ("scale", UNITS[found.method]),
        ("plain", _about_regions(places)),
    ]
    seen = visible_field(shape, spec)
    if (seen[0].stop - seen[0].start, seen[1].stop - seen[1].start) != tuple(shape):
        lines.append(("plain", "Hatched: the network does not see this part."))
    lines += [("plain", warning_sentence(code)) for code in record.warnings]
    lines.append(("small", f"Model {run.model}, {run.variant}, {run.backend}. {_made(found)}"))
    return (*lines, ("strong", NOTICE))


def _made(found: HeatMap) -> str:
    """How the map was made."""
    it = found.facts
    made = [f"{name} {it[name]}" for name in ("window", "stride", "baseline") if name in it]
    if "windows" in it:
        made.append(f"{it['evaluated']} of {it['windows']} windows evaluated")
    text = f"Map: {', '.join([found.method, *made])}."
    if "expected_agreement" in it:
        expected = it["expected_agreement"]["quantile_10"]
        text += f" In 9 of 10 images it agrees with the full map better than {expected:.2f}."
    return text


def _decided(record: Prediction, probability: float) -> str:
    """The probability, with the limit that made the decision."""
    run, span = record.run, record.run.indeterminate_range
    words, limit = "positive from", run.threshold
    if span and record.decision == INDETERMINATE:
        chance = f"{run.positive_class} {probability:.3f}"
        return _ascii(f"{chance}, between {span.low:.3f} and {span.high:.3f}")
    if span and record.decision == NEGATIVE:
        words, limit = "negative below", span.low
    elif span:
        limit = span.high
    chance, shown = _apart(probability, limit)
    return _ascii(f"{run.positive_class} {chance}, {words} {shown}")


def _apart(probability: float, threshold: float) -> tuple[str, str]:
    """Both with as many decimals as it takes to see which is the greater."""
    for decimals in (3, 4, 5):
        if f"{probability:.{decimals}f}" != f"{threshold:.{decimals}f}":
            return f"{probability:.{decimals}f}", f"{threshold:.{decimals}f}"
    return f"{probability:.6f}", f"{threshold:.6f}"


def _about_regions(places: Sequence[Region]) -> str:
    if not places:
        return "No region stands out."
    peaks = ", ".join(
        f"in {number}:{_NO_BREAK}{_signed(place.peak)}"
        for number, place in enumerate(places, start=1)
    )
    text = f"Outlined: the map has half of its highest value or more. Highest {peaks}."
    turning = [str(number) for number, place in enumerate(places, start=1) if place.turns]
    if turning:
        text += f" Hiding part of {' or '.join(turning)} changes the result."
    return text


def _ascii(name: str) -> str:
    """A name in letters that the font has; others as Python escapes them."""
    plain = name.encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in plain)


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _limit(values: NDArray[np.float32]) -> float:
    """How far the scale reaches, above and below zero."""
    farthest = float(np.abs(values).max())
    if not math.isfinite(farthest):
        raise NotAssessedError(Reason.RESULT, "heat map")
    return farthest or 1.0


def _smoothed(values: NDArray[np.float32], found: HeatMap) -> NDArray[np.float32]:
    """Values on the network's input without the steps from one window or cell to the next."""
    rows, columns = (a / b for a, b in zip(values.shape, found.cells.shape, strict=True))
    smooth: NDArray[Any] = cv2.GaussianBlur(
        values, (0, 0), sigmaX=0.4 * columns, sigmaY=0.4 * rows, borderType=cv2.BORDER_REPLICATE
    )
    return smooth


def _grey(image: Radiograph, layout: Layout) -> _RGB:
    """The image in its panel; what the network does not see is dimmed and hatched."""
    rows, columns = layout.image
    size = columns.stop - columns.start, rows.stop - rows.start
    how = cv2.INTER_AREA if layout.scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image.pixels, size, interpolation=how)
    grey: NDArray[Any] = cv2.convertScaleAbs(small, alpha=255.0 / image.white)
    panel = np.zeros((PANEL_HEIGHT, layout.width), np.uint8)
    panel[layout.image] = np.where(_hatch(grey.shape), np.uint8(_HATCH), grey * _DIMMED)
    inner = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(layout.seen, layout.image, strict=True)
    )
    panel[layout.seen] = grey[inner]
    coloured: NDArray[Any] = cv2.cvtColor(panel, cv2.COLOR_GRAY2RGB)
    return coloured


def _hatch(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    lines: NDArray[np.bool_] = (rows + columns) % _HATCH_PERIOD < 2
    return lines


def _to_seen(levels: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
    rows, columns = layout.seen
    size = columns.stop - columns.start, rows.stop - rows.start
    large: NDArray[Any] = cv2.resize(
        levels.astype(np.float32), size, interpolation=cv2.INTER_LINEAR
    )
    return large


def _coloured(levels: NDArray[np.float32]) -> _RGB:
    """Colours of levels from -1 to 1."""
    index = cv2.convertScaleAbs(levels + 1, alpha=127.5)
    colours: NDArray[Any] = cv2.applyColorMap(index, cv2.COLORMAP_CIVIDIS)[..., ::-1]
    return colours


def _overlaid(grey: _RGB, levels: NDArray[np.float32], layout: Layout) -> _RGB:
    overlay: _RGB = grey.copy()
    under = grey[layout.seen].astype(np.float32)
    opacity = (_OPACITY * np.minimum(1, np.abs(levels)))[..., None]
    overlay[layout.seen] = np.rint(under + opacity * (_coloured(levels) - under))
    return overlay


def _masks(
    half: NDArray[np.float32], places: Sequence[Region], layout: Layout
) -> list[NDArray[np.uint8]]:
    """What of a smoothed mask on a panel belongs to each region, of the panel's shape.

    A region smaller than a cell of the map loses height by the smoothing, and must not vanish.
    """
    whole = np.zeros((PANEL_HEIGHT, layout.width), np.float32)
    whole[layout.seen] = half
    masks = []
    for place in places:
        down, across = layout.box_scales
        top = layout.image[0].start + math.floor(place.y * down)
        left = layout.image[1].start + math.floor(place.x * across)
        box = (
            slice(max(0, top - 2), top + math.ceil(place.height * down) + 3),
            slice(max(0, left - 2), left + math.ceil(place.width * across) + 3),
        )
        masks.append(np.zeros(whole.shape, np.uint8))
        part = whole[box]
        masks[-1][box] = (part > 0) & (part >= part.max(initial=0.0) / 2)
    return masks


def _outline(canvas: _RGB, masks: Sequence[NDArray[np.uint8]], layout: Layout) -> None:
    """A white line, cased in black, around each region."""
    over = (
        slice(_MARGIN, _MARGIN + PANEL_HEIGHT),
        slice(layout.panels[1], layout.panels[1] + layout.width),
    )
    panel = np.ascontiguousarray(canvas[over])
    for colour, thickness in ((_BLACK, 6), (_WHITE, 2)):
        for mask in masks:
            found, _ = cv2.findContours(
                cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0),
                cv2.RETR_EXTERNAL,
                cv2.CHAIN_APPROX_NONE,
                offset=(-1, -1),
            )
            cv2.drawContours(panel, found, -1, colour, thickness, cv2.LINE_AA)
    canvas[over] = panel


class _Pen:
    """Writes what is no picture: numbers of regions, verdict, scale and words."""

    def __init__(self, picture: Image.Image, layout: Layout) -> None:
        self._picture, self._layout = picture, layout
        self._draw = ImageDraw.Draw(picture)
        # One for each picture: FreeType's fonts are not made to be shared by threads.
        self._fonts = {style: ImageFont.load_default(size) for style, size in _SIZES.items()}
        self._y = _MARGIN

    def numbers(self, masks: Sequence[NDArray[np.uint8]]) -> None:
        """A tag with its number above each region; below it where there is no place above."""
        for number, mask in reversed([*enumerate(masks, start=1)]):
            rows, columns = np.nonzero(mask)
            if not len(rows):
                continue
            row, top = int(rows[0]), int(rows[0]) - 26
            if top < 0 and rows[-1] + 26 < PANEL_HEIGHT:
                row, top = int(rows[-1]), int(rows[-1]) + 4
            middle = int(np.median(columns[rows == row]))
            left = self._layout.panels[1] + min(max(0, middle - 10), self._layout.width - 22)
            top = _MARGIN + max(0, top)
            self._draw.rectangle((left, top, left + 20, top + 22), _BLACK, _WHITE)
            self._draw.text((left + 10, top + 11), str(number), _WHITE, self._fonts["plain"], "mm")

    def write(self, text: Sequence[tuple[Style, str]], record: Prediction, limit: float) -> None:
        """The words, with the limits under the verdict and the scale above its unit."""
        *above, (_, notice) = text
        for style, words in above:
            if style == "verdict":
                self._lines(words.upper(), style, _VERDICTS[words])
            elif style == "scale":
                self._limits(record)
                self._scale(limit, words, _ascii(record.run.positive_class))
            else:
                self._lines(words, style, _SOFT if style == "small" else _WHITE)
        self._y = PANEL_HEIGHT + _MARGIN - _SIZES["strong"] - 4
        self._lines(notice, "strong", _WHITE)

    def _lines(self, words: str, style: Style, colour: tuple[int, int, int]) -> None:
        lowest = PANEL_HEIGHT + _MARGIN
        for line in _wrapped(words, self._fonts[style]):
            if self._y + _SIZES[style] <= lowest:
                place, shown = (self._layout.text, self._y), line.replace(_NO_BREAK, " ")
                self._draw.text(place, shown, colour, self._fonts[style], anchor="lt")
            self._y += round(1.35 * _SIZES[style])
        self._y += 6

    def _limits(self, record: Prediction) -> None:
        """From 0 to 1: where negative ends, where positive begins, and the image."""
        limits, left, width = record.run.limits, self._layout.text, _TEXT_WIDTH - 1
        low = limits.get("low", limits.get("threshold", 0.0))
        high = limits.get("high", limits.get("threshold", 1.0))
        top, bottom = self._y + 12, self._y + 22
        edges = (0.0, low, high, 1.0)
        for kind, first, last in zip(_KINDS, edges[:-1], edges[1:], strict=True):
            box = (left + round(first * width), top, left + round(last * width), bottom)
            self._draw.rectangle(box, _VERDICTS[kind])
        x = left + round((record.probability or 0.0) * width)
        self._draw.polygon([(x - 7, top - 12), (x + 7, top - 12), (x, top - 1)], _WHITE, _BLACK)
        middle = left + min(max(_NAMES_END, round((low + high) / 2 * width)), width - _NAMES_END)
        places = ((left, "lt"), (middle, "mt"), (left + width, "rt"))
        for kind, (x, anchor) in zip(_KINDS, places, strict=True):
            if kind != INDETERMINATE or low < high:
                self._draw.text(
                    (x, bottom + 5), kind, _VERDICTS[kind], self._fonts["small"], anchor
                )
        self._y = bottom + 32

    def _scale(self, limit: float, unit: str, positive: str) -> None:
        left, top = self._layout.text, self._y
        colours = _coloured(np.linspace(-1, 1, _TEXT_WIDTH, dtype=np.float32)[None])
        bar = Image.fromarray(np.repeat(colours, _BAR_HEIGHT, axis=0))
        self._picture.paste(bar, (left, top))
        below, small = top + _BAR_HEIGHT + 5, self._fonts["scale"]
        ends = (("lt", 0.0, -limit), ("mt", 0.5, 0.0), ("rt", 1.0, limit))
        for anchor, share, value in ends:
            x = left + round(share * (_TEXT_WIDTH - 1))
            self._draw.text((x, below), _signed(value), _WHITE, small, anchor)
        for anchor, share, words in (("lt", 0.0, "against"), ("mt", 0.5, unit), ("rt", 1.0, "for")):
            x = left + round(share * (_TEXT_WIDTH - 1))
            named = words if share == 0.5 else f"{words} {positive}"
            self._draw.text((x, below + 20), named[:30], _SOFT, small, anchor)
        self._y = below + 48


_KINDS = (NEGATIVE, INDETERMINATE, POSITIVE)
_NAMES_END = 125
"""Columns that the name of a kind takes at either end of the limits, and half of the middle one."""


def _wrapped(words: str, font: Any) -> list[str]:
    """Words in lines that fit; of a word that is too long the end is kept."""
    lines, line = [], ""
    for word in words.split(" "):
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > _TEXT_WIDTH:
            lines.append(line)
            longer = word
        while font.getlength(longer) > _TEXT_WIDTH:
            longer = "..." + longer.removeprefix("...")[1:]
        line = longer
    return [*lines, line]
