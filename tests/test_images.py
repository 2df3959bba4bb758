"""The reader: every rule of its table, every refusal, every caution, and real films."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deepcovid_edge import images
from deepcovid_edge.errors import ImageRefusedError
from deepcovid_edge.images import Radiograph, read_radiograph
from deepcovid_edge.phantom import write_samples
from deepcovid_edge.reasons import Caution, Reason

Decode = Callable[..., Radiograph]

XRAY = Path(
    os.environ.get("DEEPCOVID_XRAY", str(Path(__file__).parents[1].parent / "shared" / "xray"))
)
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff-packbits": ("TIFF", {"compression": "packbits"}),
    "tiff-big": ("TIFF", {"big_tiff": True}),
    "bmp": ("BMP", {}),
}
ORDERS = {"little-endian": "<", "big-endian": ">"}


def equal(film: Radiograph, pixels: NDArray[Any], white: int = 255) -> bool:
    return film.white == white and np.array_equal(film.pixels, pixels)


# --- grey pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_8_bit_grey_and_rgb_of_equal_channels_are_read_as_they_are(
    kind: str, channels: str, pictures: Any, decode: Decode
) -> None:
    film = pictures.film()
    name, options = LOSSLESS[kind]
    stored = film if channels == "grey" else pictures.rgb(film)
    read = decode(pictures.encode(stored, name, **options))
    assert read.pixels.dtype == np.uint8
    assert equal(read, film)
    assert (read.format, read.cautions) == (name, ())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_jpeg_has_the_grey_levels_that_pillow_decodes(
    channels: str, options: dict[str, Any], pictures: Any, decode: Decode
) -> None:
    film = pictures.film()
    data = pictures.encode(film if channels == "grey" else pictures.rgb(film), "JPEG", **options)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    read = decode(data)
    assert read.format == "JPEG"
    assert np.abs(read.pixels - pillow).max() <= (0 if channels == "grey" else 1)
    assert np.abs(read.pixels - film.astype(int)).mean() < 4


def test_jpeg_that_stores_rgb_instead_of_ycbcr_is_not_taken_for_a_colour_picture(
    pictures: Any, decode: Decode
) -> None:
    film = pictures.film()
    read = decode(pictures.encode(pictures.rgb(film), "JPEG", keep_rgb=True, quality=98))
    assert np.abs(read.pixels - film.astype(int)).max() <= 6


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_of_fewer_bits_is_stretched_to_8(bits: int, pictures: Any, decode: Decode) -> None:
    film = pictures.film() >> (8 - bits)
    alone = np.unpackbits(film[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(alone.reshape(len(film), -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    read = decode(pictures.png_of_rows(rows, (*film.shape, bits, 0)))
    assert equal(read, film * (255 // ((1 << bits) - 1)))


@pytest.mark.parametrize(
    "write",
    [
        lambda p, film: p.encode(film, "PNG"),
        lambda p, film: p.encode(film, "TIFF"),
        lambda p, film: p.encode(film, "TIFF", compression="tiff_lzw"),
        lambda p, film: p.tiff(film, 1, order="<"),
        lambda p, film: p.tiff(film, 1, order=">"),
        lambda p, film: p.png(p.rgb(film), 2),
        lambda p, film: p.tiff(p.rgb(film), 2, order="<"),
        lambda p, film: p.tiff(p.rgb(film), 2, order=">"),
        lambda p, film: p.opencv(p.rgb(film), ".tiff"),
        lambda p, film: p.png(np.dstack([film, np.full_like(film, 65535)]), 4),
        lambda p, film: p.png(p.rgb(film, np.full_like(film, 65535)), 6),
    ],
    ids=[
        *("png", "tiff", "tiff-lzw", "tiff-little", "tiff-big", "rgb-png", "rgb-tiff-little"),
        *("rgb-tiff-big", "rgb-tiff-opencv", "grey-alpha-png", "rgba-png"),
    ],
)
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_16_bit_pixels_keep_every_bit_and_are_scaled_by_the_bits_they_use(
    bits: int, write: Callable[[Any, NDArray[Any]], bytes], pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    read = decode(write(pictures, film))
    assert read.pixels.dtype == np.dtype("uint16")
    assert read.pixels.dtype.isnative
    assert equal(read, film, (1 << bits) - 1)
    assert read.cautions == (() if bits == 16 else (Caution.DEPTH,))


def test_12_bits_that_stand_in_the_upper_bits_are_full_scale(pictures: Any, decode: Decode) -> None:
    film = pictures.film(bits=12) << 4
    read = decode(pictures.encode(film, "PNG"))
    assert equal(read, film, 65535)
    assert read.cautions == ()


def test_16_bit_file_with_8_bits_or_less_is_scaled_by_8(pictures: Any, decode: Decode) -> None:
    film = (pictures.film() >> 2).astype(np.uint16)
    assert equal(decode(pictures.encode(film, "PNG")), film, 255)


def test_burnt_in_marker_at_full_white_does_not_blacken_a_12_bit_film(
    pictures: Any, decode: Decode
) -> None:
    film = pictures.film(600, 500, bits=12)
    marked = film.copy()
    marked[20:36, 20:36] = 65535  # 0.09 % of the pixels
    read = decode(pictures.encode(marked, "PNG"))
    expected = film.copy()
    expected[20:36, 20:36] = 4095
    assert equal(read, expected, 4095)
    assert read.cautions == (Caution.DEPTH,)


@pytest.mark.parametrize(("order", "bits"), [("<", 8), (">", 8), ("<", 16), ("<", 12), ("<", 10)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_tiff_white_is_zero_is_inverted_at_the_depth_it_uses(
    order: str, bits: int, orientation: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    white = (1 << bits) - 1
    data = pictures.tiff(white - film, 0, order=order, tags={274: orientation})
    assert equal(decode(data), film if orientation == 1 else np.rot90(film, 3), white)


@pytest.mark.parametrize("bits", [8, 16])
def test_compressed_tiff_white_is_zero_is_inverted(
    bits: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    white = (1 << bits) - 1
    assert equal(decode(pictures.tiff(white - film, 0, tags={259: 8})), film, white)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_16_bit_tiff_of_rgb_and_a_channel_without_meaning_is_read_as_rgb(
    order: str, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=16)
    data = pictures.tiff(pictures.rgb(film, film * 0), 2, order=order, tags={338: 0})
    assert equal(decode(data), film, 65535)


def test_bmp_of_every_depth_and_direction_is_read(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    height, width = film.shape
    up = film[::-1]
    ramp = b"".join(bytes([level, level, level, 0]) for level in range(256))
    runs = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in up) + b"\0\1"
    files = {
        "8": pictures.bmp(up.tobytes(), (width, height), 8, palette=ramp),
        "8 top-down": pictures.bmp(film.tobytes(), (width, -height), 8, palette=ramp),
        "8 RLE": pictures.bmp(runs, (width, height), 8, compression=1, palette=ramp),
        "24": pictures.bmp(pictures.rgb(up).tobytes(), (width, height), 24),
        "32": pictures.bmp(pictures.rgb(up, up * 0).tobytes(), (width, height), 32),
        "size unstated": pictures.bmp(up.tobytes(), (width, height), 8, palette=ramp, stated=0),
        "size overstated": pictures.bmp(
            up.tobytes(), (width, height), 8, palette=ramp, stated=10**6
        ),
    }
    assert {name: equal(decode(data), film) for name, data in files.items()} == dict.fromkeys(
        files, True
    )


# --- colour, alpha, palette --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unequal_channels_become_bt601_luma(dtype: Any, pictures: Any, decode: Decode) -> None:
    full = np.iinfo(dtype).max
    grey = pictures.film(bits=8 * dtype().itemsize) // 2 + full // 4
    tinted = np.dstack([grey + full // 90, grey, grey - full // 90])
    luma = tinted.astype(float) @ (0.299, 0.587, 0.114)  # ITU-R BT.601
    read = decode(pictures.png(tinted, 2))
    assert np.abs(read.pixels - luma).max() <= 1
    assert read.cautions == ()


def alpha_of(film: NDArray[Any]) -> NDArray[Any]:
    alpha = np.full_like(film, np.iinfo(film.dtype).max)
    alpha[:40] = 0
    alpha[40:60] = alpha.max() // 3
    return alpha


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "write",
    [
        lambda p, film, alpha: p.png(np.dstack([film, alpha]), 4),
        lambda p, film, alpha: p.png(p.rgb(film, alpha), 6),
        lambda p, film, alpha: p.tiff(p.rgb(film, alpha), 2, tags={338: 2}),
        lambda p, film, alpha: p.tiff(p.rgb(film, alpha), 2, order=">", tags={338: 2}),
    ],
    ids=["la-png", "rgba-png", "rgba-tiff-little", "rgba-tiff-big"],
)
def test_alpha_is_laid_on_black(
    write: Callable[..., bytes], bits: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    alpha = alpha_of(film)
    read = decode(write(pictures, film, alpha))
    laid = film * (alpha / alpha.max())
    assert np.abs(read.pixels - laid).max() <= 0.51
    assert read.pixels[:40].max() == 0
    assert read.cautions == (Caution.ALPHA,)


def test_webp_alpha_is_laid_on_black(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    alpha = alpha_of(film)
    read = decode(pictures.encode(pictures.rgb(film, alpha), "WEBP", lossless=True, exact=True))
    assert np.abs(read.pixels - film * (alpha / 255)).max() <= 0.51
    assert read.cautions == (Caution.ALPHA,)


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_that_was_laid_on_black_by_the_writer_is_not_laid_on_twice(
    bits: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    alpha = np.full_like(film, np.iinfo(film.dtype).max)
    alpha[:40] //= 3
    laid = (film * (alpha / alpha.max())).astype(film.dtype)
    read = decode(pictures.tiff(pictures.rgb(laid, alpha), 2, tags={338: 1}))  # associated alpha
    assert np.abs(read.pixels - laid.astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_opaque_alpha_gives_no_caution(bits: int, pictures: Any, decode: Decode) -> None:
    film = pictures.film(bits=bits)
    full = np.full_like(film, np.iinfo(film.dtype).max)
    for data in (
        pictures.png(np.dstack([film, full]), 4),
        pictures.png(pictures.rgb(film, full), 6),
    ):
        read = decode(data)
        assert equal(read, film, int(full.max()))
        assert read.cautions == ()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_a_png_is_laid_on_black(
    bits: int, channels: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    key = int(film.max()) // 2
    film[film == key] += 1
    film[:30, :30] = key
    stored = film if channels == 1 else pictures.rgb(film)
    key_chunk = (b"tRNS", struct.pack(">H", key) * channels)
    read = decode(pictures.png(stored, 0 if channels == 1 else 2, before=[key_chunk]))
    film[:30, :30] = 0
    assert np.array_equal(read.pixels, film)
    assert read.cautions == (Caution.ALPHA,)


def palette_of(levels: NDArray[Any]) -> bytes:
    return np.repeat(levels.astype(np.uint8), 3).tobytes()


def test_palette_is_looked_up_whatever_its_order(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    levels = np.random.default_rng(3).permutation(256)
    indices = np.argsort(levels)[film].astype(np.uint8)
    read = decode(pictures.png(indices, 3, before=[(b"PLTE", palette_of(levels))]))
    assert equal(read, film)
    assert read.cautions == (Caution.PALETTE,)


def test_transparent_palette_entries_are_laid_on_black(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    chunks = [(b"PLTE", palette_of(np.arange(256))), (b"tRNS", bytes([255] * 200 + [0] * 30))]
    read = decode(pictures.png(film, 3, before=chunks))
    assert equal(read, np.where((film >= 200) & (film < 230), 0, film))
    assert read.cautions == (Caution.PALETTE, Caution.ALPHA)


def test_grey_bmp_with_an_inverted_palette_is_looked_up(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    inverted = b"".join(bytes([255 - level] * 3 + [0]) for level in range(256))
    data = pictures.bmp((255 - film)[::-1].tobytes(), film.shape[::-1], 8, palette=inverted)
    read = decode(data)
    assert equal(read, film)
    assert read.cautions == (Caution.PALETTE,)


# --- orientation -------------------------------------------------------------------------------


def upright(film: NDArray[Any], orientation: int, pictures: Any) -> NDArray[Any]:
    tagged = pictures.encode(film, "PNG", exif=pictures.exif(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(tagged))))


ORIENTED: dict[str, Callable[[Any, NDArray[Any], int], bytes]] = {
    "png": lambda p, film, way: p.encode(film, "PNG", exif=p.exif(way)),
    "png-behind-the-pixels": lambda p, film, way: p.png(
        film, 0, after=[(b"eXIf", p.exif(way).tobytes()[6:])]
    ),
    "png-imagemagick": lambda p, film, way: p.png(
        film, 0, before=[(b"zTXt", raw_profile(p.exif(way).tobytes()))]
    ),
    "png-rgb": lambda p, film, way: p.png(
        p.rgb(film), 2, before=[(b"eXIf", p.exif(way).tobytes()[6:])]
    ),
    "webp": lambda p, film, way: p.encode(film, "WEBP", lossless=True, exif=p.exif(way)),
    "tiff": lambda p, film, way: p.tiff(film, 1, tags={274: way}),
    "tiff-big-endian": lambda p, film, way: p.tiff(film, 1, order=">", tags={274: way}),
    "tiff-lzw": lambda p, film, way: p.encode(
        film, "TIFF", compression="tiff_lzw", tiffinfo={274: way}
    ),
    "tiff-rgb": lambda p, film, way: p.tiff(p.rgb(film), 2, tags={274: way}),
}

ORIENTED_DEPTHS = [
    (kind, bits) for kind in ORIENTED for bits in (8, 16) if (kind, bits) != ("webp", 16)
]
"""WebP has no 16-bit pixels."""


def raw_profile(exif: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a PNG's text."""
    text = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n".encode()
    return b"Raw profile type exif\0\0" + zlib.compress(text)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "bits"), ORIENTED_DEPTHS)
