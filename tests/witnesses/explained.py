"""The disagreements that are explained: which reader is wrong, and by which rule.

An entry excuses the reader that it names, on the images that it applies to, by no more than it
explains. Where it does not apply, or another reader disagrees as well, the image counts as a
disagreement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from dicom_files import EXPLICIT
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT, SYNTAXES
from witnesses.readers import (
    Grey,
    coded_bits,
    modality_ends,
    steepest,
    stored_ends,
    syntax_of,
)

DCMTK, PYDICOM = "DCMTK", "pydicom"


@dataclass(frozen=True)
class Shown:
    """An image as two readers read it.

    Attributes:
        ours: Our grey levels.
        other: The other reader's.
        stored: Stored values, or None where pydicom did not decode them.
        image: The header as it stands in the file.
    """

    ours: Grey
    other: Grey
    stored: NDArray[Any] | None
    image: Dataset


@dataclass(frozen=True)
class Explanation:
    """Why a reader disagrees.

    Attributes:
        name: What the file has.
        readers: Who is wrong about it.
        why: What they do, what is right, and where that is written.
    """

    name: str
    readers: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class ExplainedImage(Explanation):
    """An explained disagreement about DICOM images.

    Attributes:
        applies: Whether an image has it.
        most: Largest difference that it explains, grey levels of 255.
        undone: The reader's picture without the fault, where that can be had.
        refuses: Whether the reader gives no picture at all.
        is_whole: Whether the fault is of the whole picture, and undone before anything else.
    """

    applies: Callable[[Dataset], bool]
    most: Callable[[Dataset], float] = lambda _: 0.0
    undone: Callable[[Shown], Grey] = lambda shown: shown.other
    refuses: bool = False
    is_whole: bool = False


def _contradicts(image: Dataset) -> bool:
    stated = image.get("PresentationLUTShape", "")
    agreeing = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
    return bool(stated) and agreeing.get(image.PhotometricInterpretation, stated) != stated


def _lut(image: Dataset, keyword: str) -> Dataset | None:
    items = image.get(keyword)
    return items[0] if items else None


def _bits(image: Dataset, keyword: str) -> int:
    item = _lut(image, keyword)
    return int(item.LUTDescriptor[2]) if item else 0


def _is_fractional(image: Dataset) -> bool:
    parts = (image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0))
    return any(float(part) != int(float(part)) for part in parts)


def _of_a_unit(image: Dataset) -> float:
    """Grey levels between neighbouring whole numbers behind the rescale."""
    return steepest(image) / abs(float(image.get("RescaleSlope", 1)))


def _at_an_end(shown: Shown) -> Grey:
    """Ours where the rescaled value is within one of the lowest or highest that there can be."""
    if shown.stored is None:
        return shown.other
    low, high = stored_ends(shown.image)
    near = 1 / abs(float(shown.image.get("RescaleSlope", 1)))
    ends = (shown.stored < low + near) | (shown.stored > high - near)
    return np.where(ends, shown.ours, shown.other)


def _overshot(shown: Shown) -> Grey:
    """Ours where it shows an end of the range and the other reader something far from it."""
    ends = (shown.ours == shown.ours.max()) | (shown.ours == shown.ours.min())
    return np.where(ends & (np.abs(shown.ours - shown.other) > 100), shown.ours, shown.other)


def _overshoots(image: Dataset) -> bool:
    return SYNTAXES[syntax_of(image)].lossy and coded_bits(image) > image.BitsStored


def _indices_overflow(image: Dataset) -> bool:
    item = _lut(image, "VOILUTSequence")
    if item is None:
        return False
    low, high = modality_ends(image)
    most = 255 if item.LUTDescriptor[2] <= 8 else 65535
    return high - min(low, float(item.LUTDescriptor[1])) > most


_ANYTHING: Callable[[Dataset], float] = lambda _: 255.0  # noqa: E731
EXPLAINED_IMAGES = (
    ExplainedImage(
        "presentation LUT shape that contradicts the photometric interpretation",
        (DCMTK,),
        "DCMTK follows the shape. PS3.3, C.8.11.3: IDENTITY belongs to MONOCHROME2 and INVERSE to "
        "MONOCHROME1; C.7.6.3.1.2 says what the photometric interpretation means.",
        _contradicts,
        undone=lambda shown: 255.0 - shown.other,
        is_whole=True,
    ),
    ExplainedImage(
        "VOI LUT function LINEAR_EXACT",
        (DCMTK,),
        "DCMTK 3.6.7 knows LINEAR and SIGMOID alone. PS3.3, C.11.2.1.3.2.",
        lambda image: image.get("VOILUTFunction") == "LINEAR_EXACT",
        most=_of_a_unit,
    ),
    ExplainedImage(
        "rescale with a fraction",
        (DCMTK,),
        "DCMTK rounds the rescaled values to whole numbers. PS3.3, C.11.1.1.2 gives a formula "
        "without rounding.",
        _is_fractional,
        most=_of_a_unit,
    ),
    ExplainedImage(
        "lowest or highest stored value under a rescale with a fraction",
        (DCMTK,),
        "DCMTK rounds the end of the range outwards and shows it at the other end. PS3.3, "
        "C.11.1.1.2.",
        _is_fractional,
        most=_of_a_unit,
        undone=_at_an_end,
    ),
    *(
        ExplainedImage(
            "lossy codestream that decodes to more than the stored bits hold",
            (reader,),
            f"{by} drops the highest bit, so that white becomes black. What is decoded is bounded "
            "by the codestream's precision (ITU-T T.87, A.4.4; T.800, annex G), which is more "
            "than the stored bits here; the nearest value that they hold is the end of the range.",
            _overshoots,
            undone=_overshot,
        )
        for reader, by in ((DCMTK, "DCMTK"), (PYDICOM, "GDCM, which decodes for pydicom,"))
    ),
    ExplainedImage(
        "file meta information that contradicts the data set",
        (DCMTK,),
        "DCMTK 3.6.7 takes the transfer syntax at its word and gives up. PS3.5, 7.1.2: an element "
        "with a value representation is told from one without by its letters.",
        lambda image: syntax_of(image) in (IMPLICIT, EXPLICIT),
        refuses=True,
    ),
    ExplainedImage(
        "modality LUT of 9 to 15 bits",
        (PYDICOM,),
        "pydicom 3.0.2 asks NumPy for a type such as uint12. PS3.3, C.11.1.1: 8 or 16 bits, and "
        "C.11.2.1.1 has 10 to 16, which consoles write in both.",
        lambda image: 8 < _bits(image, "ModalityLUTSequence") < 16,
        refuses=True,
    ),
    ExplainedImage(
        "LUT of signed pixels",
        (PYDICOM,),
        "pydicom 3.0.2 subtracts the first value mapped in the type of the pixels, which "
        "overflows. PS3.3, C.11.1.1 and C.11.2.1.1: it is a signed number.",
        lambda image: (
            bool(image.PixelRepresentation)
            and ("ModalityLUTSequence" in image or "VOILUTSequence" in image)
        ),
        most=_ANYTHING,
        refuses=True,
    ),
    ExplainedImage(
        "VOI LUT with more input values than its output has levels",
        (PYDICOM,),
        "pydicom 3.0.2 counts a LUT's entries in the type of its output, and begins again at 256 "
        "or 65,536. PS3.3, C.11.2.1.1: the descriptor's first value alone is their number.",
        _indices_overflow,
        most=_ANYTHING,
    ),
    ExplainedImage(
        "stored bits that are not the lowest ones",
        (PYDICOM,),
        "pydicom 3.0.2 takes the lowest bits. PS3.5, 8.1.1, until 2014: the stored bits are those "
        "up to the high bit.",
        lambda image: image.HighBit != image.BitsStored - 1,
        most=_ANYTHING,
    ),
)


SQUARED, SHUTTER, PADDING, STRETCHED = ON_PURPOSE = (
    Explanation(
        "pixels that are not square",
        (),
        "We alone make them square, with W_ASPECT. PS3.3, C.7.6.3.1.7.",
    ),
    Explanation(
        "display shutter",
        (),
        "We alone hide what lies outside. PS3.3, C.7.6.11.",
    ),
    Explanation(
        "padding",
        (),
        "We alone show it black. PS3.3, C.7.5.1.1.2.",
    ),
    Explanation(
        "few of the stored levels used",
        (),
        "We stretch them, with W_DEPTH; the pictures are alike up to that.",
    ),
)
"""What we do on purpose, and others do not. The rest of such an image is compared as any other."""


def excuses(reader: str, image: Dataset) -> list[ExplainedImage]:
    """The entries that may explain why a reader differs on an image."""
    return [one for one in EXPLAINED_IMAGES if reader in one.readers and one.applies(image)]
