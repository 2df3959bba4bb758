"""Picture files (JPEG, PNG, WebP, TIFF, BMP) to a `Radiograph`, or the reason why not.

Pillow opens every file (format, pixel type, size, frames and EXIF are known before a pixel is
decoded) but a few kinds of TIFF, see `tiff`, and decodes all but JPEG. That is simplejpeg's: the
same pixels to the last grey level, faster, and it reports what Pillow only warns of, such as an
image that is damaged in its middle (see `jpeg`).

Grey pixels are made by these rules:

| pixels in the file | rule |
| --- | --- |
| 8-bit grey | as they are |
| 2-bit and 4-bit grey | stretched to 8 bits, with a warning |
| 16-bit grey | as they are; `white` is the smallest power of two, less one, that holds all but \
marks |
| RGB, 8 or 16 bit | not assessed if coloured, else luma (ITU-R BT.601, OpenCV's RGB2GRAY) |
| alpha | laid on black; 0 everywhere in a BMP is opaque |
| palette | looked up, then as RGB |
| orientation of EXIF or TIFF, else of XMP | applied, see `orientation.py` |
| TIFF WhiteIsZero | inverted; grey of no stated interpretation is BlackIsZero |
| pixels that are not square | stretched, see `aspect.py` |
| uncompressed, ends in zeros | see `empty_end.py` |
| 1 bit, 32 bit, signed, floating point, CMYK, Lab | not assessed |
| TIFF: 16-bit grey with alpha, 16-bit colours or alpha in separate planes | not assessed |
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError, one_line
from deepcovid_edge.imaging.aspect import (
    PixelShape,
    in_square_pixels,
    pixel_shape,
    stated_by_container,
)
from deepcovid_edge.imaging.depth import full_scale
from deepcovid_edge.imaging.empty_end import check_end, check_tiff, of_bmp
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.formats.jpeg import decode_jpeg, jpeg_with_end, jpeg_without_oddities
from deepcovid_edge.imaging.formats.png import (
    lacks_rows,
    png_without_metadata,
    scale_transparency,
    states_unusual_gamma,
)
from deepcovid_edge.imaging.formats.tiff.damage import check_compressed
from deepcovid_edge.imaging.formats.tiff.directory import (
    IN_PLANES,
    MAGIC,
    TILE_ROWS,
    TILE_WIDTH,
    OpenCvTiff,
    count_pages,
    open_for_opencv,
    read_directory,
    take_palette_of_8_bits,
    unread_compression,
    usual_tiff,
)
from deepcovid_edge.imaging.formats.webp import check_webp
from deepcovid_edge.imaging.orientation import (
    SIDEWAYS,
    TURNS,
    exif_tag,
    stated_orientation,
    turned,
)
from deepcovid_edge.imaging.radiograph import (
    LOSSY_RATIO,
    SYNTHETIC_MARK,
    Radiograph,
    check_area,
    check_exposure,
    check_size,
    grid,
    to_grey,
)
from deepcovid_edge.imaging.signatures import (
    is_cut_off,
    is_damaged,
    is_plain_jpeg,
    known_kind,
    unread_format,
)
from deepcovid_edge.reasons import Reason, WarningCode

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

_STRIP = 256
_WEBP_IN_TIFF = 50001
"""Compression of a TIFF (libtiff, tiff.h) that Pillow's libtiff lacks."""
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp", ".dib"},
}
PICTURE_SUFFIXES = frozenset[str]().union(*_SUFFIXES.values())
_OPENED = (*_SUFFIXES, "GIF")
_FEW_BITS = ("'L;2", "'L;4", "'BGR;15", "'BGR;16")
"""Pillow's names of grey of 2 or 4 bits, and of colours of 5 or 6 bits each in a BMP."""
_NO_PLANES = ("'a'", "'X'", "';'", "'I'", "AX'", "aX'")
"""Names of planes, or of all of them, that Pillow cannot unpack."""
_MODES = {"L", "RGB", "RGBA", "LA", "La", "P", "PA", "I;16", "I;16B", "I;16L"}


def decode_picture(file: FileBytes) -> Radiograph:
    """Decode the bytes of a picture file.

    Raises:
        NotAssessedError: The bytes cannot be assessed; `reason` and `detail` say why.
    """
    try:
        return _decode_file(file)
    except NotAssessedError:
        raise
    except Exception as error:  # what a damaged header says may be of any kind
        raise NotAssessedError(Reason.DECODE, one_line(error)) from error


