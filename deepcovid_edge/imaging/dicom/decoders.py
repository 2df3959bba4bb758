"""Codestreams to words, by what is installed. Runs in the child process alone; see `sandbox`.

imagecodecs decodes all families, and faster than anything else that was measured. Without it
pydicom's plug-ins are asked, but for the one that is GPL (pylibjpeg-libjpeg).
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, require
from deepcovid_edge.imaging.dicom.sandbox import Request
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES, Family
from deepcovid_edge.reasons import Reason

_CODECS = {
    Family.RLE: "dicomrle",
    Family.JPEG: "jpeg8",
    Family.JPEG_LOSSLESS: "jpegsof3",
    Family.JPEG_LS: "jpegls",
    Family.JPEG_2000: "jpeg2k",
    Family.HTJ2K: "htj2k",
}
_PLUGINS = {
    Family.RLE: ("pylibjpeg", "pydicom"),
    Family.JPEG: ("pillow", "gdcm"),
    Family.JPEG_LOSSLESS: ("gdcm",),
    Family.JPEG_LS: ("pyjpegls", "gdcm"),
    Family.JPEG_2000: ("pylibjpeg", "pillow", "gdcm"),
    Family.HTJ2K: ("pylibjpeg",),
}


def decode(request: Request, codestream: bytes) -> NDArray[Any]:
    """Decode a frame.

    Returns:
        Of shape (rows, columns) or (rows, columns, 3), uint8 or uint16; the whole picture where a
        lower resolution of it cannot be decoded.

    Raises:
        NotAssessedError: No decoder is installed, or the frame is not what the header says.
        Exception: Whatever a decoder raises on a broken codestream.
    """
    if request.halvings:
        with contextlib.suppress(Exception):  # the whole picture then decides, and says why
            return _checked(_halved(request, codestream), request)
        request = request.whole
    try:
        import imagecodecs
    except ImportError:
        pixels = _by_pydicom(request, codestream)
    else:
        pixels = _by_imagecodecs(imagecodecs, request, codestream)
    return _checked(pixels, request)


def _checked(pixels: NDArray[Any], request: Request) -> NDArray[Any]:
    words = _as_words(pixels, request.allocated)
    if words.shape != request.shape:
        detail = f"{words.shape} pixels decoded, {request.shape} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    return words


def _as_words(pixels: NDArray[Any], allocated: int) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize > 2:
        raise NotAssessedError(Reason.BITS, f"decoded to {pixels.dtype}")
    if pixels.dtype.itemsize * 8 > allocated and pixels.size and int(pixels.max()) >> allocated:
        raise NotAssessedError(Reason.BITS, f"decoded to more than {allocated} bits")
    if pixels.dtype.kind == "i":  # first to 16 bits, so that the sign is kept
        pixels = pixels.astype(np.int16)
    return pixels.astype(np.uint8 if allocated == 8 else np.uint16)


def _halved(request: Request, codestream: bytes) -> NDArray[Any]:
    """A lower resolution of one channel in JPEG 2000 or HTJ2K.

    By Pillow's OpenJPEG. imagecodecs has no such option for JPEG 2000, and its HTJ2K decoder lets
    values wrap around that the filters moved beyond the end of the range; OpenJPEG moves them back.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(codestream), formats=["JPEG2000"])
    rows, columns = request.shape
    # What `image.reduce` does, but that it rounds the sides down where they end on a small half.
    tile: Any = image.tile[0]
    codec, _, *others = tile.args
    tile = tile._replace(extents=(0, 0, columns, rows), args=(codec, request.halvings, *others))
    image.tile = [tile]
    image._size = (columns, rows)
    pixels = np.asarray(image)
    words: NDArray[Any] = pixels >> (8 * pixels.itemsize - request.stored)  # it stores them high
    return words


def _codec(request: Request) -> str:
    """The name of imagecodecs' codec; OpenJPEG's for lossy HTJ2K, see `_halved`."""
    syntax = SYNTAXES[request.syntax]
    is_lossy_htj2k = syntax.family is Family.HTJ2K and syntax.lossy
    return _CODECS[Family.JPEG_2000 if is_lossy_htj2k else syntax.family]


def _by_imagecodecs(codecs: Any, request: Request, codestream: bytes) -> NDArray[Any]:
    family, name = SYNTAXES[request.syntax].family, _codec(request)
    codec = getattr(codecs, name.upper(), None)
    if codec is None or not codec.available:  # older versions have fewer
        return _by_pydicom(request, codestream)
    decoder = getattr(codecs, f"{name}_decode")
    if family is Family.RLE:
        return _rle(decoder, request, codestream)
    if family is Family.JPEG and request.samples == 3:
        stored = "RGB" if request.photometric == "RGB" else "YCBCR"
        return np.asarray(decoder(codestream, colorspace=stored, outcolorspace="RGB"))
    return np.asarray(decoder(codestream))


def _rle(decoder: Any, request: Request, codestream: bytes) -> NDArray[Any]:
    # PS3.5, annex G: a header of 64 bytes, then one segment for each byte of a sample.
    bytes_each = request.allocated // 8
    segments = int.from_bytes(codestream[:4], "little")
    if segments != request.samples * bytes_each:
        detail = f"{segments} RLE segments, {request.samples * bytes_each} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    kind = np.dtype(f"<u{bytes_each}")
    words = np.frombuffer(decoder(codestream, kind), kind)
    if words.nbytes != request.size:
        detail = f"{words.nbytes} bytes in RLE, {request.size} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    if request.samples == 1:
        return words.reshape(request.shape)
    return np.moveaxis(words.reshape(request.samples, request.rows, request.columns), 0, -1)


def _by_pydicom(request: Request, codestream: bytes) -> NDArray[Any]:
    require("pydicom", extra="dicom")
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    syntax = SYNTAXES[request.syntax]
    try:
        decoder: Any = get_decoder(request.syntax)
    except NotImplementedError as error:
        raise _not_installed(request) from error
    known = set(decoder.available_plugins)
    plugin = next((name for name in _PLUGINS[syntax.family] if name in known), None)
    if plugin is None:
        raise _not_installed(request)
    pixels, _ = decoder.as_array(
        encapsulate([codestream]),
        decoding_plugin=plugin,
        raw=request.photometric != "YBR_FULL_422",
        rows=request.rows,
        columns=request.columns,
        samples_per_pixel=request.samples,
        bits_allocated=request.allocated,
        bits_stored=request.stored,
        pixel_representation=int(request.signed),
        photometric_interpretation=request.photometric,
        planar_configuration=0,
        number_of_frames=1,
        pixel_keyword="PixelData",
    )
    return np.asarray(pixels)


def _not_installed(request: Request) -> NotAssessedError:
    syntax = SYNTAXES[request.syntax]
    return NotAssessedError(
        Reason.SYNTAX,
        f"{syntax.name}, {request.syntax}: pip install 'deepcovid-edge[dicom]'",
    )