def test_stated_orientation_is_applied_once(
    kind: str, orientation: int, bits: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(bits=bits)
    read = decode(ORIENTED[kind](pictures, film, orientation))
    assert equal(read, upright(film, orientation, pictures), (1 << bits) - 1)
    assert read.cautions == (() if orientation == 1 else (Caution.EXIF,))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_stated_orientation_of_a_jpeg_is_applied_once(
    orientation: int, channels: str, pictures: Any, decode: Decode
) -> None:
    film = pictures.film()
    stored = film if channels == "grey" else pictures.rgb(film)
    data = pictures.encode(stored, "JPEG", exif=pictures.exif(orientation))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    read = decode(data)
    assert np.abs(read.pixels - np.asarray(turned).astype(int)).max() <= (channels == "rgb")
    assert read.cautions == (() if orientation == 1 else (Caution.EXIF,))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist_is_ignored(
    orientation: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film()
    for data in (
        pictures.encode(film, "PNG", exif=pictures.exif(orientation)),
        pictures.tiff(film, 1, tags={274: orientation}),
    ):
        read = decode(data)
        assert equal(read, film)
        assert read.cautions == ()


def test_damaged_exif_says_nothing(pictures: Any, decode: Decode) -> None:
    film = pictures.film()
    read = decode(pictures.png(film, 0, before=[(b"eXIf", b"not EXIF at all")]))
    assert equal(read, film)
    assert read.cautions == ()


# --- name, size of file, facts -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".png", ".webp", ".TIF", ".bmp", ""])
def test_content_decides_and_a_name_that_lies_is_told(
    kind: str, suffix: str, pictures: Any, decode: Decode
) -> None:
    usual = {"JPEG": "jpg jpeg jfif", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
    read = decode(pictures.encode(pictures.film(), kind), f"film{suffix}")
    honest = not suffix or suffix[1:].lower() in usual[kind].split()
    assert read.format == kind
    assert (Caution.SUFFIX in read.cautions) == (not honest)


def test_name_without_a_suffix_as_an_archive_exports_it_does_not_lie(
    pictures: Any, decode: Decode
) -> None:
    assert decode(pictures.encode(pictures.film(), "PNG"), "IM000001").cautions == ()


@pytest.mark.parametrize(
    ("kind", "options", "lossy"),
    [
        ("JPEG", {"quality": 5}, True),
        ("JPEG", {"quality": 98}, False),
        ("WEBP", {"quality": 0}, True),
        ("WEBP", {"lossless": True}, False),
        ("PNG", {}, False),
    ],
)
def test_only_heavy_lossy_compression_is_told(
    kind: str, options: dict[str, Any], lossy: bool, pictures: Any, decode: Decode
) -> None:
    # Two grey levels by areas: lossless formats store it in few bytes as well.
    smooth = np.where(pictures.film(512, 512, seed=1) > 128, np.uint8(180), np.uint8(60))
    smooth = cv2.medianBlur(smooth, 31) if kind != "JPEG" else pictures.film(512, 512)
    data = pictures.encode(smooth, kind, **options)
    read = decode(data)
    assert (Caution.LOSSY in read.cautions) == lossy
    if kind == "PNG":
        assert smooth.size > images.LOSSY_RATIO * len(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_coloured_mark_is_turned_to_grey_and_told(
    dtype: Any, pictures: Any, decode: Decode
) -> None:
    full = np.iinfo(dtype).max
    film = pictures.film(bits=8 * dtype().itemsize)
    marked = pictures.rgb(film)
    marked[10:22, 10:22] = (full, 0, 0)
    read = decode(pictures.png(marked, 2))
    assert read.cautions == (Caution.COLOUR,)
    assert np.array_equal(read.pixels[30:], film[30:])
    assert read.pixels[15, 15] == pytest.approx(0.299 * full, rel=1e-4, abs=1)


def test_phantoms_are_read_and_told_to_be_synthetic(tmp_path: Path) -> None:
    films = [read_radiograph(path) for path in write_samples(tmp_path, count=3)]
    assert [film.cautions for film in films] == [(Caution.SYNTHETIC,)] * 3


def test_hash_is_of_the_file_and_size_is_the_films(tmp_path: Path, pictures: Any) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(b"")
    data = pictures.encode(pictures.film(), "PNG")
    path.write_bytes(data)
    read = read_radiograph(path)
    assert read.sha256 == hashlib.sha256(data).hexdigest()
    assert read.pixels.shape == (128, 160)


def test_film_with_a_wide_black_border_is_read(pictures: Any, decode: Decode) -> None:
    # Such a WebP ends in many zeros, as a file does that was never filled: it must not be refused.
    film = pictures.film(800, 800)
    film[360:] = 0
    film[0:330] = np.maximum(film[0:330], 3)
    data = pictures.encode(film, "WEBP", lossless=True, method=0)
    assert len(data) - len(data.rstrip(b"\0")) > 512
    assert equal(decode(data), film)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (100, 200), (200, 100)])
def test_smallest_film_and_narrowest_shapes_are_read(
    height: int, width: int, pictures: Any, decode: Decode
) -> None:
    film = pictures.film(height, width)
    assert equal(decode(pictures.encode(film, "PNG")), film)


# --- refusals ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A file that is not assessed: its bytes by `make`, or whatever stands at the path."""

    reason: Reason
    make: Callable[[Any, Path], bytes | Path]
    detail: str = ""


def photograph(size: int = 160) -> NDArray[Any]:
    hsv = np.full((size, size, 3), 200, np.uint8)
    hsv[..., 0] = np.linspace(0, 179, size)
    hsv[..., 2] = np.linspace(60, 255, size)[:, None]
    pixels: NDArray[Any] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels


def share(white: float, level: int) -> NDArray[Any]:
    film = np.full((200, 200), 128, np.uint8)
    film[: round(200 * white)] = level
    return film


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels, by repeating one compressed block of zeros."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(1 << 16)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 16)) + packer.flush(zlib.Z_FULL_FLUSH)
    rows = head + block * ((width + 1) * height // (1 << 16)) + b"\x03\0"
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", ihdr), (b"IDAT", rows), (b"IEND", b""))
    )


def jpeg_with(pictures: Any, *, process: int = 0xC0, bits: int = 8) -> bytes:
    data = bytearray(pictures.encode(pictures.film(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = process, bits
    return bytes(data)


def series(pictures: Any, format: str, **options: Any) -> bytes:
    film = pictures.film()
    pages = [Image.fromarray(pictures.rgb(pixels)) for pixels in (film, 255 - film)]
    written = io.BytesIO()
    pages[0].save(written, format, save_all=True, append_images=pages[1:], **options)
    return written.getvalue()


def planar_16_bit(pictures: Any) -> bytes:
    data: bytes = pictures.tiff(pictures.rgb(pictures.film(bits=16)), 2, tags={284: 2})
    return data


def damaged_png(pictures: Any) -> bytes:
    data = bytearray(pictures.encode(pictures.film(), "PNG"))
    data[len(data) // 2] ^= 1
    return bytes(data)


def half_zero(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "film.png")
    return folder / "film.png"


def sparse(folder: Path) -> Path:
    path = folder / "film.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    return path


def unfinished(pictures: Any, folder: Path) -> Path:
    path = folder / "film.png.part"
    path.write_bytes(pictures.encode(pictures.film(), "PNG"))
    return path


REFUSALS: dict[str, Refusal] = {
    "missing": Refusal(Reason.UNREADABLE, lambda p, t: t / "none.png", "No such file"),
    "folder": Refusal(Reason.UNREADABLE, lambda p, t: t, "not a regular file"),
    "fifo": Refusal(Reason.UNREADABLE, lambda p, t: fifo(t), "not a regular file"),
    "device": Refusal(Reason.UNREADABLE, lambda p, t: Path("/dev/null"), "not a regular file"),
    "name-too-long": Refusal(Reason.UNREADABLE, lambda p, t: t / ("a" * 5000), "name too long"),
    "name-with-nul": Refusal(Reason.UNREADABLE, lambda p, t: t / "a\0b.png", "null"),
    "part": Refusal(Reason.INCOMPLETE, unfinished),
    "empty": Refusal(Reason.NOT_IMAGE, lambda p, t: b"", "empty file"),
    "text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"No film was exported.\n" * 20),
    "web-page": Refusal(Reason.NOT_IMAGE, lambda p, t: b"<!DOCTYPE html><html>Log in</html>"),
    "bm-text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BMI of the patients of ward 7: 27"),
    "bm-short": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BMI 27\n"),
    "bm-long": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BM" + b"I of the patient\r\n" * 999),
    "sound": Refusal(Reason.NOT_IMAGE, lambda p, t: b"RIFF\x24\0\0\0WAVEfmt " + bytes(20)),
    "riff-text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"RIFF"),
    "noise": Refusal(Reason.NOT_IMAGE, lambda p, t: b"\x17" + np.random.default_rng(0).bytes(9999)),
    "zeros": Refusal(Reason.NOT_IMAGE, lambda p, t: bytes(100_000)),
    "line-ends-changed": Refusal(
        Reason.NOT_IMAGE, lambda p, t: p.encode(p.film(), "PNG").replace(b"\n", b"\r\n")
    ),
    "half-zero-jpeg": Refusal(
        Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.film(), "JPEG", quality=100))
    ),
    "half-zero-progressive": Refusal(
        Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.film(), "JPEG", progressive=True))
    ),
    "half-zero-png": Refusal(Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.film(), "PNG"))),
    "half-zero-tiff": Refusal(Reason.TRUNCATED, lambda p, t: half_zero(p.tiff(p.film(), 1))),
    "dicom": Refusal(Reason.DICOM, lambda p, t: bytes(128) + b"DICM" + bytes(500)),
    "dicom-and-tiff": Refusal(
        Reason.DICOM, lambda p, t: p.tiff(p.film(), 1)[:128] + b"DICM" + bytes(500)
    ),
    "pdf": Refusal(Reason.FORMAT, lambda p, t: b"%PDF-1.7\n%...", "PDF"),
    "zip": Refusal(Reason.FORMAT, lambda p, t: b"PK\x03\x04" + bytes(40), "ZIP"),
    "gzip": Refusal(Reason.FORMAT, lambda p, t: b"\x1f\x8b\x08" + bytes(40), "gzip"),
    "heic": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
    "avif": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypavif" + bytes(99), "AVIF"),
    "video": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypqt  " + bytes(99), "video"),
    "jpeg-2000": Refusal(Reason.FORMAT, lambda p, t: p.encode(p.film(), "JPEG2000"), "JPEG 2000"),
    "jpeg-xl": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "gif": Refusal(Reason.FORMAT, lambda p, t: p.encode(p.film(), "GIF"), "GIF"),
    "gif-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "GIF"), "2 pictures"),
    "png-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "PNG"), "2 pictures"),
    "webp-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "WEBP"), "2 pictures"),
    "tiff-pages": Refusal(Reason.FRAMES, lambda p, t: series(p, "TIFF"), "2 pictures"),
    "mpo": Refusal(Reason.FRAMES, lambda p, t: series(p, "MPO"), "2 pictures"),
    "file-too-big": Refusal(Reason.TOO_BIG, lambda p, t: sparse(t), "1073741825 bytes"),
    "bomb": Refusal(Reason.TOO_BIG, lambda p, t: bomb(20_000, 20_000), "by its header"),
    "99-pixels": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.film(99, 150), "PNG"), "150 x 99"),
    "strip": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.film(120, 241), "PNG"), "241 x 120"),
    "tall": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.film(241, 120), "JPEG"), "120 x 241"),
    "1-bit-png": Refusal(
        Reason.MODE, lambda p, t: p.encode(Image.fromarray(p.film() > 99), "PNG"), "1-bit"
    ),
    "1-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(Image.fromarray(p.film() > 99), "TIFF"), "1-bit"
    ),
    "1-bit-palette": Refusal(
        Reason.MODE,
        lambda p, t: p.encode(Image.fromarray(p.film()).quantize(2), "PNG", bits=1),
        "1-bit",
    ),
    "float-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(p.film().astype(np.float32), "TIFF"), "floating"
    ),
    "32-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(p.film().astype(np.int32), "TIFF"), "32-bit"
    ),
    "signed-16-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.tiff(p.film().astype(np.int16), 1, tags={339: 2}), "integers"
    ),
    "signed-8-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.tiff(p.film(), 1, tags={339: 2}), "signed"
    ),
    "cmyk-jpeg": Refusal(
        Reason.MODE,
        lambda p, t: p.encode(Image.fromarray(p.film()).convert("CMYK"), "JPEG"),
        "CMYK",
    ),
    "cmyk-tiff": Refusal(Reason.MODE, lambda p, t: p.tiff(p.rgb(p.film(), p.film()), 5), "CMYK"),
    "lab-tiff": Refusal(Reason.MODE, lambda p, t: p.tiff(p.rgb(p.film()), 8), "LAB"),
    "planar-16-bit": Refusal(Reason.MODE, lambda p, t: planar_16_bit(p), "planes"),
    "photograph-png": Refusal(Reason.COLOUR, lambda p, t: p.encode(photograph(), "PNG"), "chroma"),
    "photograph-jpeg": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(photograph(), "JPEG"), "chroma"
    ),
    "photograph-webp": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(photograph(), "WEBP"), "chroma"
    ),
    "photograph-16-bit": Refusal(
        Reason.COLOUR, lambda p, t: p.png(photograph().astype(np.uint16) * 257, 2), "chroma"
    ),
    "photograph-palette": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(Image.fromarray(photograph()).quantize(64), "PNG")
    ),
    "dark-photograph": Refusal(Reason.COLOUR, lambda p, t: p.encode(photograph() // 4, "PNG")),
    "tinted": Refusal(
        Reason.COLOUR, lambda p, t: p.encode((p.rgb(p.film()) * (1, 0.9, 0.7)).astype("u1"), "PNG")
    ),
    "black": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 0), "PNG"), "contrast 0.0"),
    "grey": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 128), "JPEG"), "contrast 0.0"),
    "white": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 255), "BMP"), "contrast 0.0"),
    "black-16-bit": Refusal(
        Reason.BLANK, lambda p, t: p.encode(np.zeros((200, 200), np.uint16), "PNG"), "contrast 0.0"
    ),
    "white-16-bit": Refusal(
        Reason.BLANK,
        lambda p, t: p.encode(np.full((200, 200), 65535, np.uint16), "PNG"),
        "contrast",
    ),
    "transparent": Refusal(
        Reason.BLANK, lambda p, t: p.encode(p.rgb(p.film(), p.film() * 0), "PNG"), "contrast 0.0"
    ),
    "nearly-constant": Refusal(
        Reason.BLANK, lambda p, t: p.encode(120 + p.film() // 32, "PNG"), "contrast"
    ),
    "mostly-black": Refusal(Reason.BLANK, lambda p, t: p.encode(share(0.7, 0), "PNG"), "70%"),
    "mostly-white": Refusal(Reason.BLANK, lambda p, t: p.encode(share(0.7, 255), "PNG"), "70%"),
    "two-levels": Refusal(
        Reason.BLANK, lambda p, t: p.encode((p.film() > 120) * np.uint8(255), "PNG"), "white"
    ),
    "checksum": Refusal(Reason.DECODE, lambda p, t: damaged_png(p), "checksum"),
    "12-bit-jpeg": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, bits=12), "JPEG of a kind"),
    "lossless-jpeg": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, process=0xC3)),
    "jpeg-ls": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, process=0xF7), "JPEG of a kind"),
    "half-float-tiff": Refusal(
        Reason.DECODE,
        lambda p, t: p.tiff(p.film().astype(np.float16), 1, tags={339: 3}),
        "TIFF of a kind",
    ),
    "white-is-zero-big-endian": Refusal(
        Reason.DECODE, lambda p, t: p.tiff(p.film(bits=16), 0, order=">"), "TIFF of a kind"
    ),
}

