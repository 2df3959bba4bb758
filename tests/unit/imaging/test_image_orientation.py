"""The reader turns images as their EXIF or TIFF orientation says."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from test_images import equal

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import WarningCode

Decode = Callable[..., Radiograph]


def upright(image: NDArray[Any], orientation: int, pictures: Any) -> NDArray[Any]:
    tagged = pictures.encode(image, "PNG", exif=pictures.exif(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(tagged))))


ORIENTED: dict[str, Callable[[Any, NDArray[Any], int], bytes]] = {
    "png": lambda p, image, way: p.encode(image, "PNG", exif=p.exif(way)),
    "png-behind-the-pixels": lambda p, image, way: p.png(
        image, 0, after=[(b"eXIf", p.exif(way).tobytes()[6:])]
    ),
    "png-imagemagick": lambda p, image, way: p.png(
        image, 0, before=[(b"zTXt", raw_profile(p.exif(way).tobytes()))]
    ),
    "png-rgb": lambda p, image, way: p.png(
        p.rgb(image), 2, before=[(b"eXIf", p.exif(way).tobytes()[6:])]
    ),
    "webp": lambda p, image, way: p.encode(image, "WEBP", lossless=True, exif=p.exif(way)),
    "tiff": lambda p, image, way: p.tiff(image, 1, tags={274: way}),
    "tiff-big-endian": lambda p, image, way: p.tiff(image, 1, order=">", tags={274: way}),
    "tiff-lzw": lambda p, image, way: p.encode(
        image, "TIFF", compression="tiff_lzw", tiffinfo={274: way}
    ),
    "tiff-rgb": lambda p, image, way: p.tiff(p.rgb(image), 2, tags={274: way}),
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
    image = pictures.image(bits=bits)
    read = decode(ORIENTED[kind](pictures, image, orientation))
    assert equal(read, upright(image, orientation, pictures), (1 << bits) - 1)
    assert read.warnings == (() if orientation == 1 else (WarningCode.EXIF,))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_stated_orientation_of_a_jpeg_is_applied_once(
    orientation: int, channels: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    stored = image if channels == "grey" else pictures.rgb(image)
    data = pictures.encode(stored, "JPEG", exif=pictures.exif(orientation))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    read = decode(data)
    assert np.abs(read.pixels - np.asarray(turned).astype(int)).max() <= (channels == "rgb")
    assert read.warnings == (() if orientation == 1 else (WarningCode.EXIF,))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist_is_ignored(
    orientation: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    for data in (
        pictures.encode(image, "PNG", exif=pictures.exif(orientation)),
        pictures.tiff(image, 1, tags={274: orientation}),
    ):
        read = decode(data)
        assert equal(read, image)
        assert read.warnings == ()


def test_damaged_exif_says_nothing(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    read = decode(pictures.png(image, 0, before=[(b"eXIf", b"not EXIF at all")]))
    assert equal(read, image)
    assert read.warnings == ()
