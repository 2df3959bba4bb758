"""A DICOM file's bytes to a `Radiograph`: the steps in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.dicom.eligibility import check_header, header_warnings
from deepcovid_edge.imaging.dicom.grey_levels import grey_levels
from deepcovid_edge.imaging.dicom.header import DicomHeader, read_header
from deepcovid_edge.imaging.dicom.orientation import upright
from deepcovid_edge.imaging.dicom.pixels import read_words
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.radiograph import (
    Grey,
    Radiograph,
    check_exposure,
    check_size,
    grid,
    to_grey,
)
from deepcovid_edge.reasons import Reason, WarningCode


def decode_dicom(file: FileBytes) -> Radiograph:
    """Decode the bytes of a DICOM file as an image.

    Raises:
        NotAssessedError: The file cannot be assessed; `reason` and `detail` say why.
    """
    try:
        return _decode(file)
    except NotAssessedError:
        raise
    except RecursionError as error:  # what Python says of it depends on who calls
        raise NotAssessedError(Reason.DECODE, "sequences are nested too deeply") from error
    except Exception as error:  # pydicom raises nearly anything on a broken header
        raise NotAssessedError(Reason.DECODE, one_line(error)) from error


def _decode(file: FileBytes) -> Radiograph:
    header = read_header(file.data)
    check_header(header)
    layout = header.layout
    check_size(layout.columns, layout.rows)
    warnings = header_warnings(header, file)
    pixels = read_words(header)
    grey, white, tone_warnings = _grey(pixels.words, header)
    grey, turn_warnings = upright(grey, header.orientation)
    found = (*warnings, *pixels.warnings, *tone_warnings, *turn_warnings)
    facts = replace(header.facts, transfer_syntax_uid=pixels.syntax)
    return Radiograph(grey, white, file.sha256, "DICOM", found, facts)


def _grey(words: NDArray[Any], header: DicomHeader) -> tuple[Grey, int, list[WarningCode]]:
    if words.ndim == 3:
        grey, warnings = to_grey(words)
        check_exposure(grid(grey), 255)
        return grey, 255, warnings
    image = grey_levels(words, header)
    check_exposure(image.sample, image.white)
    return image.pixels, image.white, image.warnings
