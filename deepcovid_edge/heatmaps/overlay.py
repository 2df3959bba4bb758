"""The picture of a heat map: image, map and overlay side by side, as in Deep-COVID's figures.

The colours are cividis (Nuñez, Anderton and Renslow, PLOS ONE 13(7), 2018, e0199239): perceptually
uniform, alike for most colour-blind eyes, and even in lightness, so that a greyscale print keeps
the order of the values. Its middle is a neutral grey. The scale reaches as far below zero as above
it, so that grey always is zero, yellow (bright) spoke for the positive class and blue (dark)
against it. Each image has its own scale: colours of two images compare by its numbers alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE, Prediction, RunFacts
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, OCCLUSION, HeatMap, Region
from deepcovid_edge.imaging.prepare import filled_field, visible_field
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import NOTICE, Reason

UNITS = {OCCLUSION: "drop of the logit when hidden", ACTIVATION: "class activation"}
"""What the numbers of the scale are, by the map's method."""
PANEL_HEIGHT = 512
"""Rows of image, map and overlay, whatever the image's own: legible on the screen of a cart."""
_PANEL_WIDTH = (440, 640)
"""With the least of it any picture is more than twice as wide as high: `images` takes no such
shape for an image, so a folder of images that holds pictures stays a folder of images."""
_MARGIN, _TITLE, _LINE = 10, 26, 22
_SCALE_WIDTH, _BAR_WIDTH = 128, 22
_OPACITY = 0.75
"""Of the overlay where the map is farthest from zero; none where it is zero, even between."""
_DIMMED, _HATCH, _HATCH_PERIOD = 0.35, 90, 12
_BACKGROUND, _WHITE, _BLACK = 16, (255, 255, 255), (0, 0, 0)
_PINK = (255, 80, 200)
_DASH, _DOT_PERIOD, _TAG = 7, 18, 20
_RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where what lies in the picture, pixels.

    Attributes:
        scale: Pixels of the picture for one of the image.
        box_scales: The same, down and across, for one that regions count.
        panels: First column of image, map and overlay.
        width: Columns of a panel.
        image: Rows and columns of a panel that show the image.
        seen: Rows and columns of a panel that show what the network sees.
        bar: Rows and columns of the picture that show the scale's colours.
        size: Rows and columns of the picture.
    """

    scale: float
    box_scales: tuple[float, float]
    panels: tuple[int, int, int]
    width: int
    image: tuple[slice, slice]
    seen: tuple[slice, slice]
    bar: tuple[slice, slice]
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        spec: InputSpec,
        lines: int,
        box_shape: tuple[int, ...] | None = None,
    ) -> Layout:
        """The layout for an image of `shape` and a caption of so many lines; see `regions`."""
        rows, columns = shape
        counted = box_shape or shape
        least, most = _PANEL_WIDTH
        scale = min(PANEL_HEIGHT / rows, most / columns)
        width = max(least, round(columns * scale))
        top = (PANEL_HEIGHT - round(rows * scale)) // 2
        left = (width - round(columns * scale)) // 2
        whole = slice(0, rows), slice(0, columns)
        panels = tuple(_MARGIN + number * (width + _MARGIN) for number in range(3))
        bar = panels[2] + width + _MARGIN
        return cls(
            scale=scale,
            box_scales=(scale * rows / counted[0], scale * columns / counted[1]),
            panels=panels,  # type: ignore[arg-type]
            width=width,
            image=_placed(whole, scale, top, left),
            seen=_placed(visible_field(shape, spec), scale, top, left),
            bar=(slice(_TITLE, _TITLE + PANEL_HEIGHT), slice(bar, bar + _BAR_WIDTH)),
            size=(_TITLE + PANEL_HEIGHT + lines * _LINE + 2 * _MARGIN, bar + _SCALE_WIDTH),
        )

    def box(self, place: Region) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a region's box in a panel, all included."""
        top, left = self.image[0].start, self.image[1].start
        down, across = self.box_scales
        low = left + math.floor(place.x * across), top + math.floor(place.y * down)
        right = left + math.ceil((place.x + place.width) * across) - 1
        bottom = top + math.ceil((place.y + place.height) * down) - 1
        return (
            *low,
            max(low[0], min(right, self.image[1].stop - 1)),
            max(low[1], min(bottom, self.image[0].stop - 1)),
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
    """Draw image, map and overlay side by side, with scale and caption.

    Args:
        image: The image as it was read.
        spec: The network's input.
        found: The image's heat map.
        places: Its regions, from `heatmap.regions`.
        record: The image's result.

    Returns:
        RGB pixels of shape (rows, columns, 3).

    Raises:
        UsageError: The image was not assessed.
        NotAssessedError: The map holds what is no number.
    """
    text = caption(image.pixels.shape, spec, found, places, record)
    layout = Layout.of(image.pixels.shape, spec, len(text), image.box_shape)
    values = found.values[filled_field(image.pixels.shape, spec)]
    limit = _limit(values)
    grey = _grey(image, layout)
    panels = (grey, *_panels(grey, _to_seen(values / limit, layout), layout))
    if found.turned is not None:
        turned = found.turned[filled_field(image.pixels.shape, spec)]
        for panel in panels[1:]:
            _outline(panel, turned, layout)
    canvas = np.full((*layout.size, 3), _BACKGROUND, np.uint8)
    for left, panel in zip(layout.panels, panels, strict=True):
        canvas[_TITLE : _TITLE + PANEL_HEIGHT, left : left + layout.width] = panel
    canvas[layout.bar] = _coloured(np.linspace(1, -1, PANEL_HEIGHT, dtype=np.float32)[:, None])
    picture = Image.fromarray(canvas)
    pen = _Pen(picture, layout)
    pen.titles(f"from {_signed(values.min())} to {_signed(values.max())}")
    pen.boxes(places)
    pen.scale(limit, UNITS[found.method], _ascii(record.run.positive_class))
    pen.caption(text)
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
) -> tuple[str, ...]:
    """What stands under the panels, line by line.

    Raises:
        UsageError: The image was not assessed.
    """
    if record.probability is None:
        raise UsageError(f"{record.path}: was not assessed, so there is no heat map to draw")
    run = record.run
    made = [f"{name} {found.facts[name]}" for name in ("window", "stride") if name in found.facts]
    if "baseline" in found.facts:
        made.append(f"hidden: {found.facts['baseline']}")
    if "windows" in found.facts:
        made.append(f"{found.facts['evaluated']} of {found.facts['windows']} windows evaluated")
    if "expected_agreement" in found.facts:
        expected = found.facts["expected_agreement"]["quantile_10"]
        made.append(f"agreement with all of them expected above {expected:.2f} in 9 of 10 images")
    how = ", ".join([found.method, *made])
    lines = [
        _decided(record, record.probability),
        _ascii(record.path.replace("\\", "/").rpartition("/")[2]),
        f"{run.model}, {run.variant}, {run.backend}; {how}",
        _about_regions(found, places, run, record.probability >= run.threshold),
    ]
    seen = visible_field(shape, spec)
    if (seen[0].stop - seen[0].start, seen[1].stop - seen[1].start) != tuple(shape):
        lines.append("Hatched: cut off, the network does not see it.")
    if record.warnings:
        lines.append(f"Warnings: {', '.join(record.warnings)}")
    return (*lines, NOTICE)