def _decode_file(file: FileBytes) -> Radiograph:
    data = _checked(file.data)
    if known_kind(data) == "PNG":
        data = png_without_metadata(data)
    picture, stored = _open(data)
    _check_header(picture, data)
    shape = _upright_shape(picture, file.data)
    warnings = [*_header_warnings(picture, file), *_check_stored(picture, data, stored)]
    raw, decoded_warnings = _decode(picture, stored)
    grey, colour_warnings = to_grey(raw)
    is_inverted = _tiff_tag(picture, 262) == 0  # WhiteIsZero, TIFF 6.0 section 8; of 16 bits
    grey, white, depth_warnings = full_scale(grey, is_inverted=is_inverted)
    check_exposure(grid(grey), white)
    if picture.format == "PNG":  # its EXIF may stand behind the pixels
        shape = _upright_shape(picture, file.data)
    found = (*warnings, *decoded_warnings, *colour_warnings, *depth_warnings, *shape.warnings)
    name = picture.format or ""
    return in_square_pixels(Radiograph(grey, white, file.sha256, name, found), shape)


def _checked(data: bytes) -> bytes:
    """The bytes of a file that is whole, with the end of a JPEG that lacks no more.

    First of all: decoders make pictures of images that lack their end, or whose pixels were
    overwritten on the way.
    """
    if is_cut_off(data):
        ended = jpeg_with_end(data) if known_kind(data) == "JPEG" else None
        if ended is None:
            raise NotAssessedError(Reason.TRUNCATED, f"{len(data)} bytes")
        return ended
    if is_damaged(data):
        raise NotAssessedError(Reason.DECODE, "pixels fail their checksum")
    if name := unread_format(data):
        raise NotAssessedError(Reason.FORMAT, f"this is {name}")
    return data


@dataclass(frozen=True)
class PlainJpeg:
    """A grey JPEG of one picture that states no orientation, which most images of 8 bits are.

    What is asked of a `PIL.Image.Image` before it is decoded, without the time that Pillow takes.
    """

    size: tuple[int, int]
    format: ClassVar = "JPEG"
    mode: ClassVar = "L"


Picture: TypeAlias = "Image.Image | PlainJpeg | OpenCvTiff"


def _plain_jpeg(data: bytes) -> PlainJpeg | None:
    if not is_plain_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: chroma sampled by 4:4:1
        return None
    return PlainJpeg((width, height)) if colours == "Gray" else None


def _open(data: bytes) -> tuple[Picture, bytes]:
    """The picture with its header read and no pixel decoded, and the bytes to decode."""
    if plain := _plain_jpeg(data):
        return plain, data
    try:
        opened = _opened_by_pillow(data)
    except NotAssessedError:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on a broken header
        if known_kind(data) == "JPEG" and (usual := jpeg_without_oddities(data)) != data:
            return _open(usual)[0], data
        if data.startswith(MAGIC):
            return _open_odd_tiff(data)
        if kind := known_kind(data):
            raise NotAssessedError(Reason.DECODE, f"{kind} of a kind not read") from error
        detail = "empty file" if not data else f"{len(data)} bytes"
        raise NotAssessedError(Reason.NOT_IMAGE, detail) from error
    if opened.format == "TIFF" and _is_odd_tiff(opened):
        return _open_odd_tiff(data)
    return opened, data


def _opened_by_pillow(data: bytes) -> Image.Image:
    pillow = _pillow()
    try:
        opened: Image.Image = pillow.open(io.BytesIO(data), formats=_OPENED)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise NotAssessedError(Reason.TOO_BIG, "by its header") from error
    return opened


def _is_odd_tiff(picture: Picture) -> bool:
    # Pillow takes 8 bits that state no photometric interpretation for WhiteIsZero, does not know
    # all kinds of pixels with their lowest bit first, and reads one plane as 8-bit BlackIsZero.
    is_one_plane = _tiff_tag(picture, 284) == IN_PLANES and _tiff_tag(picture, 277) in (None, 1)
    return _tiff_tag(picture, 262) is None or _tiff_tag(picture, 266) == 2 or is_one_plane


def _open_odd_tiff(data: bytes) -> tuple[Picture, bytes]:
    """A TIFF that Pillow does not open as it is, or takes for another picture."""
    stated, usual = open_for_opencv(data), usual_tiff(data)
    try:
        return _opened_by_pillow(usual), usual
    except NotAssessedError:
        raise
    except Exception as error:
        if stated.mode in _MODES and 8 in stated.tag_v2.get(258, ()):
            compression = stated.tag_v2.get(259, 1)
            detail = f"TIFF of a kind not read, compression {compression}"
            raise NotAssessedError(Reason.DECODE, detail) from error
        return stated, usual


@cache
def _pillow() -> Any:
    """`PIL.Image`, once an image needs it: its import takes a twentieth of a cold start."""
    # It knows a format only once its plug-in is imported, and imports but the commonest itself.
    for plugin in ("TiffImagePlugin", "WebPImagePlugin"):
        import_module(f"PIL.{plugin}")
    return import_module("PIL.Image")


