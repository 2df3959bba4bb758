"""One image, three readings, one outcome."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.imaging.radiograph import (
    ASPECT_RANGE,
    MAX_SATURATED,
    MIN_CONTRAST,
    SATURATED,
)
from deepcovid_edge.reasons import Reason, WarningCode
from witnesses.encoding import image_file
from witnesses.explained import (
    DCMTK,
    PADDING,
    PYDICOM,
    SHUTTER,
    SQUARED,
    STRETCHED,
    ExplainedImage,
    Shown,
    excuses,
)
from witnesses.readers import (
    Grey,
    Reading,
    by_dcmtk,
    by_pydicom,
    header_of,
    height_of_pixels,
    hidden_by_shutter,
    in_square_pixels,
    ours,
    padding_of,
    steepest,
)
from witnesses.specs import ImageSpec, drawn
from witnesses.tools import ToolError

TOLERANCE = 1.0
"""Largest difference of any pixel, grey levels of 255. Ours rounds by at most half a level at 8
bits. Decoders of lossy codestreams may round differently (ITU-T T.83, T.803): there it is one
level of the stored values more, as the image's VOI shows it, and `TOLERANCE` on average."""

ROUNDING = 0.75
"""Grey levels of 255 that an image of 8 bits loses once more where its pixels are made square: half
a level, and the weights of OpenCV's interpolation, which are whole numbers."""
AGREED, REASON, EXPLAINED = "agreed", "reason", "explained"
DISAGREED, UNWRITTEN = "disagreed", "not written"


@dataclass(frozen=True)
class Outcome:
    """How the readings of a file compare.

    Attributes:
        kind: `agreed`, `reason`, `explained`, `disagreed` or `not written`.
        details: Reason codes, names of explained entries, or what differs.
        largest: Largest difference to each reader that gave a picture, grey levels of 255.
        writer: Whose encoder wrote the file.
    """

    kind: str
    details: tuple[str, ...] = ()
    largest: dict[str, float] = field(default_factory=dict)
    writer: str = ""


def compared(seed: int, number: int) -> Outcome:
    """Draw an image, write it, read it three times."""
    spec = drawn(seed, number)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            data = image_file(spec, place)
        except (ToolError, OSError) as error:  # OSError is pydicom's, of a value out of range
            return Outcome(UNWRITTEN, (str(error),), {}, spec.packing.writer)
        image = header_of(data)
        readings = {
            DCMTK: by_dcmtk(data, image, place),
            PYDICOM: by_pydicom(data, image, place),
        }
    return outcome_of(spec, image, ours(data), readings)


def outcome_of(
    spec: ImageSpec, image: Dataset, own: Reading, others: dict[str, Reading]
) -> Outcome:
    """The outcome of an image that was read."""
    writer = spec.packing.writer
    if own.grey is None:
        return _of_reason(spec, own, others)
    largest: dict[str, float] = {}
    doubts: list[str] = []
    notes: list[str] = []
    stored = others[PYDICOM].stored
    for reader, reading in others.items():
        shown = None
        if reading.grey is not None:
            shown = Shown(own.grey, reading.grey, stored, image)
        found = _compared_to(shown, reading, own, image, reader)
        notes += found.notes
        doubts += found.doubts
        if found.largest is not None:
            largest[reader] = round(found.largest, 2)
    if doubts:
        return Outcome(DISAGREED, tuple(doubts), largest, writer)
    kind = EXPLAINED if notes else AGREED
    return Outcome(kind, tuple(dict.fromkeys(notes)), largest, writer)


@dataclass(frozen=True)
class _Found:
    """How one reading differs from ours: what explains it, or what does not."""

    notes: list[str]
    doubts: list[str]
    largest: float | None = None


def _compared_to(
    shown: Shown | None, reading: Reading, own: Reading, image: Dataset, reader: str
) -> _Found:
    possible = excuses(reader, image)
    if shown is None:
        names = [one.name for one in possible if one.refuses][:1]
        return _Found(names, [] if names else [f"{reader}: {reading.refused}"])
    found = _aligned(shown, own, reader, [one for one in possible if not one.is_whole])
    for one in (one for one in possible if one.is_whole and found.doubts):
        undone = replace(shown, other=one.undone(shown))
        others = [other for other in possible if not other.is_whole]
        again = _aligned(undone, own, reader, others)
        if not again.doubts:
            return replace(again, notes=[one.name, *again.notes])
    return found