def _decided(record: Prediction, probability: float) -> str:
    """Decision and probability, with the limit that made it so."""
    run, indeterminate_range = record.run, record.run.indeterminate_range
    words, limit = "positive from", run.threshold
    if indeterminate_range and record.decision == INDETERMINATE:
        chance = f"{run.positive_class} {probability:.3f}"
        low, high = indeterminate_range.low, indeterminate_range.high
        return f"{record.decision}: {chance}, between {low:.3f} and {high:.3f}"
    if indeterminate_range and record.decision == NEGATIVE:
        words, limit = "negative below", indeterminate_range.low
    elif indeterminate_range:
        limit = indeterminate_range.high
    chance, shown = _apart(probability, limit)
    return f"{record.decision}: {run.positive_class} {chance}, {words} {shown}"


def _apart(probability: float, threshold: float) -> tuple[str, str]:
    """Both with as many decimals as it takes to see which is the greater."""
    for decimals in (3, 4, 5):
        if f"{probability:.{decimals}f}" != f"{threshold:.{decimals}f}":
            return f"{probability:.{decimals}f}", f"{threshold:.{decimals}f}"
    return f"{probability:.6f}", f"{threshold:.6f}"


def _about_regions(found: HeatMap, places: Sequence[Region], run: RunFacts, positive: bool) -> str:
    turns = found.turned is not None and bool(found.turned.any())
    other = f"makes it {NEGATIVE if positive else POSITIVE}"
    if run.indeterminate_range:  # between its ends it is neither
        other = f"takes it {'below' if positive else 'above'} {run.threshold:.3f}"
    marked = f"Dashed, dotted{', boxed' if places else ''}: hiding a window in there {other}"
    text = marked if turns else "Boxes: from half of the map's highest value on"
    if not places:
        return f"{marked}. No region stands out." if turns else "No region stands out."
    if turns and not positive:  # what was hidden there spoke against: its highest says nothing
        return f"{text}."
    peaks = ", ".join(f"{number}: {_signed(r.peak)}" for number, r in enumerate(places, start=1))
    return f"{text}; highest in {peaks}."


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


