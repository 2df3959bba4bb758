"""Codestreams to words, by what is installed. Runs in the child process alone; see `sandbox`.

imagecodecs decodes all families. Without it pydicom's plug-ins are asked, without the one that is
GPL (pylibjpeg-libjpeg). JPEG lossless is libjpeg-turbo's: of 3000 x 2500 pixels in 0.16 s, where
jpegsof3 takes 0.48 s, knows no restart markers and leaves the point transform out. HTJ2K is
OpenJPEG's: in 0.06 s, where imagecodecs' decoder (2026.3.6, OpenJPH) takes 0.03 s, leaves rows
black behind damage without an error, and lets lossy white wrap around to black.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import NotAssessedError, require
from deepcovid_edge.imaging.dicom.decoding.codestreams import (
    END,
    FILL,
    MOST_FILL,
    is_padding,
    rle_offsets,
    unpacked,
    with_end,
)
from deepcovid_edge.imaging.dicom.decoding.sandbox import Request
from deepcovid_edge.imaging.dicom.decoding.whole_scan import check_by_last_bits
from deepcovid_edge.imaging.dicom.decoding.whole_tiles import check_tiles
from deepcovid_edge.imaging.dicom.syntaxes import JPEG_SYNTAX, SYNTAXES, Family
from deepcovid_edge.imaging.formats.jpeg import (
    decode_jpeg,
    has_all_scans,
    is_grey_of_8_bits,
    is_one_huffman_scan,
    with_8_bits,
)
from deepcovid_edge.reasons import Reason

_CODECS = {
    Family.RLE: "dicomrle",
    Family.JPEG: "jpeg8",
    Family.JPEG_LOSSLESS: "jpeg8",
    Family.JPEG_LS: "jpegls",
    Family.JPEG_2000: "jpeg2k",
    Family.HTJ2K: "jpeg2k",
}
_ONE_LIBJPEG = {Family.JPEG, Family.JPEG_LOSSLESS}
_TILED = {Family.JPEG_2000, Family.HTJ2K}
_ELSE = bytes([0x5A, 0xA5, 0x33]) * 40
"""What a whole codestream could be followed by, and nothing would change."""
_LONGEST_RUN = 128
_MOST_UNLIKE = 4
"""Bytes by which segments of RLE may differ: behind the pixels too each has its own padding."""
_ERASED = b"\xff" * (4 * _LONGEST_RUN)
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
    family = SYNTAXES[request.syntax].family
    if family is Family.RLE:
        return _checked(_rle(request, codestream), request)
    whole = with_end(codestream)
    if whole is not None and family in _TILED:
        check_tiles(whole)
    if request.halvings:
        with contextlib.suppress(Exception):  # the whole picture then decides, and says why
            return _checked(_halved(request, codestream), request)
        request = request.whole
    if whole is not None:
        pixels = _by_libjpeg(request, whole) if family in _ONE_LIBJPEG else _decoded(request, whole)
    else:
        pixels = _without_end(request, codestream)
    return _checked(pixels, request)


def _by_libjpeg(request: Request, codestream: bytes) -> NDArray[Any]:
    """Decode a JPEG whose scans are whole; see `whole_scan`."""
    dct = SYNTAXES[request.syntax].family is Family.JPEG
    if dct and is_grey_of_8_bits(codestream):
        return decode_jpeg(codestream, "GRAY")
    pixels = _decoded(request, codestream)
    if dct:
        decode_jpeg(with_8_bits(codestream), "GRAY")  # for its warnings; its colours are converted
    one_plane = pixels.ndim == 2 and pixels.dtype != np.uint8 and is_one_huffman_scan(codestream)
    if one_plane or not dct:
        check_by_last_bits(codestream, pixels, lambda data: _if_decoded(request, data), dct=dct)
    return pixels


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

    By Pillow's OpenJPEG: imagecodecs has no such option for it.
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


def _decoded(request: Request, codestream: bytes) -> NDArray[Any]:
    family = SYNTAXES[request.syntax].family
    decoder = _codec(family)
    if decoder is None:
        return _by_pydicom(request, codestream)
    if family in _ONE_LIBJPEG and request.samples == 3:  # as they stand, not converted
        return np.asarray(decoder(codestream, colorspace="RGB", outcolorspace="RGB"))
    return np.asarray(decoder(codestream))


def _codec(family: Family) -> Any:
    """The function of imagecodecs, or None where it, or this one of its codecs, is missing."""
    try:
        import imagecodecs
    except ImportError:
        return None
    codec = getattr(imagecodecs, _CODECS[family].upper(), None)
    if codec is None or not codec.available:  # older versions have fewer
        return None
    return getattr(imagecodecs, f"{_CODECS[family]}_decode")


def _without_end(request: Request, codestream: bytes) -> NDArray[Any]:
    """Decode a codestream without its end marker, if that is all that it lacks.

    libjpeg makes up what is missing, so it is given two endings: where they change nothing, all
    rows are there. CharLS raises an error where one is missing, or where padding follows the last.
    """
    family = SYNTAXES[request.syntax].family
    bare = codestream.rstrip(FILL)
    tails = [codestream[len(bare) :][:size].rstrip(b"\xff") for size in range(MOST_FILL + 1)]
    if family in _ONE_LIBJPEG and has_all_scans(bare):
        one, other = (_if_decoded(request, bare + tails[-1] + more) for more in (END, _ELSE + END))
        if one is not None and other is not None and np.array_equal(one, other):
            return one
    elif family is Family.JPEG_LS:
        for tail in dict.fromkeys(tails):
            if (one := _if_decoded(request, bare + tail + END)) is not None:
                return one
    raise NotAssessedError(Reason.TRUNCATED, f"{family.value} without its end")


def _if_decoded(request: Request, codestream: bytes) -> NDArray[Any] | None:
    try:
        return _decoded(request, codestream)
    except NotAssessedError:
        raise
    except Exception:  # whatever a decoder raises
        return None


def _rle(request: Request, codestream: bytes) -> NDArray[Any]:
    """PS3.5, annex G: a header of 64 bytes, then one segment for each byte of a sample."""
    bytes_each = request.allocated // 8
    segments = len(rle_offsets(codestream))
    if segments != request.samples * bytes_each:
        stated = request.samples * bytes_each
        detail = f"{number_of(segments, 'RLE segment')}, {stated} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    _check_fill(request, codestream)
    kind = np.dtype(f"<u{bytes_each}")
    words = _rle_by_imagecodecs(request, codestream, kind)
    if words is None:
        words = _rle_planes(request, codestream).view(kind)
    if request.samples == 1:
        return words.reshape(request.shape)
    return np.moveaxis(words.reshape(request.samples, request.rows, request.columns), 0, -1)


def _check_fill(request: Request, codestream: bytes) -> None:
    """Refuse ones amid the pixels, which are erased flash: they decode as runs of two white bytes.

    An encoder writes no more than 128 bytes of one value on end, and the head of another run.
    """
    at = codestream.find(_ERASED, 64)
    if at < 0:
        return
    start = max(start for start in rle_offsets(codestream) if start <= at)
    held = len(unpacked(codestream[start:at]))
    if held + _LONGEST_RUN < request.rows * request.columns:
        raise NotAssessedError(Reason.TRUNCATED, f"bytes FF from byte {at} of the RLE segments")


def _rle_by_imagecodecs(
    request: Request, codestream: bytes, kind: np.dtype[Any]
) -> NDArray[Any] | None:
    """The words, or None where there are more or fewer than the image has."""
    decoder = _codec(Family.RLE)
    if decoder is None:
        return None
    try:
        words = np.frombuffer(decoder(codestream, kind), kind)
    except Exception:  # which it is, the careful way finds out
        return None
    return words if words.nbytes == request.size else None


def _rle_planes(request: Request, codestream: bytes) -> NDArray[np.uint8]:
    """The bytes of the words, segment by segment: slower, but it knows what is surplus."""
    size, bytes_each = request.rows * request.columns, request.allocated // 8
    starts = rle_offsets(codestream)
    segments = [
        codestream[start:end]
        for start, end in zip(starts, [*starts[1:], len(codestream)], strict=True)
    ]
    planes = [np.frombuffer(unpacked(segment), np.uint8) for segment in segments]
    lengths = [plane.size for plane in planes]
    _check_lengths(lengths, request)
    if _differ(lengths) and _differ([_without_fill(segment, size) for segment in segments]):
        detail = f"damaged: RLE segments of {min(lengths)} to {max(lengths)} bytes"
        raise NotAssessedError(Reason.DECODE, f"{detail}, {size} by the header")
    # The highest byte comes first.
    common = min(lengths)
    words = np.stack([plane[:common] for plane in planes]).reshape(-1, bytes_each, common)
    words = np.ascontiguousarray(np.moveaxis(words, 1, -1)[..., ::-1])
    surplus = [plane[size:common] for plane in planes]
    is_one_value = common - size <= _MOST_UNLIKE or not any(np.ptp(more) for more in surplus)
    pixels = words[0].view(f"<u{bytes_each}").ravel()
    if not (is_one_value and is_padding(pixels, request.rows, request.columns)):
        detail = f"{max(lengths)} bytes in an RLE segment, {size} by the header"
        raise NotAssessedError(Reason.LENGTH, detail)
    return words[:, :size].reshape(-1)


def _differ(lengths: list[int]) -> bool:
    """Whether segments differ by more than what pads them to an even length decodes to."""
    return max(lengths) - min(lengths) > _MOST_UNLIKE


def _without_fill(segment: bytes, size: int) -> int:
    """Bytes that a segment decodes to without what fills a disk behind it, `size` at the least."""
    bare = segment.rstrip(FILL)
    return max(size, len(unpacked(segment if len(segment) - len(bare) <= MOST_FILL else bare)))


def _check_lengths(lengths: list[int], request: Request) -> None:
    """Refuse segments of fewer bytes than there are pixels, and say what is wrong with them."""
    size = request.rows * request.columns
    short = [length for length in lengths if length < size]
    if not short:
        return
    if short == lengths and len(set(short)) == 1 and not short[0] % request.columns:
        reason = Reason.LENGTH
    elif lengths[-len(short) :] == short and not any(short[1:]):
        reason = Reason.TRUNCATED
    else:
        reason = Reason.DECODE
    held = number_of(min(short), "byte")
    raise NotAssessedError(reason, f"{held} in an RLE segment, {size} by the header")


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
    no_depth = request.syntax == JPEG_SYNTAX["extended"] and request.stored > 8
    if plugin is None or no_depth:  # none of them reads 12 bits
        raise _not_installed(request)
    pixels, _ = decoder.as_array(
        encapsulate([codestream]),
        decoding_plugin=plugin,
        raw=True,
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
