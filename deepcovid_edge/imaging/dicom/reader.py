"""A DICOM file's bytes to a `Radiograph`: the steps in their order."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import ImageRefusedError, one_line
from deepcovid_edge.imaging.dicom.eligibility import check_header, header_cautions
from deepcovid_edge.imaging.dicom.grey_levels import grey_levels
from deepcovid_edge.imaging.dicom.header import DicomHeader, read_header
from deepcovid_edge.imaging.dicom.orientation import upright
from deepcovid_edge.imaging.dicom.pixels import read_words
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.pictures import (
    Grey,
    Radiograph,
    check_exposure,
    check_size,
    grid,
    to_grey,
)
from deepcovid_edge.reasons import Caution, Reason


def decode_dicom(file: FileBytes) -> Radiograph:
    """Decode the bytes of a DICOM file as a film.

    Raises:
        ImageRefusedError: The file cannot be judged; `reason` and `detail` say why.
    """
    try:
        return _decode(file)
    except ImageRefusedError:
        raise
    except Exception as error:  # pydicom raises nearly anything on a broken header
        raise ImageRefusedError(Reason.DECODE, one_line(error)) from error


def _decode(file: FileBytes) -> Radiograph:
    header = read_header(file.data)
    check_header(header)
    layout = header.layout
    check_size(layout.columns, layout.rows)
    cautions = header_cautions(header, file)
    words, lossy_cautions = read_words(header)
    grey, white, tone_cautions = _grey(words, header)
    grey, turn_cautions = upright(grey, header.orientation)
    found = (*cautions, *lossy_cautions, *tone_cautions, *turn_cautions)
    return Radiograph(grey, white, file.sha256, "DICOM", found, header.facts)


def _grey(words: NDArray[Any], header: DicomHeader) -> tuple[Grey, int, list[Caution]]:
    if words.ndim == 3:
        grey, cautions = to_grey(_rgb(words, header.layout.photometric))
        check_exposure(grid(grey), 255)
        return grey, 255, cautions
    film = grey_levels(words, header)
    check_exposure(film.sample, film.white)
    return film.pixels, film.white, film.cautions


def _rgb(words: NDArray[Any], photometric: str) -> NDArray[Any]:
    if photometric != "YBR_FULL":
        return words
    # PS3.3, C.7.6.3.1.2: the YCbCr of JPEG; OpenCV takes Cr before Cb.
    ordered = np.ascontiguousarray(words[..., [0, 2, 1]])
    pixels: NDArray[Any] = cv2.cvtColor(ordered, cv2.COLOR_YCrCb2RGB)
    return pixels