ELSEWHERE: dict[Reason | Caution, str] = {}
"""Members that no picture file can bring about, and why."""


def placed(case: Refusal, pictures: Any, folder: Path) -> Path:
    made = case.make(pictures, folder)
    if isinstance(made, Path):
        return made
    path = folder / "film.png"
    path.write_bytes(made)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_reason_a_sentence_and_a_detail(
    name: str, tmp_path: Path, pictures: Any
) -> None:
    case = REFUSALS[name]
    path = placed(case, pictures, tmp_path)
    with pytest.raises(ImageRefusedError) as caught:
        read_radiograph(path)
    error = caught.value
    assert error.reason is case.reason, error
    assert str(error).startswith(case.reason.sentence)
    assert case.reason.sentence.endswith(".")
    assert case.detail.lower() in error.detail.lower()
    assert "\n" not in str(error)
    assert "0x" not in error.detail  # no address of an object: the same file, the same record


def test_every_reason_is_brought_about_by_a_file() -> None:
    brought_about = {case.reason for case in REFUSALS.values()}
    assert brought_about | {member for member in ELSEWHERE if isinstance(member, Reason)} == set(
        Reason
    )


CAUTIONED: dict[Caution, Callable[[Any], tuple[bytes, str]]] = {
    Caution.SUFFIX: lambda p: (p.encode(p.film(), "PNG"), "film.jpg"),
    Caution.EXIF: lambda p: (p.encode(p.film(), "PNG", exif=p.exif(3)), "film.png"),
    Caution.ALPHA: lambda p: (p.encode(p.rgb(p.film(), p.film()), "PNG"), "film.png"),
    Caution.PALETTE: lambda p: (
        p.encode(Image.fromarray(p.film()).convert("P"), "PNG"),
        "film.png",
    ),
    Caution.DEPTH: lambda p: (p.encode(p.film(bits=12), "PNG"), "film.png"),
    Caution.COLOUR: lambda p: (p.encode(marked_film(p), "PNG"), "film.png"),
    Caution.LOSSY: lambda p: (p.encode(p.film(512, 512), "JPEG", quality=5), "film.jpg"),
    Caution.SYNTHETIC: lambda p: (
        p.png(p.film(), 0, before=[(b"tEXt", b"Description\0" + images.SYNTHETIC_MARK)]),
        "film.png",
    ),
}