def _check_header(picture: Picture, data: bytes) -> None:
    check_area(*picture.size)
    if picture.format == "TIFF":  # whose tiles may be larger than the picture
        page, frames = read_directory(data), count_pages(data)
        check_area(page.value(TILE_WIDTH, 0), page.value(TILE_ROWS, 0))
    else:
        frames = int(getattr(picture, "n_frames", 1))
    if frames > 1:
        raise NotAssessedError(Reason.FRAMES, f"{frames} pictures")
    if picture.format not in _SUFFIXES:
        raise NotAssessedError(Reason.FORMAT, f"this is {picture.format}")
    if name := _unread_mode(picture):
        raise NotAssessedError(Reason.MODE, name)


def _upright_shape(picture: Picture, data: bytes) -> PixelShape:
    """The shape of the pixels once the image is upright, its size with square ones checked.

    Raises:
        NotAssessedError: See `check_size`.
    """
    shape = pixel_shape([*stated_by_container(picture.format or "", data), *_resolution(picture)])
    width, height = picture.size
    if stated_orientation(picture) in SIDEWAYS:
        shape = shape.turned()
        if not _tiff_tag(picture, 274):  # by which Pillow gives the size of a TIFF upright
            width, height = height, width
    height, width = shape.square((height, width))
    check_size(width, height)
    return shape


def _resolution(picture: Picture) -> list[tuple[Any, Any]]:
    """Resolution across and down of TIFF (6.0, section 8) or EXIF (CIPA DC-008, 4.6.4).

    Where they are given to a density's pixels, see `aspect.stated_by_container`.
    """
    across, down = (exif_tag(picture, number) for number in (282, 283))
    return [] if across is None and down is None else [(across, down)]


def _unread_mode(picture: Picture) -> str | None:
    formats = set(_tiff_tag(picture, 339) or ())  # Pillow takes signed bytes for unsigned ones
    if 2 in formats:
        return f"signed {max(_tiff_tag(picture, 258) or (1,))}-bit integers"
    if 3 in formats:
        return "floating point"
    if picture.mode not in _MODES:
        return _MODE_NAMES.get(picture.mode, picture.mode)
    if _is_stored_as(picture, "P;1"):
        return "1-bit picture"
    return _unread_planes(picture) if _tiff_tag(picture, 284) == IN_PLANES else None


def _unread_planes(picture: Picture) -> str | None:
    if _is_deep_colour(picture):  # both decoders err
        return "16-bit colours in separate planes"
    if picture.mode in ("LA", "La", "PA") or _is_stored_as(picture, *_NO_PLANES):
        return "alpha or another extra sample in separate planes"
    return None


def _is_deep_colour(picture: Picture) -> bool:
    bits = _tiff_tag(picture, 258) or ()
    return picture.mode in ("RGB", "RGBA", "LA") and (16 in bits or _is_stored_as(picture, ";16"))


def _is_stored_as(picture: Picture, *names: str) -> bool:
    """Whether one of these is in Pillow's name of the pixels as they stand in the file."""
    stored = str(getattr(picture, "tile", ""))
    return any(name in stored for name in names)


def _tiff_tag(picture: Picture, number: int) -> Any:
    if picture.format != "TIFF":
        return None
    return cast("TiffImageFile", picture).tag_v2.get(number)


_MODE_NAMES = {"1": "1-bit picture", "F": "floating point", "I": "32-bit integers"}


def _header_warnings(picture: Picture, file: FileBytes) -> list[WarningCode]:
    warnings = []
    suffix = file.path.suffix.lower()
    if suffix and suffix not in _SUFFIXES[picture.format or ""]:
        warnings.append(WarningCode.SUFFIX)
    width, height = picture.size
    if _is_lossy(picture, file.data) and width * height > LOSSY_RATIO * len(file.data):
        warnings.append(WarningCode.LOSSY)
    if picture.mode in ("P", "PA"):
        warnings.append(WarningCode.PALETTE)
    if _is_stored_as(picture, *_FEW_BITS):
        warnings.append(WarningCode.DEPTH)
    if picture.format == "PNG" and states_unusual_gamma(file.data):
        warnings.append(WarningCode.GAMMA)
    if SYNTHETIC_MARK in file.data[:1024]:
        warnings.append(WarningCode.SYNTHETIC)
    return warnings


def _is_lossy(picture: Picture, data: bytes) -> bool:
    # WebP Container Specification: a "VP8 " chunk is lossy, "VP8L" is not.
    return picture.format == "JPEG" or (picture.format == "WEBP" and b"VP8 " in data[:4096])