def _dots(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    dots: NDArray[np.bool_] = (rows % _DOT_PERIOD < 2) & (columns % _DOT_PERIOD < 2)
    return dots


def _to_seen(levels: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    rows, columns = layout.seen
    size = columns.stop - columns.start, rows.stop - rows.start
    large: NDArray[Any] = cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR)
    return large


def _coloured(levels: NDArray[np.float32]) -> _RGB:
    """Colours of levels from -1 to 1."""
    index = cv2.convertScaleAbs(levels + 1, alpha=127.5)
    colours: NDArray[Any] = cv2.applyColorMap(index, cv2.COLORMAP_CIVIDIS)[..., ::-1]
    return colours


def _panels(grey: _RGB, levels: NDArray[np.float32], layout: Layout) -> tuple[_RGB, _RGB]:
    """Map and overlay."""
    colours = _coloured(levels)
    coloured, overlay = grey.copy(), grey.copy()
    coloured[layout.seen] = colours
    under = grey[layout.seen].astype(np.float32)
    opacity = (_OPACITY * np.abs(levels))[..., None]
    overlay[layout.seen] = np.rint(under + opacity * (colours - under))
    return coloured, overlay


def _outline(panel: _RGB, turned: NDArray[np.bool_], layout: Layout) -> None:
    """Draw dashes, cased in black, around the windows that turn the decision, and dots inside."""
    rows, columns = layout.seen
    size = columns.stop - columns.start, rows.stop - rows.start
    mask = cv2.resize(turned.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    mask = cv2.copyMakeBorder(mask[1:-1, 1:-1], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    seen = np.ascontiguousarray(panel[layout.seen])
    seen[_dots(mask.shape) & (mask > 0)] = _PINK
    cv2.drawContours(seen, outlines, -1, _BLACK, 4)
    for outline in outlines:
        dashes = [outline[k : k + _DASH] for k in range(0, len(outline), 2 * _DASH)]
        cv2.polylines(seen, dashes, False, _PINK, 2)
    panel[layout.seen] = seen


class _Pen:
    """Writes what is no picture: titles, scale, boxes and caption."""

    def __init__(self, picture: Image.Image, layout: Layout) -> None:
        self._picture, self._layout = picture, layout
        self._draw = ImageDraw.Draw(picture)
        # One for each picture: FreeType's fonts are not made to be shared by threads.
        self._large, self._font, self._small = (ImageFont.load_default(n) for n in (20, 16, 14))

    def titles(self, span: str) -> None:
        titles = ("image", f"map, {span}", "overlay")
        for left, title in zip(self._layout.panels, titles, strict=True):
            self._draw.text((left, _TITLE - 4), title, _WHITE, self._font, anchor="ld")

    def boxes(self, places: Sequence[Region]) -> None:
        for left in self._layout.panels[1:]:
            for number, place in reversed(list(enumerate(places, start=1))):
                self._box(left, number, self._layout.box(place))

    def _box(self, panel: int, number: int, box: tuple[int, int, int, int]) -> None:
        """White between black lines: seen on black and on white."""
        left, top, right, bottom = (
            edge + first for edge, first in zip(box, (panel, _TITLE) * 2, strict=True)
        )
        self._draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_BLACK, width=4)
        self._draw.rectangle((left, top, right, bottom), outline=_WHITE, width=2)
        beside = (top - _TAG, bottom, top)  # above the box, else below it, else in it
        fits = (_TITLE <= y <= _TITLE + PANEL_HEIGHT - _TAG for y in beside)
        tag = next(y for y, free in zip(beside, fits, strict=True) if free)
        left = min(left, panel + self._layout.width - _TAG)
        self._draw.rectangle((left, tag, left + _TAG - 2, tag + _TAG), _BLACK, _WHITE)
        self._draw.text((left + 9, tag + 10), str(number), _WHITE, self._font, anchor="mm")

    def scale(self, limit: float, unit: str, positive: str) -> None:
        rows, columns = self._layout.bar
        for share in (1.0, 0.5, 0.0, -0.5, -1.0):
            y = rows.start + round((1 - share) / 2 * (PANEL_HEIGHT - 1))
            self._draw.line((columns.stop, y, columns.stop + 5, y), _WHITE)
            at = min(max(y, rows.start + 7), rows.stop - 8)
            number = _signed(share * limit)
            self._draw.text((columns.stop + 8, at), number, _WHITE, self._small, anchor="lm")
        name = self._fitting(positive, self._small, 90)
        for share, words in ((0.75, f"for {name}"), (0.25, f"against {name}")):
            y = rows.stop - round(share * PANEL_HEIGHT)
            self._upwards(words, (columns.stop + 56, y))
        self._upwards(unit, (columns.stop + 78, rows.stop - PANEL_HEIGHT // 2))

    def _upwards(self, words: str, middle: tuple[int, int]) -> None:
        _, _, right, bottom = self._small.getbbox(words)
        stencil = Image.new("L", (math.ceil(right), math.ceil(bottom)))
        ImageDraw.Draw(stencil).text((0, 0), words, 255, self._small)
        turned = stencil.transpose(Image.Transpose.ROTATE_90)
        at = middle[0], middle[1] - turned.height // 2
        self._picture.paste(_WHITE, at, turned)

    def caption(self, text: Sequence[str]) -> None:
        first = _TITLE + PANEL_HEIGHT + _MARGIN
        room = self._layout.size[1] - 2 * _MARGIN
        for number, line in enumerate(text):
            font = self._large if number == 0 else self._font
            middle = first + number * _LINE + (_LINE // 2 if number else 8)
            words = self._fitting(line, font, room)
            self._draw.text((_MARGIN, middle), words, _WHITE, font, anchor="lm")

    @staticmethod
    def _fitting(words: str, font: Any, room: int) -> str:
        """The end of what does not fit: a file's name says most there."""
        if font.getlength(words) <= room:
            return words
        while words and font.getlength("..." + words) > room:
            words = words[1:]
        return "..." + words
