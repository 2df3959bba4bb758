"""A DICOM file's bytes to a `Radiograph`: the steps in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.aspect import PixelShape, in_square_pixels
from deepcovid_edge.imaging.dicom.eligibility import check_header, header_warnings
from deepcovid_edge.imaging.dicom.geometry import Shutter, display_shutter
from deepcovid_edge.imaging.dicom.grey_levels import grey_levels, pads_with_zero, window_in_words
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout, read_header
from deepcovid_edge.imaging.dicom.orientation import lies_on_its_side, upright
from deepcovid_edge.imaging.dicom.pixels import Pixels, read_words
from deepcovid_edge.imaging.dicom.resolution import halvings_of, shows_the_whole
from deepcovid_edge.imaging.empty_end import PixelBlock, check_end
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.radiograph import (
    Grey,
    Radiograph,
    check_area,
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
    layout, shape = header.layout, header.pixel_shape
    _check_size(layout, shape)
    warnings = header_warnings(header, file)
    pixels = read_words(header, spec)
    halvings = halvings_of(pixels.words, header)
    if halvings and not shows_the_whole(pixels.words, header):
        halvings, pixels = 0, read_words(header)
    end_warnings = _check_end(header, pixels)
    shutter = display_shutter(header.elements, (layout.rows, layout.columns), shape)
    grey, white, tone_warnings = _grey(pixels.words, header, shutter)
    grey, turn_warnings = upright(grey, header.orientation)
    if lies_on_its_side(header.orientation):
        shape = shape.turned()
    found = (*warnings, *pixels.warnings, *end_warnings, *shutter.warnings, *tone_warnings)
    found = (*found, *turn_warnings, *shape.warnings)
    facts = replace(header.facts, transfer_syntax_uid=pixels.syntax)
    file_shape = (layout.rows, layout.columns) if halvings else None
    image = Radiograph(
        grey, white, file.sha256, "DICOM", found, facts, file_shape=file_shape, halvings=halvings
    )
    return in_square_pixels(image, shape)


def _check_size(layout: PixelLayout, shape: PixelShape) -> None:
    check_area(layout.columns, layout.rows)
    rows, columns = shape.square((layout.rows, layout.columns))
    check_size(columns, rows)


def _check_end(header: DicomHeader, pixels: Pixels) -> list[WarningCode]:
    """What uncompressed pixels that end in zeros give to know."""
    if not pixels.data:
        return []
    layout, start = header.layout, pixels.start
    size = layout.allocated // 8
    if layout.planar and layout.samples > 1:
        block = PixelBlock(start, layout.rows * layout.samples, layout.columns * size, size)
    else:  # PS3.3, C.7.6.3.1.2: two pixels of YBR_FULL_422 take four bytes
        size *= 2 if layout.photometric == "YBR_FULL_422" else layout.samples
        block = PixelBlock(start, layout.rows, layout.columns * size, size)
    return check_end(pixels.data, block, zero_is_usual=pads_with_zero(header))


def _grey(
    words: NDArray[Any], header: DicomHeader, shutter: Shutter
) -> tuple[Grey, int, list[WarningCode]]:
    """Grey levels as they are shown, their full white, and what to know about them."""
    warnings = list[WarningCode]()
    if words.ndim == 3:
        words, warnings = to_grey(words)
        if not header.layout.is_grey:
            grey = shutter.over(words, 255)
            check_exposure(grid(grey), 255)
            return grey, 255, warnings
    image = grey_levels(words, header, shutter.hidden)
    try:
        check_exposure(image.sample, image.white)
    except NotAssessedError as error:  # the exposure may be right, and the window not
        detail = f"{error.detail} {window_in_words(header.elements)}".strip()
        raise NotAssessedError(error.reason, detail) from error
    return shutter.over(image.pixels, image.white), image.white, [*warnings, *image.warnings]