def _decode(picture: Picture, data: bytes) -> tuple[NDArray[Any], list[WarningCode]]:
    """Upright pixels of shape (H, W) or (H, W, 3), RGB, uint8 or uint16, alpha laid on black."""
    orientation = stated_orientation(picture)
    # Both decoders turn a TIFF by its tag; Pillow also by XMP, where it gives that as the tag.
    by_pillow = picture.format == "TIFF" and not _is_deep_colour(picture)
    is_turned = bool(_tiff_tag(picture, 274) or (by_pillow and exif_tag(picture, 274)))
    try:
        if isinstance(picture, PlainJpeg) or picture.format == "JPEG":
            pixels = decode_jpeg(data, "GRAY" if picture.mode == "L" else "RGB")
        elif isinstance(picture, OpenCvTiff):
            pixels = _opencv(data, cv2.IMREAD_UNCHANGED)
        else:
            pixels = _loaded(picture, data)
    except NotAssessedError:
        raise
    except Exception as error:  # decoders of broken data raise nearly anything
        said = str(error)
        ends_early = "truncated" in said or "Premature end" in said
        reason = Reason.TRUNCATED if ends_early else Reason.DECODE
        by_libtiff = said.startswith("decoder error")
        detail = "its pixels are damaged or missing" if by_libtiff else one_line(error)
        if by_libtiff and _tiff_tag(picture, 259) == _WEBP_IN_TIFF:
            detail = f"TIFF of a kind not read, compression {_WEBP_IN_TIFF}"
        raise NotAssessedError(reason, detail) from error
    if picture.format == "PNG":  # its EXIF may stand behind the pixels
        orientation = stated_orientation(picture)
    pixels, warnings = _on_black(pixels)
    if orientation not in TURNS:
        return pixels, warnings
    if not is_turned:
        pixels = turned(pixels, orientation)
    return pixels, [*warnings, WarningCode.EXIF]


def _check_stored(picture: Picture, data: bytes, stored: bytes) -> list[WarningCode]:
    """What pixels that end in zeros give to know; damage of a TIFF's compressed ones is refused."""
    if picture.format == "TIFF":
        check_compressed(stored)
        return check_tiff(data, read_directory(data))
    block = of_bmp(data, picture.size) if picture.format == "BMP" else None
    return check_end(data, block) if block else []


def _opencv(data: bytes, flags: int) -> NDArray[Any]:
    pixels: NDArray[Any] | None = cv2.imdecode(
        np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if pixels is None:
        kind = unread_compression(data) if data.startswith(MAGIC) else ""
        raise NotAssessedError(Reason.DECODE, kind or "OpenCV found no picture")
    if pixels.ndim == 3:
        to_rgb = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        pixels = cv2.cvtColor(pixels, to_rgb)
    return pixels


def _loaded(picture: Image.Image, data: bytes) -> NDArray[Any]:
    deep = _is_deep_colour(picture)
    picture.load()  # raises where the data ends early
    if picture.format == "PNG" and lacks_rows(picture, data):
        raise NotAssessedError(Reason.TRUNCATED, "rows are missing")
    if picture.format == "WEBP":
        check_webp(picture, data)
    if deep:  # Pillow keeps only the upper 8 of 16 bits of coloured pixels
        pixels = _opencv(data, cv2.IMREAD_UNCHANGED)
        # TIFF 6.0, section 18: a fourth channel of no meaning, or an alpha laid on black already.
        return pixels[..., :3] if _tiff_tag(picture, 338) in ((0,), (1,)) else pixels
    if picture.mode.startswith("I;16") and "transparency" in picture.info:
        grey = np.asarray(picture)
        opaque = grey != picture.info["transparency"]
        return np.dstack([grey, opaque * np.iinfo(np.uint16).max]).astype(np.uint16)
    if picture.format == "PNG" and picture.mode == "L":
        scale_transparency(picture, data)
    elif picture.format == "TIFF" and picture.mode == "P":
        take_palette_of_8_bits(picture, _tiff_tag(picture, 320) or (256,))
    elif picture.mode == "La":  # a TIFF whose alpha is laid on black
        picture = picture.convert("LA")
    see_through = picture.mode in ("L", "RGB", "P") and "transparency" in picture.info
    if see_through or picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
    pixels = np.asarray(picture)
    if picture.format == "BMP" and picture.mode == "RGBA" and not pixels[..., 3].any():
        return pixels[..., :3]  # the mask of an alpha that the writer never filled
    return pixels


def _on_black(pixels: NDArray[Any]) -> tuple[NDArray[Any], list[WarningCode]]:
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels, []
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    full = np.iinfo(pixels.dtype).max
    warnings = []
    if alpha.min() < full:
        laid = np.empty_like(colour)
        for top in range(0, len(colour), _STRIP):  # in strips: a large image fits in memory
            rows = slice(top, top + _STRIP)
            shares = alpha[rows] / np.float32(full)
            laid[rows] = (colour[rows] * shares + np.float32(0.5)).astype(pixels.dtype)
        colour = laid
        warnings = [WarningCode.ALPHA]
    return (colour[..., 0] if colour.shape[2] == 1 else colour), warnings
