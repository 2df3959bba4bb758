"""Reads a DICOM image three ways, each to grey levels of 0 to 255 in floats.

Ours is `decode_radiograph`. DCMTK renders by itself (`dcmj2pnm`, `dcml2pnm`): we only name the VOI
that the file states first. pydicom's pipeline is its documented one: pixels, `apply_modality_lut`,
`apply_voi_lut`, and MONOCHROME1 inverted by the caller.

Neither DCMTK 3.6.7 nor pydicom alone decodes everything. What DCMTK does not decode is given to it
as OpenJPEG decoded it; what pydicom has no plug-in for, as GDCM did.
"""

from __future__ import annotations

import io
import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from dicom_files import EXPLICIT
from numpy.typing import NDArray
from pydicom import DataElement, dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, SYNTAXES, Family
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import decode_radiograph
from witnesses.tools import ToolError, run

Grey = NDArray[np.float64]
"""Grey levels, 0 black to 255 white, of shape (rows, columns)."""


EDGE = 2
"""Pixels on either side of a shutter's edge that count as hidden: it says not where they end."""


@dataclass(frozen=True)
class Reading:
    """What a reader made of a file: a picture, or why there is none.

    Attributes:
        grey: The picture.
        refused: A code of ours, or a sentence of another reader; empty where there is a picture.
        warnings: Codes of our warnings.
        stored: Stored values as pydicom gives them.
    """

    grey: Grey | None
    refused: str = ""
    warnings: tuple[str, ...] = ()
    stored: NDArray[Any] | None = None


def ours(data: bytes, name: str = "image") -> Reading:
    """This package's picture."""
    try:
        image: Radiograph = decode_radiograph(FileBytes(Path(name), data, "0" * 64))
    except NotAssessedError as error:
        return Reading(None, f"{error.reason.code}: {error.detail}")
    codes = tuple(warning.code for warning in image.warnings)
    return Reading(np.asarray(image.pixels * (255.0 / image.white), np.float64), "", codes)


def header_of(data: bytes) -> Dataset:
    """The data set as pydicom reads it, whatever its file meta information says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = dcmread(io.BytesIO(data), force=True)
        if "TransferSyntaxUID" not in image.file_meta:
            image.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    return image


def syntax_of(image: Dataset) -> str:
    """Transfer syntax UID."""
    return str(image.file_meta.TransferSyntaxUID)


# ---------------------------------------------------------------- DCMTK


def by_dcmtk(data: bytes, image: Dataset, place: Path) -> Reading:
    """DCMTK's picture of 16 bits."""
    family = SYNTAXES[syntax_of(image)].family
    file, picture = place / "image.dcm", place / "picture.png"
    try:
        if family in (Family.JPEG_2000, Family.HTJ2K):
            data = _with_words(image, _by_openjpeg(image, place))
        file.write_bytes(data)
        tool = "dcml2pnm" if family is Family.JPEG_LS else "dcmj2pnm"
        run([tool, "-O", *_voi_options(image), "+on2", file, picture])
    except ToolError as error:
        return Reading(None, str(error))
    pixels = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return Reading(None, "no picture")
    if pixels.ndim == 3:
        return Reading(_luma(np.asarray(pixels[..., ::-1])))
    return Reading(np.asarray(pixels / 257.0, np.float64))


def _voi_options(image: Dataset) -> list[str]:
    """The first VOI LUT, else the first window, else none."""
    if "VOILUTSequence" in image:
        return ["+Wl", "1"]
    return ["+Wi", "1"] if "WindowWidth" in image else ["-W"]


def _by_openjpeg(image: Dataset, place: Path) -> NDArray[Any]:
    """Words that OpenJPEG decodes of the only frame."""
    codestream, decoded = place / "frame.j2k", place / "frame.rawl"
    codestream.write_bytes(next(generate_frames(image.PixelData, number_of_frames=1)))
    run(["opj_decompress", "-i", codestream, "-o", decoded])
    shape = (image.SamplesPerPixel, image.Rows, image.Columns)
    data, sign = decoded.read_bytes(), "i" if image.PixelRepresentation else "u"
    words = np.frombuffer(data, f"<{sign}{len(data) // math.prod(shape)}")
    words = words.astype(f"{sign}{image.BitsAllocated // 8}")
    return np.ascontiguousarray(np.moveaxis(words.reshape(shape), 0, -1))