def _aligned(shown: Shown, own: Reading, reader: str, possible: Sequence[ExplainedImage]) -> _Found:
    """What differs once we have set aside what we do on purpose."""
    shown, notes = _set_aside(shown, own)
    if shown.ours.shape != shown.other.shape:
        return _Found([], [f"{reader}: {shown.other.shape} pixels for {shown.ours.shape}"])
    largest, mean = _apart(shown)
    limit = _limit(shown.image) + (ROUNDING if SQUARED.name in notes else 0.0)
    if largest <= limit and mean <= max(TOLERANCE, limit / 2):
        return _Found(notes, [], largest)
    faults = [one for one in possible if not one.refuses or one.most(shown.image)]
    for used in (*([one] for one in faults), faults):
        corrected = shown
        for one in used:
            corrected = replace(corrected, other=one.undone(corrected))
        most = limit + sum(one.most(shown.image) for one in used)
        if used and _apart(corrected)[0] <= most:
            return _Found([*notes, *(one.name for one in used)], [], largest)
    return _Found([], [f"{reader}: {largest:.1f} at most, {mean:.1f} on average"], largest)


def _apart(shown: Shown) -> tuple[float, float]:
    """Largest and mean difference, grey levels of 255."""
    apart = np.abs(shown.ours - shown.other)
    return float(apart.max()), float(apart.mean())


def _limit(image: Dataset) -> float:
    lossy = SYNTAXES[str(image.file_meta.TransferSyntaxUID)].lossy
    return TOLERANCE + (steepest(image) if lossy else 0.0)


def _set_aside(shown: Shown, own: Reading) -> tuple[Shown, list[str]]:
    """The pictures without what we show in another way on purpose, and what that is."""
    notes = []
    ratio = height_of_pixels(shown.image)
    is_squared = shown.ours.shape != shown.other.shape
    if is_squared:
        notes.append(SQUARED.name)
        shown = replace(shown, other=in_square_pixels(shown.other, ratio))
    if WarningCode.DEPTH.code in own.warnings:
        notes.append(STRETCHED.name)
        shown = replace(shown, other=stretched(shown.ours, shown.other))
    stored = shown.stored
    hidden = {SHUTTER.name: hidden_by_shutter(shown.image)}
    if stored is not None:
        hidden[PADDING.name] = padding_of(shown.image, stored)
    for name, mask in hidden.items():
        if not mask.any():
            continue
        apart = in_square_pixels(mask, ratio) if is_squared else mask
        if not _are_black(shown.ours[apart], name):
            return replace(shown, other=255.0 - shown.ours), []  # neither shown nor hidden
        if shown.other[apart].any():
            notes.append(name)
            shown = replace(shown, other=np.where(apart, shown.ours, shown.other))
    return shown, notes


def _are_black(hidden: Grey, name: str) -> bool:
    """Whether hidden pixels are black, those near the edge of a shutter apart."""
    return bool(hidden.size and np.mean(hidden == 0) >= (0.6 if name == SHUTTER.name else 1.0))


def stretched(grey: Grey, other: Grey) -> Grey:
    """The other picture with the contrast that the stretched one has."""
    inside = (grey > 0) & (grey < 255)
    ours, theirs = grey[inside], other[inside]
    if not theirs.size or not np.ptp(theirs):
        return other
    slope = np.cov(theirs, ours, bias=True)[0, 1] / theirs.var()
    level = ours.mean() - slope * theirs.mean()
    return np.asarray(np.clip(other * slope + level, 0, 255)) if slope >= 1 else other


def _of_reason(spec: ImageSpec, own: Reading, others: dict[str, Reading]) -> Outcome:
    """A reason of ours holds where the others' pictures, or the image's parameters, show it."""
    code = own.refused.partition(":")[0]
    shown = [reading.grey for reading in others.values() if reading.grey is not None]
    holds = {
        Reason.BLANK.code: bool(shown) and any(map(is_blank, shown)),
        Reason.NOT_IMAGE.code: spec.packing.meta == "none",
        Reason.SHAPE.code: _has_another_shape(spec),
    }
    kind = REASON if holds.get(code, False) else DISAGREED
    detail = code if kind == REASON else own.refused
    return Outcome(kind, (detail,), {}, spec.packing.writer)


def _has_another_shape(spec: ImageSpec) -> bool:
    """Whether an image is not of a radiograph's shape once its pixels are square."""
    high, wide = spec.layout.aspect
    low, most = ASPECT_RANGE
    return not low <= spec.layout.columns * wide / (spec.layout.rows * high) <= most


def is_blank(grey: NDArray[np.float64]) -> bool:
    """Whether a picture is blank by our limits, a little widened for what readers round."""
    dark, bright = np.mean(grey < SATURATED + 1), np.mean(grey > 254 - SATURATED)
    return bool(grey.std() < MIN_CONTRAST + 0.5 or dark + bright > MAX_SATURATED - 0.03)
