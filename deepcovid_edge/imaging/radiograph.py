"""The radiograph: grey pixels as a file of any format gives them, and the limits they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason, WarningCode

Grey: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Grey pixels of shape (height, width)."""

MAX_PIXELS = 100_000_000
MIN_SIDE = 100
ASPECT_RANGE = (0.5, 2.0)
MAX_MEAN_CHROMA = 10.0
"""Mean of max(R, G, B) - min(R, G, B), grey levels of 255. Photographs lie above 20."""
MARK_CHROMA = 40.0
MIN_CONTRAST = 4.0
"""Smallest standard deviation of an image, grey levels of 255."""
MAX_SATURATED = 0.6
"""Largest share of pixels at full black or at full white."""
SATURATED = 2.5
"""Pixels closer than that to an end of the range are at it, grey levels of 255."""
LOSSY_RATIO = 20.0
ONE_GREY = 8
"""Range of a row of a lossy image that was of one grey level."""
SAMPLES = 128
"""Exposure and colour are assessed on a grid of at least this many pixels a side."""
SYNTHETIC_MARK = b"deepcovid-edge synthetic phantom"


@dataclass(frozen=True)
class DicomFacts:
    """What is kept of a DICOM header: identifiers and facts of the image, no name and no day.

    Attributes:
        sop_class_uid: Kind of object.
        sop_instance_uid: Identifier of this image.
        transfer_syntax_uid: How the pixels stood in the file.
        modality: Such as `DX`.
        body_part: As stated, in capitals, or empty.
        view: As stated, in capitals, such as `PA`, or empty.
        age_years: Age of the patient at the examination, or None where it is not stated.
        device: Manufacturer, model and station of what took it, or empty.
        month: Month of the examination, such as `2026-11`, or empty.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    body_part: str
    view: str
    age_years: float | None
    device: str = ""
    month: str = ""


@dataclass(frozen=True)
class Radiograph:
    """An image as grey pixels, with what was learned while reading it.

    Attributes:
        pixels: Grey values of shape (height, width), uint8 or uint16, 0 black.
        white: The grey value of full white, such as 255 or 4095.
        sha256: SHA-256 of the file's bytes.
        format: Format by content, such as `JPEG`.
        warnings: What to know about the image.
        dicom: What is kept of a DICOM file's header, None for other formats.
        file_shape: Rows and columns by the file, turned upright, where `pixels` has others because
            those of the file are not square or were halved; else None.
        halvings: How often both sides were halved while decoding, see `prepare`.
    """

    pixels: Grey
    white: int
    sha256: str
    format: str
    warnings: tuple[WarningCode, ...] = ()
    dicom: DicomFacts | None = None
    file_shape: tuple[int, int] | None = None
    halvings: int = 0

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Rows and columns of the grid that boxes on the image are given on: the file's own."""
        return self.file_shape or self.pixels.shape

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Rows and columns of the picture before it was halved."""
        return self.box_shape if self.halvings else self.pixels.shape


def check_area(width: int, height: int) -> None:
    """Check the number of pixels that a header states.

    Raises:
        NotAssessedError: There are more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS // 1_000_000} megapixels"
        raise NotAssessedError(Reason.TOO_BIG, f"{width} x {height} pixels; {limit}")


def check_size(width: int, height: int) -> None:
    """Refuse an image by the size that its header states, pixels.

    Raises:
        NotAssessedError: It is too large, too small or of another shape than a chest radiograph.
    """
    check_area(width, height)
    low, high = ASPECT_RANGE
    if min(width, height) < MIN_SIDE or not low <= width / height <= high:
        expected = f"at least {MIN_SIDE} pixels a side, width to height {low} to {high}"
        raise NotAssessedError(Reason.SHAPE, f"{width} x {height} pixels; {expected}")