def _with_words(image: Dataset, words: NDArray[Any]) -> bytes:
    """The image with these words, uncompressed."""
    plain = Dataset()
    plain.update(image)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        plain.pop(keyword, None)
    plain.file_meta = deepcopy(image.file_meta)
    plain.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    pixels = words.tobytes()
    plain.add_new(0x7FE00010, "OW", pixels + b"\0" * (len(pixels) % 2))
    if image.SamplesPerPixel == 3:
        plain.PhotometricInterpretation, plain.PlanarConfiguration = "RGB", 0
    file = io.BytesIO()
    dcmwrite(file, plain, implicit_vr=False, little_endian=True)
    return file.getvalue()


def _luma(rgb: NDArray[Any]) -> Grey:
    """ITU-R BT.601."""
    full = float(np.iinfo(rgb.dtype).max)
    return np.asarray(rgb @ np.array([0.299, 0.587, 0.114]) * (255.0 / full))


# ---------------------------------------------------------------- pydicom


def by_pydicom(data: bytes, image: Dataset, place: Path) -> Reading:
    """The picture of pydicom's functions."""
    pixels = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            decoded = _decoded(data, image, place)
            pixels = pixel_array(decoded)
            grey = _luma(pixels) if image.SamplesPerPixel == 3 else displayed(pixels, image)
            if low := image.HighBit + 1 - image.BitsStored:  # which pydicom does not look at
                pixels = pixel_array(decoded, correct_unused_bits=False) >> low
            return Reading(grey, stored=pixels)
        except ToolError as error:
            return Reading(None, str(error))
        except Exception as error:  # pydicom and its plug-ins raise nearly anything
            return Reading(None, f"{type(error).__name__}: {error}", stored=pixels)


def _decoded(data: bytes, image: Dataset, place: Path) -> Dataset:
    """The image in a syntax that pydicom decodes here: natively, RLE, or JPEG 2000 by Pillow."""
    family = SYNTAXES[syntax_of(image)].family
    if family in (Family.NATIVE, Family.RLE, Family.JPEG_2000):
        return image
    if family is Family.HTJ2K:
        return header_of(_with_words(image, _by_openjpeg(image, place)))
    before, after = place / "packed.dcm", place / "raw.dcm"
    before.write_bytes(data)
    run(["gdcmconv", "--raw", before, after])
    return header_of(after.read_bytes())


def displayed(stored: NDArray[Any], image: Dataset) -> Grey:
    """Grey levels of stored values, by pydicom's modality and VOI functions."""
    values = apply_modality_lut(stored, image)
    low, high = modality_ends(image)
    if "VOILUTSequence" in image:
        voi = image.VOILUTSequence[0]
        if not np.issubdtype(values.dtype, np.integer):
            values = np.rint(values).astype(np.int64)
        shares = apply_voi_lut(values, image) / ((1 << voi.LUTDescriptor[2]) - 1)
    else:
        shares = (apply_voi_lut(values, image) - low) / (high - low)
    if image.PhotometricInterpretation == "MONOCHROME1":
        shares = 1.0 - shares
    return np.asarray(np.clip(shares, 0.0, 1.0) * 255.0)