def marked_film(pictures: Any) -> NDArray[Any]:
    marked: NDArray[Any] = pictures.rgb(pictures.film())
    marked[10:30, 10:30] = (255, 255, 0)
    return marked


@pytest.mark.parametrize("caution", CAUTIONED)
def test_assessed_with_this_caution_alone(caution: Caution, pictures: Any, decode: Decode) -> None:
    data, name = CAUTIONED[caution](pictures)
    assert decode(data, name).cautions == (caution,)


def test_every_caution_is_brought_about_by_a_file() -> None:
    elsewhere = {member for member in ELSEWHERE if isinstance(member, Caution)}
    assert set(CAUTIONED) | elsewhere == set(Caution)


def test_codes_are_unique_and_sentences_are_sentences() -> None:
    for coded, prefix in ((Reason, "E_"), (Caution, "W_")):
        codes = [member.code for member in coded]
        assert len(set(codes)) == len(codes)
        assert all(code.startswith(prefix) for code in codes)
        assert not any(member.sentence[0].islower() for member in coded)
        assert all(member.sentence.endswith(".") for member in coded)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_may_not_be_read_is_refused(tmp_path: Path, pictures: Any) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(pictures.encode(pictures.film(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageRefusedError, match="Permission denied") as caught:
        read_radiograph(path)
    assert caught.value.reason is Reason.UNREADABLE


# --- bombs -------------------------------------------------------------------------------------


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc for memory used")
def test_bomb_is_refused_before_a_pixel_is_decoded(decode: Decode) -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 1_000_000
    before, started = resident_bytes(), time.perf_counter()
    with pytest.raises(ImageRefusedError) as caught:
        decode(data)
    assert caught.value.reason is Reason.TOO_BIG
    assert time.perf_counter() - started < 1.0
    assert resident_bytes() - before < 50_000_000  # 400 MB of pixels


def test_picture_above_the_limit_is_refused_though_pillow_would_only_warn(decode: Decode) -> None:
    # In a run, Pillow's warning between 89 and 179 megapixels is none of our errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageRefusedError, match=r"12000 x 9000 pixels; at most 100 mega"):
            decode(bomb(12_000, 9_000))


# --- files that arrive while they are read -----------------------------------------------------


class Arriving(type(Path())):  # type: ignore[misc]
    """A path whose file grows by a byte after each of its first `growths` readings."""

    growths = 0

    def read_bytes(self) -> bytes:
        data: bytes = super().read_bytes()
        if type(self).growths > 0:
            type(self).growths -= 1
            with self.open("ab") as file:
                file.write(b"\0")
        return data


@pytest.mark.parametrize(("growths", "refused"), [(1, False), (2, True)])
def test_growing_file_is_waited_for_once(
    growths: int, refused: bool, tmp_path: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("deepcovid_edge.images.time.sleep", waits.append)
    monkeypatch.setattr(Arriving, "growths", growths)
    path = Arriving(tmp_path / "film.jpg")
    path.write_bytes(pictures.encode(pictures.film(), "JPEG"))
    if refused:
        with pytest.raises(ImageRefusedError) as caught:
            read_radiograph(path)
        assert caught.value.reason is Reason.INCOMPLETE
    else:
        assert read_radiograph(path).format == "JPEG"
    assert waits == [1.0]


def test_file_that_another_thread_writes_is_never_a_picture(tmp_path: Path, pictures: Any) -> None:
    whole = pictures.encode(pictures.film(900, 900, bits=16), "PNG")
    path = tmp_path / "film.png"
    path.write_bytes(whole[:1000])
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            for at in range(1000, len(whole) - 1):
                if stop.is_set():
                    return
                file.write(whole[at : at + 1])

    writer = threading.Thread(target=append)
    writer.start()
    try:
        with pytest.raises(ImageRefusedError) as caught:
            read_radiograph(path)
    finally:
        stop.set()
        writer.join()
    assert caught.value.reason in (Reason.INCOMPLETE, Reason.TRUNCATED)


# --- real films --------------------------------------------------------------------------------

ORIGINALS = sorted(
    path
    for path in (XRAY / "original").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".jfif", ".png", ".webp"}
)


def pillow_luminance(path: Path) -> NDArray[Any]:
    """The film by Pillow alone: alpha laid on black, then ITU-R BT.601 luma."""
    picture = ImageOps.exif_transpose(Image.open(path))
    assert picture.mode in {"L", "RGB", "RGBA", "LA", "P"}
    if picture.mode in {"RGBA", "LA", "P"}:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture).convert("RGB")
    return np.asarray(picture.convert("L"))


@pytest.mark.skipif(not ORIGINALS, reason=f"no films in {XRAY / 'original'}: set $DEEPCOVID_XRAY")
def test_original_films_are_read_within_one_grey_level_of_pillow() -> None:
    worst = {}
    for path in ORIGINALS:
        read = read_radiograph(path)
        assert read.white == 255
        reference = pillow_luminance(path).astype(int)
        assert read.pixels.shape == reference.shape
        worst[path.name] = int(np.abs(read.pixels - reference).max())
    assert len(worst) >= 10
    assert {name: level for name, level in worst.items() if level > 1} == {}
