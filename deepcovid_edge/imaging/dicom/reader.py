"""A DICOM file's bytes to a `Radiograph`: the steps in their order."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.dicom.eligibility import check_header, header_warnings
from deepcovid_edge.imaging.dicom.grey_levels import grey_levels
from deepcovid_edge.imaging.dicom.header import DicomHeader, read_header
from deepcovid_edge.imaging.dicom.orientation import upright
from deepcovid_edge.imaging.dicom.pixels import read_words
from deepcovid_edge.imaging.dicom.resolution import halvings_of, shows_the_whole
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.radiograph import (
    Grey,
    Radiograph,
    check_exposure,
    check_size,
    grid,
    to_grey,
)
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason, WarningCode


def decode_dicom(file: FileBytes, spec: InputSpec | None = None) -> Radiograph:
    """Decode the bytes of a DICOM file as an image.

    Args:
        file: The file.
        spec: The only model input that is made of it; None for all pixels, see `resolution`.

    Raises:
        NotAssessedError: The file cannot be assessed; `reason` and `detail` say why.
    """
    try:
        return _decode(file, spec)
    except NotAssessedError:
        raise
    except RecursionError as error:  # what Python says of it depends on who calls
        raise NotAssessedError(Reason.DECODE, "sequences are nested too deeply") from error
    except Exception as error:  # pydicom raises nearly anything on a broken header
        raise NotAssessedError(Reason.DECODE, one_line(error)) from error


def _decode(file: FileBytes, spec: InputSpec | None) -> Radiograph:
    header = read_header(file.data)
    check_header(header)
    layout = header.layout
    check_size(layout.columns, layout.rows)
    warnings = header_warnings(header, file)
    words, lossy_warnings = read_words(header, spec)
    halvings = halvings_of(words, header)
    if halvings and not shows_the_whole(words, header):
        halvings, (words, lossy_warnings) = 0, read_words(header)
    grey, white, tone_warnings = _grey(words, header)
    grey, turn_warnings = upright(grey, header.orientation)
    found = (*warnings, *lossy_warnings, *tone_warnings, *turn_warnings)
    file_shape = (layout.rows, layout.columns) if halvings else None
    return Radiograph(grey, white, file.sha256, "DICOM", found, header.facts, file_shape, halvings)


def _grey(words: NDArray[Any], header: DicomHeader) -> tuple[Grey, int, list[WarningCode]]:
    if words.ndim == 3:
        grey, warnings = to_grey(_rgb(words, header.layout.photometric))
        check_exposure(grid(grey), 255)
        return grey, 255, warnings
    image = grey_levels(words, header)
    check_exposure(image.sample, image.white)
    return image.pixels, image.white, image.warnings


def _rgb(words: NDArray[Any], photometric: str) -> NDArray[Any]:
    if photometric != "YBR_FULL":
        return words
    # PS3.3, C.7.6.3.1.2: the YCbCr of JPEG; OpenCV takes Cr before Cb.
    ordered = np.ascontiguousarray(words[..., [0, 2, 1]])
    pixels: NDArray[Any] = cv2.cvtColor(ordered, cv2.COLOR_YCrCb2RGB)
    return pixels
