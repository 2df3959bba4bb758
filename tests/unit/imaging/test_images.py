"""The reader: every rule of its table but turns, and real images."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import phantom_files
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deepcovid_edge.imaging import radiograph
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import WarningCode

Decode = Callable[..., Radiograph]

XRAY = Path(os.environ.get("DEEPCOVID_XRAY", str(Path(__file__).parents[4] / "shared" / "xray")))
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


def equal(image: Radiograph, pixels: NDArray[Any], white: int = 255) -> bool:
    return image.white == white and np.array_equal(image.pixels, pixels)


# --- grey pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_8_bit_grey_and_rgb_of_equal_channels_are_read_as_they_are(
    kind: str, channels: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    name, options = LOSSLESS[kind]
    stored = image if channels == "grey" else pictures.rgb(image)
    read = decode(pictures.encode(stored, name, **options))
    assert read.pixels.dtype == np.uint8
    assert equal(read, image)
    assert (read.format, read.warnings) == (name, ())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_jpeg_has_the_grey_levels_that_pillow_decodes(
    channels: str, options: dict[str, Any], pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    data = pictures.encode(image if channels == "grey" else pictures.rgb(image), "JPEG", **options)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    read = decode(data)
    assert read.format == "JPEG"
    assert np.abs(read.pixels - pillow).max() <= (0 if channels == "grey" else 1)
    assert np.abs(read.pixels - image.astype(int)).mean() < 4


def test_stray_bytes_behind_the_last_pixel_of_a_jpeg_do_no_harm(
    pictures: Any, decode: Decode
) -> None:
    data = pictures.encode(pictures.image(), "JPEG")
    assert equal(decode(data[:-2] + b"\1\2\3\4" + data[-2:]), decode(data).pixels)


def test_jpeg_that_stores_rgb_instead_of_ycbcr_is_not_taken_for_a_colour_picture(
    pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    read = decode(pictures.encode(pictures.rgb(image), "JPEG", keep_rgb=True, quality=98))
    assert np.abs(read.pixels - image.astype(int)).max() <= 6


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_of_fewer_bits_is_stretched_to_8(bits: int, pictures: Any, decode: Decode) -> None:
    image = pictures.image() >> (8 - bits)
    alone = np.unpackbits(image[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(alone.reshape(len(image), -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    read = decode(pictures.png_of_rows(rows, (*image.shape, bits, 0)))
    assert equal(read, image * (255 // ((1 << bits) - 1)))
    assert read.warnings == (WarningCode.DEPTH,)

    white = (1 << bits) - 1
    key = (b"tRNS", struct.pack(">H", white))
    see_through = decode(pictures.png_of_rows(rows, (*image.shape, bits, 0), before=[key]))
    assert equal(see_through, np.where(image == white, 0, image) * (255 // white))


@pytest.mark.parametrize(
    "write",
    [
        lambda p, image: p.encode(image, "PNG"),
        lambda p, image: p.encode(image, "TIFF"),
        lambda p, image: p.encode(image, "TIFF", compression="tiff_lzw"),
        lambda p, image: p.tiff(image, 1, order="<"),
        lambda p, image: p.tiff(image, 1, order=">"),
        lambda p, image: p.png(p.rgb(image), 2),
        lambda p, image: p.tiff(p.rgb(image), 2, order="<"),
        lambda p, image: p.tiff(p.rgb(image), 2, order=">"),
        lambda p, image: p.opencv(p.rgb(image), ".tiff"),
        lambda p, image: p.png(np.dstack([image, np.full_like(image, 65535)]), 4),
        lambda p, image: p.png(p.rgb(image, np.full_like(image, 65535)), 6),
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
    image = pictures.image(bits=bits)
    read = decode(write(pictures, image))
    assert read.pixels.dtype == np.dtype("uint16")
    assert read.pixels.dtype.isnative
    assert equal(read, image, (1 << bits) - 1)
    assert read.warnings == (() if bits == 16 else (WarningCode.DEPTH,))


def test_12_bits_that_stand_in_the_upper_bits_are_full_scale(pictures: Any, decode: Decode) -> None:
    image = pictures.image(bits=12) << 4
    read = decode(pictures.encode(image, "PNG"))
    assert equal(read, image, 65535)
    assert read.warnings == ()


def test_16_bit_file_with_8_bits_or_less_is_scaled_by_8(pictures: Any, decode: Decode) -> None:
    image = (pictures.image() >> 2).astype(np.uint16)
    assert equal(decode(pictures.encode(image, "PNG")), image, 255)


def test_burnt_in_marker_at_full_white_does_not_blacken_a_12_bit_image(
    pictures: Any, decode: Decode
) -> None:
    image = pictures.image(600, 500, bits=12)
    marked = image.copy()
    marked[20:36, 20:36] = 65535  # 0.09 % of the pixels
    read = decode(pictures.encode(marked, "PNG"))
    expected = image.copy()
    expected[20:36, 20:36] = 4095
    assert equal(read, expected, 4095)
    assert read.warnings == (WarningCode.DEPTH,)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_white_is_zero_is_inverted_at_the_depth_it_uses(
    order: str, bits: int, orientation: int, big: bool, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    white = (1 << bits) - 1
    data = pictures.tiff(white - image, 0, order=order, big=big, tags={274: orientation})
    assert equal(decode(data), image if orientation == 1 else np.rot90(image, 3), white)


@pytest.mark.parametrize("bits", [8, 16])
def test_compressed_tiff_white_is_zero_is_inverted(
    bits: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    white = (1 << bits) - 1
    assert equal(decode(pictures.tiff(white - image, 0, tags={259: 8})), image, white)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_16_bit_tiff_of_rgb_and_a_channel_without_meaning_is_read_as_rgb(
    order: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=16)
    data = pictures.tiff(pictures.rgb(image, image * 0), 2, order=order, tags={338: 0})
    assert equal(decode(data), image, 65535)


def test_bmp_of_every_depth_and_direction_is_read(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    height, width = image.shape
    up = image[::-1]
    ramp = b"".join(bytes([level, level, level, 0]) for level in range(256))
    runs = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in up) + b"\0\1"
    files = {
        "8": pictures.bmp(up.tobytes(), (width, height), 8, palette=ramp),
        "8 top-down": pictures.bmp(image.tobytes(), (width, -height), 8, palette=ramp),
        "8 RLE": pictures.bmp(runs, (width, height), 8, compression=1, palette=ramp),
        "24": pictures.bmp(pictures.rgb(up).tobytes(), (width, height), 24),
        "32": pictures.bmp(pictures.rgb(up, up * 0).tobytes(), (width, height), 32),
        "size unstated": pictures.bmp(up.tobytes(), (width, height), 8, palette=ramp, stated=0),
        "size overstated": pictures.bmp(
            up.tobytes(), (width, height), 8, palette=ramp, stated=10**6
        ),
    }
    assert {name: equal(decode(data), image) for name, data in files.items()} == dict.fromkeys(
        files, True
    )


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_that_a_bmp_has_a_mask_for_and_never_filled_hides_nothing(
    header: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000).ljust(header - 40, b"\0")
    for alpha, expected, warnings in (
        (image * 0, image, ()),
        (image * 0 + 255, image, ()),
        (image, np.rint(image * (image / 255)), (WarningCode.ALPHA,)),
    ):
        rows = pictures.rgb(image, alpha)[::-1].tobytes()
        data = pictures.bmp(rows, image.shape[::-1], 32, compression=3, palette=masks)
        read = decode(data[:14] + struct.pack("<I", header) + data[18:])
        assert equal(read, expected)
        assert read.warnings == warnings


# --- colour, alpha, palette --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unequal_channels_become_bt601_luma(dtype: Any, pictures: Any, decode: Decode) -> None:
    full = np.iinfo(dtype).max
    grey = pictures.image(bits=8 * dtype().itemsize) // 2 + full // 4
    tinted = np.dstack([grey + full // 90, grey, grey - full // 90])
    luma = tinted.astype(float) @ (0.299, 0.587, 0.114)  # ITU-R BT.601
    read = decode(pictures.png(tinted, 2))
    assert np.abs(read.pixels - luma).max() <= 1
    assert read.warnings == ()


def alpha_of(image: NDArray[Any]) -> NDArray[Any]:
    alpha = np.full_like(image, np.iinfo(image.dtype).max)
    alpha[:40] = 0
    alpha[40:60] = alpha.max() // 3
    return alpha


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "write",
    [
        lambda p, image, alpha: p.png(np.dstack([image, alpha]), 4),
        lambda p, image, alpha: p.png(p.rgb(image, alpha), 6),
        lambda p, image, alpha: p.tiff(p.rgb(image, alpha), 2, tags={338: 2}),
        lambda p, image, alpha: p.tiff(p.rgb(image, alpha), 2, order=">", tags={338: 2}),
    ],
    ids=["la-png", "rgba-png", "rgba-tiff-little", "rgba-tiff-big"],
)
def test_alpha_is_laid_on_black(
    write: Callable[..., bytes], bits: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    alpha = alpha_of(image)
    read = decode(write(pictures, image, alpha))
    laid = image * (alpha / alpha.max())
    assert np.abs(read.pixels - laid).max() <= 0.51
    assert read.pixels[:40].max() == 0
    assert read.warnings == (WarningCode.ALPHA,)


def test_webp_alpha_is_laid_on_black(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    alpha = alpha_of(image)
    read = decode(pictures.encode(pictures.rgb(image, alpha), "WEBP", lossless=True, exact=True))
    assert np.abs(read.pixels - image * (alpha / 255)).max() <= 0.51
    assert read.warnings == (WarningCode.ALPHA,)


@pytest.mark.parametrize(("bits", "coloured"), [(8, True), (16, True), (8, False)])
def test_alpha_that_was_laid_on_black_by_the_writer_is_not_laid_on_twice(
    bits: int, coloured: bool, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    alpha = np.full_like(image, np.iinfo(image.dtype).max)
    alpha[:40] //= 3
    laid = (image * (alpha / alpha.max())).astype(image.dtype)
    both = pictures.rgb(laid, alpha) if coloured else np.dstack([laid, alpha])
    read = decode(pictures.tiff(both, 2 if coloured else 1, tags={338: 1}))  # associated alpha
    assert np.abs(read.pixels - laid.astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_opaque_alpha_gives_no_caution(bits: int, pictures: Any, decode: Decode) -> None:
    image = pictures.image(bits=bits)
    full = np.full_like(image, np.iinfo(image.dtype).max)
    for data in (
        pictures.png(np.dstack([image, full]), 4),
        pictures.png(pictures.rgb(image, full), 6),
    ):
        read = decode(data)
        assert equal(read, image, int(full.max()))
        assert read.warnings == ()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_a_png_is_laid_on_black(
    bits: int, channels: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    key = int(image.max()) // 2
    image[image == key] += 1
    image[:30, :30] = key
    stored = image if channels == 1 else pictures.rgb(image)
    key_chunk = (b"tRNS", struct.pack(">H", key) * channels)
    read = decode(pictures.png(stored, 0 if channels == 1 else 2, before=[key_chunk]))
    image[:30, :30] = 0
    assert np.array_equal(read.pixels, image)
    assert read.warnings == (WarningCode.ALPHA,)


def palette_of(levels: NDArray[Any]) -> bytes:
    return np.repeat(levels.astype(np.uint8), 3).tobytes()


def test_palette_is_looked_up_whatever_its_order(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    levels = np.random.default_rng(3).permutation(256)
    indices = np.argsort(levels)[image].astype(np.uint8)
    read = decode(pictures.png(indices, 3, before=[(b"PLTE", palette_of(levels))]))
    assert equal(read, image)
    assert read.warnings == (WarningCode.PALETTE,)


def test_transparent_palette_entries_are_laid_on_black(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    chunks = [(b"PLTE", palette_of(np.arange(256))), (b"tRNS", bytes([255] * 200 + [0] * 30))]
    read = decode(pictures.png(image, 3, before=chunks))
    assert equal(read, np.where((image >= 200) & (image < 230), 0, image))
    assert read.warnings == (WarningCode.PALETTE, WarningCode.ALPHA)


def test_grey_bmp_with_an_inverted_palette_is_looked_up(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    inverted = b"".join(bytes([255 - level] * 3 + [0]) for level in range(256))
    data = pictures.bmp((255 - image)[::-1].tobytes(), image.shape[::-1], 8, palette=inverted)
    read = decode(data)
    assert equal(read, image)
    assert read.warnings == (WarningCode.PALETTE,)


# --- name, size of file, facts -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".png", ".webp", ".TIF", ".bmp", ""])
def test_content_decides_and_a_name_that_lies_is_told(
    kind: str, suffix: str, pictures: Any, decode: Decode
) -> None:
    usual = {"JPEG": "jpg jpeg jfif", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
    read = decode(pictures.encode(pictures.image(), kind), f"image{suffix}")
    honest = not suffix or suffix[1:].lower() in usual[kind].split()
    assert read.format == kind
    assert (WarningCode.SUFFIX in read.warnings) == (not honest)


def test_name_without_a_suffix_as_an_archive_exports_it_does_not_lie(
    pictures: Any, decode: Decode
) -> None:
    assert decode(pictures.encode(pictures.image(), "PNG"), "IM000001").warnings == ()


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
    smooth = np.where(pictures.image(512, 512, seed=1) > 128, np.uint8(180), np.uint8(60))
    smooth = cv2.medianBlur(smooth, 31) if kind != "JPEG" else pictures.image(512, 512)
    data = pictures.encode(smooth, kind, **options)
    read = decode(data)
    assert (WarningCode.LOSSY in read.warnings) == lossy
    if kind == "PNG":
        assert smooth.size > radiograph.LOSSY_RATIO * len(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_coloured_mark_is_turned_to_grey_and_told(
    dtype: Any, pictures: Any, decode: Decode
) -> None:
    full = np.iinfo(dtype).max
    image = pictures.image(bits=8 * dtype().itemsize)
    marked = pictures.rgb(image)
    marked[10:22, 10:22] = (full, 0, 0)
    read = decode(pictures.png(marked, 2))
    assert read.warnings == (WarningCode.COLOUR,)
    assert np.array_equal(read.pixels[30:], image[30:])
    assert read.pixels[15, 15] == pytest.approx(0.299 * full, rel=1e-4, abs=1)


def test_phantoms_are_read_and_told_to_be_synthetic(tmp_path: Path) -> None:
    images = [read_radiograph(path) for path in phantom_files(tmp_path, count=3)]
    assert [image.warnings for image in images] == [(WarningCode.SYNTHETIC,)] * 3


def test_hash_is_of_the_file_and_size_is_the_images(tmp_path: Path, pictures: Any) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"")
    data = pictures.encode(pictures.image(), "PNG")
    path.write_bytes(data)
    read = read_radiograph(path)
    assert read.sha256 == hashlib.sha256(data).hexdigest()
    assert read.pixels.shape == (128, 160)


def test_image_with_a_wide_black_border_is_read(pictures: Any, decode: Decode) -> None:
    # Such a WebP ends in many zeros, as a file does that was never filled: it must not be refused.
    image = pictures.image(800, 800)
    image[360:] = 0
    image[0:330] = np.maximum(image[0:330], 3)
    data = pictures.encode(image, "WEBP", lossless=True, method=0)
    assert len(data) - len(data.rstrip(b"\0")) > 512
    assert equal(decode(data), image)


@pytest.mark.parametrize(("height", "width"), [(100, 100), (100, 200), (200, 100)])
def test_smallest_image_and_narrowest_shapes_are_read(
    height: int, width: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(height, width)
    assert equal(decode(pictures.encode(image, "PNG")), image)


# --- real images --------------------------------------------------------------------------------

ORIGINALS = sorted(
    path
    for path in (XRAY / "original").glob("*")
    if path.suffix.lower() in {".jpg", ".jpeg", ".jfif", ".png", ".webp"}
)


def pillow_luminance(path: Path) -> NDArray[Any]:
    """The image by Pillow alone: alpha laid on black, then ITU-R BT.601 luma."""
    picture = ImageOps.exif_transpose(Image.open(path))
    assert picture.mode in {"L", "RGB", "RGBA", "LA", "P"}
    if picture.mode in {"RGBA", "LA", "P"}:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture).convert("RGB")
    return np.asarray(picture.convert("L"))


@pytest.mark.skipif(not ORIGINALS, reason=f"no images in {XRAY / 'original'}: set $DEEPCOVID_XRAY")
def test_original_images_are_read_within_one_grey_level_of_pillow() -> None:
    worst = {}
    for path in ORIGINALS:
        read = read_radiograph(path)
        assert read.white == 255
        reference = pillow_luminance(path).astype(int)
        assert read.pixels.shape == reference.shape
        worst[path.name] = int(np.abs(read.pixels - reference).max())
    assert len(worst) >= 10
    assert {name: level for name, level in worst.items() if level > 1} == {}
