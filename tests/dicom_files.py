"""Makes DICOM files of images: every syntax, depth and photometric interpretation that is read.

Shared by tests and by `fuzz.py`. Frames are compressed by imagecodecs or pydicom; `by_dcmtk` lets
DCMTK, which shares no code with them, write whole files.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.syntaxes import (
    BIG_ENDIAN,
    DEFLATED,
    ENCAPSULATED,
    IMPLICIT,
    SYNTAXES,
    Family,
)
from deepcovid_edge.reasons import Reason

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = CR + ".1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = str(ExplicitVRLittleEndian)
RLE = str(RLELossless)
JPEG, JPEG_12, LOSSLESS, LOSSLESS_SV1, JPEG_LS, NEAR_LOSSLESS, J2K, J2K_LOSSY = (
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)
)
HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))
_HTJ2K = getattr(imagecodecs, "HTJ2K", None)
RETIRED_JPEG = [f"1.2.840.10008.1.2.4.{number}" for number in range(52, 57)]
WRITABLE = [
    uid
    for uid, syntax in SYNTAXES.items()
    if uid not in RETIRED_JPEG
    and (syntax.family is not Family.HTJ2K or (_HTJ2K is not None and _HTJ2K.available))
]
"""Syntaxes that imagecodecs writes here: the last one for Python 3.10 has no HTJ2K."""
NATIVE = [uid for uid, syntax in SYNTAXES.items() if syntax.family is Family.NATIVE]
MOST_BITS = {JPEG: 8, JPEG_12: 12}
"""Depths that the lossy JPEG processes stop at."""
WINDOW = (0.1, 0.8)
"""Shares of the stored range that a window maps to black and to white."""

_TO_SYNTAX = {
    IMPLICIT: ("dcmconv", "+ti"),
    EXPLICIT: ("dcmconv", "+te"),
    BIG_ENDIAN: ("dcmconv", "+tb"),
    DEFLATED: ("dcmconv", "+td"),
    RLE: ("dcmcrle",),
    JPEG: ("dcmcjpeg", "+eb", "+q", "100"),
    JPEG_12: ("dcmcjpeg", "+ee", "+q", "100"),
    LOSSLESS: ("dcmcjpeg", "+el"),
    LOSSLESS_SV1: ("dcmcjpeg", "+e1"),
    JPEG_LS: ("dcmcjpls", "+el"),
    NEAR_LOSSLESS: ("dcmcjpls", "+en", "+md", "1"),
}
DCMTK = sorted(_TO_SYNTAX)
"""Syntaxes that DCMTK writes."""


def dataset(pixels: NDArray[Any], *, stored: int | None = None, **elements: Any) -> Dataset:
    """An image of an adult's chest, uncompressed.

    Args:
        pixels: Of shape (rows, columns) or (rows, columns, 3), 8 or 16 bits, signed or not.
        stored: Bits stored; all where not told.
        elements: Elements by keyword; None leaves one out.
    """
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = DX, "1.2.3.4.5"
    image.StudyDate, image.Modality = "20200326", "DX"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    image.PatientName, image.PatientID, image.PatientBirthDate = "Rontgen^Anna", "17", "19570402"
    image.PatientAge, image.BodyPartExamined, image.ViewPosition = "062Y", "CHEST", "PA"
    image.ImageLaterality, image.PatientOrientation = "U", ["L", "F"]
    image.PresentationIntentType = "FOR PRESENTATION"
    image.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    image.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        image.PlanarConfiguration = 0
    image.Rows, image.Columns = pixels.shape[:2]
    image.BitsAllocated = 8 * pixels.itemsize
    image.BitsStored = stored or image.BitsAllocated
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new(0x7FE00010, "OW", pixels.tobytes())
    for keyword, value in elements.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    return image


def written(image: Dataset, syntax: str = EXPLICIT) -> bytes:
    """The bytes of a file, its pixels compressed as the syntax says."""
    meta: Any = FileMetaDataset()  # which makes a UID of a string
    image.file_meta = meta
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = image.get("SOPClassUID") or DX
    meta.MediaStorageSOPInstanceUID = image.get("SOPInstanceUID") or "1.2.3.4.5"
    if syntax in SYNTAXES and SYNTAXES[syntax].family is not Family.NATIVE:
        frame = image["PixelData"].value
        if not image["PixelData"].is_undefined_length:
            frame = encapsulate([compressed(_pixels(image), image.BitsStored, syntax)])
        image.add_new(0x7FE00010, "OB", frame)
        image["PixelData"].is_undefined_length = True
    elif syntax == ENCAPSULATED and not image["PixelData"].is_undefined_length:
        fragments(image, image["PixelData"].value)
    elif syntax == ExplicitVRBigEndian:
        order = ">" if image.BitsAllocated == 16 else "|"
        swapped = _pixels(image).astype(f"{order}{_pixels(image).dtype.str[1:]}")
        image.add_new(0x7FE00010, "OW" if image.BitsAllocated == 16 else "OB", swapped.tobytes())
    file = io.BytesIO()
    implicit = syntax == ImplicitVRLittleEndian
    dcmwrite(
        file,
        image,
        enforce_file_format=True,
        **({} if syntax in SYNTAXES else {"implicit_vr": implicit, "little_endian": True}),
    )
    return file.getvalue()


def fragments(image: Dataset, *frames: bytes) -> Dataset:
    """The image with these as its compressed pixels."""
    image.add_new(0x7FE00010, "OB", encapsulate(list(frames)))
    image["PixelData"].is_undefined_length = True
    return image


def frame_of(data: bytes) -> bytes:
    """The codestream of a file."""
    return bytes(get_frame(dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1))


def _pixels(image: Dataset) -> NDArray[Any]:
    kind = f"<{'i' if image.PixelRepresentation else 'u'}{image.BitsAllocated // 8}"
    shape = (image.Rows, image.Columns, image.SamplesPerPixel)[: 2 + (image.SamplesPerPixel > 1)]
    return np.frombuffer(image.PixelData, kind, int(np.prod(shape))).reshape(shape)


def compressed(pixels: NDArray[Any], bits: int, syntax: str) -> bytes:
    """A codestream of the pixels."""
    family = SYNTAXES[syntax].family
    if family is Family.RLE:
        from pydicom.pixels.encoders.base import EncodeRunner
        from pydicom.pixels.encoders.native import _encode_frame  # has no public name

        runner: Any = EncodeRunner(RLELossless)  # whose options are annotated wrongly
        runner.set_options(
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1 if pixels.ndim == 2 else 3,
            bits_allocated=8 * pixels.itemsize,
        )
        return bytes(_encode_frame(pixels.tobytes(), runner))
    if family is Family.JPEG:
        return bytes(imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=max(8, bits)))
    if family is Family.JPEG_LOSSLESS:
        predictor = 1 if syntax == LOSSLESS_SV1 else 4
        return bytes(
            imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits, predictor=predictor)
        )
    if family is Family.JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(pixels, level=int(syntax == NEAR_LOSSLESS)))
    if family is Family.JPEG_2000:
        lossy: dict[str, Any] = (
            {"level": 60} if syntax == J2K_LOSSY else {"level": 0, "reversible": True}
        )
        return bytes(
            imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=bits, **lossy)
        )
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


def stored_image(
    image: NDArray[np.uint8], bits: int, photometric: str, *, window: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    """An 8-bit image as a detector's console would store it, and the elements that say so."""
    top = (1 << bits) - 1
    low, high = (round(share * top) for share in WINDOW) if window else (0, top)
    values = np.rint(low + image / 255.0 * (high - low))
    if photometric == "MONOCHROME1":
        values = low + high - values
    elements: dict[str, Any] = {"PhotometricInterpretation": photometric, "stored": bits}
    if window:  # PS3.3, C.11.2.1.2.1: black up to centre - 0.5 - (width - 1) / 2
        elements["WindowWidth"] = high - low + 1
        elements["WindowCenter"] = (low + high + 1) / 2
    return values.astype(np.uint8 if bits == 8 else np.uint16), elements


def dcmtk() -> str | None:
    """What is missing of DCMTK, or None."""
    tools = {tool for tool, *_ in _TO_SYNTAX.values()}
    missing = sorted(tool for tool in tools if shutil.which(tool) is None)
    return f"{', '.join(missing)} not found: apt-get install dcmtk" if missing else None


def by_dcmtk(data: bytes, syntax: str, *more: str) -> bytes:
    """A file that DCMTK made of an uncompressed one, maybe with more of its tool's options."""
    tool, *options = _TO_SYNTAX[syntax]
    options += more
    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place, "before.dcm"), Path(place, "after.dcm")
        before.write_bytes(data)
        done = subprocess.run(
            [tool, *options, str(before), str(after)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr.strip()}")
        return after.read_bytes()


def reason_of(decode: Callable[[bytes], object], data: bytes) -> Reason:
    """Why a file is not assessed; fails where it is."""
    try:
        decode(data)
    except NotAssessedError as error:
        return error.reason
    raise AssertionError("the file was decoded")