def padding_of(image: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels are padding (PS3.3, C.7.5.1.1.2)."""
    if "PixelPaddingValue" not in image:
        return np.zeros(stored.shape[:2], bool)
    ends = (image.PixelPaddingValue, image.get("PixelPaddingRangeLimit", image.PixelPaddingValue))
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def hidden_by_shutter(image: Dataset) -> NDArray[np.bool_]:
    """Which pixels lie outside of a shutter's shapes, those near an edge too (PS3.3, C.7.6.11)."""
    rows, columns = np.mgrid[1 : image.Rows + 1, 1 : image.Columns + 1]
    seen = np.ones(rows.shape, bool)
    shapes = image.get("ShutterShape", [])
    if "RECTANGULAR" in shapes:
        seen &= (rows > image.ShutterUpperHorizontalEdge + EDGE) & (
            rows < image.ShutterLowerHorizontalEdge - EDGE
        )
        seen &= (columns > image.ShutterLeftVerticalEdge + EDGE) & (
            columns < image.ShutterRightVerticalEdge - EDGE
        )
    if "CIRCULAR" in shapes:
        row, column = image.CenterOfCircularShutter
        distance = np.hypot((rows - row) * height_of_pixels(image), columns - column)
        seen &= distance < image.RadiusOfCircularShutter - EDGE
    if "POLYGONAL" in shapes:
        places = np.array(image.VerticesOfThePolygonalShutter, np.int32).reshape(-1, 2)
        inside = np.zeros(rows.shape, np.uint8)
        cv2.fillPoly(inside, [places[:, ::-1] - 1], 1)
        cv2.polylines(inside, [places[:, ::-1] - 1], isClosed=True, color=0, thickness=2 * EDGE)
        seen &= inside.view(bool)
    return np.asarray(~seen)


def height_of_pixels(image: Dataset) -> float:
    """Height of a pixel divided by its width (PS3.3, C.7.6.3.1.7)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        if keyword in image:
            height, width = image[keyword].value
            return float(height) / float(width)
    return 1.0


def in_square_pixels(levels: NDArray[Any], ratio: float) -> NDArray[Any]:
    """Grey levels, or a mask, with the longer side of the pixels filled."""
    rows, columns = levels.shape
    wanted = (round(columns * max(1.0, 1.0 / ratio)), round(rows * max(1.0, ratio)))
    how = cv2.INTER_NEAREST if levels.dtype == bool else cv2.INTER_LINEAR
    kind = np.uint8 if levels.dtype == bool else np.float64
    resized = cv2.resize(levels.astype(kind), wanted, interpolation=how)
    return np.asarray(resized).astype(levels.dtype)


def stored_ends(image: Dataset) -> tuple[int, int]:
    """Lowest and highest value that the stored bits hold."""
    half = 1 << (image.BitsStored - 1)
    return (-half, half - 1) if image.PixelRepresentation else (0, 2 * half - 1)


def modality_ends(image: Dataset) -> tuple[float, float]:
    """Lowest and highest value behind the modality LUT, as `apply_windowing` takes them."""
    if "ModalityLUTSequence" in image:
        return 0.0, float((1 << image.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    ends = stored_ends(image)
    if "RescaleSlope" in image and "RescaleIntercept" in image:
        slope, intercept = float(image.RescaleSlope), float(image.RescaleIntercept)
        return ends[0] * slope + intercept, ends[1] * slope + intercept
    return float(ends[0]), float(ends[1])


def steepest(image: Dataset) -> float:
    """Largest step of grey levels between neighbouring stored values."""
    if image.SamplesPerPixel == 3:
        return 1.0
    low, high = stored_ends(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ramp = displayed(np.arange(low, high + 1), _with_wide_luts(image))
    return float(np.abs(np.diff(ramp)).max())


def _with_wide_luts(image: Dataset) -> Dataset:
    """The header with its LUTs in 16 bits, which is what pydicom's functions do well."""
    wide = Dataset()
    wide.update({element.tag: element for element in image if element.tag.group < 0x7FE0})
    wide.file_meta = image.file_meta
    order = ">" if syntax_of(image) == BIG_ENDIAN else "<"
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        if keyword in image:
            item = deepcopy(image[keyword].value[0])
            bits = item.LUTDescriptor[2]
            entries = np.frombuffer(item.LUTData, f"{order}u2").astype(np.float64)
            entries = np.rint(entries * 65535 / ((1 << bits) - 1))
            item.LUTData = np.minimum(entries, 65535).astype(f"{order}u2").tobytes()
            item.LUTDescriptor = [*item.LUTDescriptor[:2], 16]
            wide[keyword] = DataElement(image[keyword].tag, "SQ", [item])
    return wide


def coded_bits(image: Dataset) -> int:
    """Bits of a sample by a JPEG-LS or JPEG 2000 codestream itself; those stored for others."""
    family = SYNTAXES[syntax_of(image)].family
    if family not in (Family.JPEG_LS, Family.JPEG_2000, Family.HTJ2K):
        return int(image.BitsStored)
    frame = next(generate_frames(image.PixelData, number_of_frames=1))
    if family is Family.JPEG_LS:  # ITU-T T.87, C.2.2: SOF55, its length, then the precision
        return frame[frame.index(b"\xff\xf7") + 4]
    return (frame[frame.index(b"\xff\x51") + 40] & 0x7F) + 1  # ITU-T T.800, A.5.1: SIZ
