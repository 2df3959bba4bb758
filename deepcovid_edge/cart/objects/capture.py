"""A result as a Secondary Capture (PS3.3, A.8.1): the picture of its heat map, for every viewer.

A bar below the picture says in the pixels what it is not, the verdict, the model and the time, so
that no viewer can leave it out. The picture above the bar is the overlay, pixel for pixel.
"""

from __future__ import annotations

import io
import re
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deepcovid_edge.cart.objects import codes
from deepcovid_edge.cart.objects.common import (
    equipment,
    finish,
    local_time,
    stand_in,
    unchecked_values,
)
from deepcovid_edge.cart.objects.facts import (
    BURNED_LINE,
    MAP_SERIES,
    Facts,
    not_assessed_text,
    object_uid,
    plain,
    score_text,
    series_description,
    verdict_text,
    warning_text,
)
from deepcovid_edge.cart.objects.request import REQUEST_ATTRIBUTES
from deepcovid_edge.cart.objects.source import LOSSY_TAGS, SourceImage
from deepcovid_edge.cart.objects.uids import CAPTURE, SERIES, belonging_uid
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import require
from deepcovid_edge.imaging.dicom.syntaxes import EXPLICIT

SERIES_NUMBER = 9002
_CARD_WIDTH = 1024
_MARGIN, _GAP, _SIZE = 16, 8, 24
"""Of the bar, and of its letters, pixels: 11 mm high where the picture fills a screen."""
_BACKGROUND, _WHITE = (0, 0, 0), (255, 255, 255)


def build_capture(
    source: SourceImage, prediction: Prediction, overlay_png: bytes | None, facts: Facts
) -> bytes:
    """The capture of a result.

    Args:
        source: The image.
        prediction: Its record.
        overlay_png: The heat map's picture; None for a card of words alone, as of a result
            without a heat map.
        facts: Of the cart.

    Returns:
        A whole DICOM file in Explicit VR Little Endian, the same for the same arguments.

    Raises:
        MissingDependencyError: highdicom is not installed.
    """
    require("highdicom", extra="cart")
    sc = require("highdicom.sc", extra="cart")
    uid = object_uid(source.sop_uid, prediction, facts, CAPTURE, overlay_png or b"")
    lines = burned_lines(prediction, local_time(facts.made, source))
    if overlay_png is None:
        picture = card([*lines, *_card_lines(prediction)])
    else:
        picture = burned(_pixels(overlay_png), lines)
    image = stand_in(source)
    with unchecked_values():
        made = sc.SCImage(
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            study_instance_uid=source.study_uid,
            series_instance_uid=belonging_uid(uid, SERIES),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid,
            instance_number=1,
            series_description=series_description(prediction, MAP_SERIES),
            patient_id=image.PatientID,
            patient_birth_date="",
            transfer_syntax_uid=EXPLICIT,
            **equipment(facts),
        )
        _describe(made, source, prediction)
        lossy = LOSSY_TAGS if source.is_lossy else ()
        return finish(made, source, facts, (REQUEST_ATTRIBUTES, *lossy))


def _describe(made: Any, source: SourceImage, prediction: Prediction) -> None:
    """What the picture is, and of which image (PS3.3, C.7.6.1 and C.8.6.2)."""
    dataset = require("pydicom.dataset", extra="cart").Dataset
    image = dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.sop_class, source.sop_uid
    image.PurposeOfReferenceCodeSequence = [codes.IMAGE_PROCESSING.concept()]
    made.SourceImageSequence = [image]
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.PatientOrientation = ""  # two panels and words lie in no direction
    made.BurnedInAnnotation = "YES"
    made.DerivationDescription = "Heat map of a neural network over the image, with its result"
    made.ImageComments = BURNED_LINE
    made.LossyImageCompression = "00"
    if prediction.decision is None:
        made.Laterality = ""
    else:
        made.BodyPartExamined = "CHEST"  # not paired, so that no Laterality is needed


def burned_lines(prediction: Prediction, made: datetime) -> list[str]:
    """What the bar says."""
    run = prediction.run
    time = made.isoformat(" ", "seconds")
    return [
        BURNED_LINE,
        plain(f"{verdict_text(prediction)} | model {run.model}, {run.variant} | {time}"),
    ]


def _card_lines(prediction: Prediction) -> list[str]:
    """What a card says where there is no picture."""
    if prediction.decision is None:
        said = [not_assessed_text(prediction)]
    else:
        said = [score_text(prediction), "No heat map."]
    return [plain(text) for text in (*said, *(warning_text(one) for one in prediction.warnings))]


def burned(picture: NDArray[np.uint8], lines: list[str]) -> NDArray[np.uint8]:
    """A picture with a bar of words below it.

    Args:
        picture: RGB pixels of shape (rows, columns, 3).
        lines: ASCII; a line that is too long is wrapped.

    Returns:
        RGB pixels of shape (rows + bar, columns, 3).
    """
    return np.concatenate([picture, _bar(picture.shape[1], lines)])


def card(lines: list[str]) -> NDArray[np.uint8]:
    """Words alone, as RGB pixels of shape (rows, 1024, 3)."""
    return _bar(_CARD_WIDTH, lines)


def _bar(width: int, lines: list[str]) -> NDArray[np.uint8]:
    font = ImageFont.load_default(_SIZE)
    wrapped = [part for line in lines for part in _wrapped(line, font, width - 2 * _MARGIN)]
    step = _SIZE + _GAP
    bar = Image.new("RGB", (width, 2 * _MARGIN + step * len(wrapped)), _BACKGROUND)
    pen = ImageDraw.Draw(bar)
    for number, line in enumerate(wrapped):
        pen.text((_MARGIN, _MARGIN + number * step), line, _WHITE, font)
    return np.asarray(bar)


def _wrapped(line: str, font: Any, width: int) -> list[str]:
    """A line in parts that are no wider than `width` pixels, broken between words if it can be."""
    parts = [""]
    for word in re.findall(r"\S+ *", line):
        if parts[-1] and font.getlength(parts[-1] + word.rstrip()) > width:
            parts.append("")
        for letter in word:  # a word alone may be wider than the bar
            if parts[-1] and letter != " " and font.getlength(parts[-1] + letter) > width:
                parts.append("")
            parts[-1] += letter
    return [part.rstrip() for part in parts]


def _pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return np.asarray(picture.convert("RGB"))