def to_grey(pixels: NDArray[Any]) -> tuple[Grey, list[WarningCode]]:
    """Grey pixels of grey or RGB ones.

    Raises:
        NotAssessedError: The picture is coloured.
    """
    if pixels.ndim == 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), []
    step = sampling_step(pixels)
    chroma = _chroma(pixels[::step, ::step])
    if chroma.mean() > MAX_MEAN_CHROMA:
        raise NotAssessedError(Reason.COLOUR, f"mean chroma {chroma.mean():.0f} of 255")
    marked = float(np.percentile(chroma, 99.9)) > MARK_CHROMA
    grey: NDArray[Any] = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return grey, [WarningCode.COLOUR] if marked else []


def is_coloured(sample: NDArray[Any]) -> bool:
    """Whether a sample of pixels, of shape (height, width, 3), has more colour than a tint."""
    return float(_chroma(sample).mean()) > MAX_MEAN_CHROMA


def _chroma(sample: NDArray[Any]) -> NDArray[np.float64]:
    """Largest less smallest of R, G and B, in 255ths of the brightest sample."""
    span: NDArray[np.float64] = np.ptp(sample, axis=2) * (255.0 / max(1, int(sample.max())))
    return span


def check_exposure(sample: NDArray[Any], white: int, *, slack: float = 0.0) -> None:
    """Refuse an image that is blank, or nearly all of it black or white.

    Args:
        sample: Grey values of a part of its pixels, in any shape.
        white: The grey value of full white.
        slack: How far the values may be off, grey levels of 255: what is no farther from a limit
            is refused too.

    Raises:
        NotAssessedError: It is.
    """
    sample = sample.reshape(-1, sample.shape[-1])
    mean, deviation = (float(found[0, 0]) * 255.0 / white for found in cv2.meanStdDev(sample))
    is_flat = deviation < MIN_CONTRAST + slack
    contrast = deviation if is_flat else _contrast_between_ends(sample, white, deviation)
    if contrast < MIN_CONTRAST + slack:
        raise NotAssessedError(Reason.BLANK, f"contrast {contrast:.1f} of 255 grey levels")
    # Where too much is black or white, the pixels lie far from the middle together. Those of most
    # images do not, and need not be counted.
    end = SATURATED + slack
    if deviation**2 + (mean - 127.5) ** 2 <= MAX_SATURATED * (127.5 - end) ** 2:
        return
    darkest = math.ceil(end * white / 255.0)
    brightest = int((255.0 - end) * white / 255.0)
    between = cv2.countNonZero(cv2.inRange(sample, darkest, brightest))
    if sample.size - between > MAX_SATURATED * sample.size:
        black = np.count_nonzero(sample < darkest) / sample.size
        bright = np.count_nonzero(sample > brightest) / sample.size
        raise NotAssessedError(Reason.BLANK, f"{black:.0%} of it is black, {bright:.0%} white")


def _contrast_between_ends(sample: NDArray[Any], white: int, deviation: float) -> float:
    """The standard deviation, in grey levels of 255, without the darkest and the brightest pixels.

    A border at one of the ends has contrast with an image that has none itself.
    """
    low, high, _, _ = cv2.minMaxLoc(sample)
    margin = SATURATED * white / 255.0
    inner = cv2.inRange(sample, math.ceil(low + margin), math.floor(high - margin))
    if cv2.countNonZero(inner) < (1 - MAX_SATURATED) * sample.size:
        return deviation
    return float(cv2.meanStdDev(sample, mask=inner)[1][0, 0]) * 255.0 / white


def grid(pixels: NDArray[Any]) -> NDArray[Any]:
    """A grid of pixels, at least `SAMPLES` a side, on which exposure is assessed."""
    step = sampling_step(pixels)
    return np.ascontiguousarray(pixels[::step, ::step])


def sampling_step(pixels: NDArray[Any]) -> int:
    """Pixels from one sample to the next, so that there are at least `SAMPLES` a side."""
    height, width = pixels.shape[:2]
    return max(1, int(min(height, width)) // SAMPLES)
