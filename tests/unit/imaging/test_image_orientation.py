"""The reader turns images as their EXIF or TIFF orientation says, or else their XMP."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
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
    "png-rgb-imagemagick": lambda p, image, way: p.png(
        p.rgb(image), 2, before=[(b"zTXt", raw_profile(p.exif(way).tobytes()))]
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


def xmp(orientation: int, *, as_element: bool = False) -> bytes:
    """XMP that states an orientation, as an attribute or as exiftool writes it."""
    stated = f'tiff:Orientation="{orientation}"/>'
    if as_element:
        stated = f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    return f"<x:xmpmeta><rdf:RDF><rdf:Description {stated}</rdf:RDF></x:xmpmeta>".encode()


def itxt(text: bytes, *, compressed: bool = False) -> tuple[bytes, bytes]:
    """The chunk of a PNG that holds XMP."""
    data = zlib.compress(text) if compressed else text
    return b"iTXt", b"XML:com.adobe.xmp\0" + bytes((compressed,)) + b"\0\0\0" + data


IN_XMP: dict[str, Callable[[Any, NDArray[Any], int], bytes]] = {
    "png": lambda p, image, way: p.png(image, 0, before=[itxt(xmp(way))]),
    "png-element": lambda p, image, way: p.png(image, 0, before=[itxt(xmp(way, as_element=True))]),
    "png-compressed": lambda p, image, way: p.png(
        image, 0, before=[itxt(xmp(way), compressed=True)]
    ),
    "png-behind-the-pixels": lambda p, image, way: p.png(image, 0, after=[itxt(xmp(way))]),
    "png-exif-without-it": lambda p, image, way: p.encode(
        image, "PNG", exif=Image.Exif(), pnginfo=pnginfo(xmp(way))
    ),
    "png-rgb": lambda p, image, way: p.png(p.rgb(image), 2, before=[itxt(xmp(way))]),
    "tiff": lambda p, image, way: p.encode(image, "TIFF", tiffinfo={700: xmp(way)}),
    "tiff-rgb": lambda p, image, way: tiff_of_rgb(p.rgb(image), xmp(way)),
}


def pnginfo(text: bytes) -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_itxt("XML:com.adobe.xmp", text.decode())
    return found


def tiff_of_rgb(pixels: NDArray[Any], text: bytes) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    written = io.BytesIO()
    tifffile.imwrite(
        written, pixels, photometric="rgb", extratags=[(700, 1, len(text), text, True)]
    )
    return written.getvalue()


@pytest.mark.parametrize("orientation", [1, 2, 6])
@pytest.mark.parametrize(("kind", "bits"), list(product(IN_XMP, (8, 16))))
def test_an_orientation_in_xmp_is_applied_once(
    kind: str, orientation: int, bits: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    read = decode(IN_XMP[kind](pictures, image, orientation))
    assert equal(read, upright(image, orientation, pictures), (1 << bits) - 1)
    assert read.warnings == (() if orientation == 1 else (WarningCode.EXIF,))


SPELLINGS = (
    b"<rdf:Description tiff:Orientation='6'/>",
    b'<rdf:Description tiff:Orientation = "6"/>',
    b"<rdf:Description tiff:Orientation\n=\t'6'/>",
    b"<tiff:Orientation\n> 6 </tiff:Orientation>",
)
"""By XML 1.0, productions 10, 25 and 40."""
SPELT: dict[str, Callable[[Any, NDArray[Any], bytes], bytes]] = {
    "png": lambda p, image, text: p.png(image, 0, before=[itxt(text)]),
    "tiff": lambda p, image, text: p.encode(image, "TIFF", tiffinfo={700: text}),
    "tiff-rgb": lambda p, image, text: tiff_of_rgb(p.rgb(image), text),
    "jpeg": lambda p, image, text: p.encode(image, "JPEG", xmp=text),
    "webp": lambda p, image, text: p.encode(image, "WEBP", xmp=text),
}


@pytest.mark.parametrize("text", SPELLINGS)
@pytest.mark.parametrize(
    ("kind", "bits"), [*product(SPELT, (8,)), *product(("png", "tiff", "tiff-rgb"), (16,))]
)
def test_an_orientation_in_xmp_is_read_in_every_spelling(
    kind: str, bits: int, text: bytes, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    plain, turned = (decode(SPELT[kind](pictures, image, one)) for one in (xmp(1), text))
    assert equal(turned, np.rot90(plain.pixels, 3), (1 << bits) - 1)
    assert set(turned.warnings) - set(plain.warnings) == {WarningCode.EXIF}


@pytest.mark.parametrize("text", [xmp(6), *SPELLINGS])
def test_the_size_of_a_tiff_turned_by_xmp_is_its_upright_one(
    text: bytes, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(120, 200)  # 400 x 120 squares if only its pixels were turned
    data = pictures.encode(image, "TIFF", tiffinfo={700: text}, dpi=(200, 100))
    assert decode(data).pixels.shape == (200, 240)


@pytest.mark.parametrize("channels", ["grey", "rgb"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_of_a_jpeg_or_webp_is_applied_once(
    kind: str, channels: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    stored = image if channels == "grey" else pictures.rgb(image)
    plain, turned = (decode(pictures.encode(stored, kind, xmp=xmp(way))) for way in (1, 6))
    assert equal(turned, np.rot90(plain.pixels, 3))
    assert set(turned.warnings) - set(plain.warnings) == {WarningCode.EXIF}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_goes_before_xmp(kind: str, pictures: Any, decode: Decode) -> None:
    """An editor that turned the pixels may have left XMP as it was."""
    options = {"pnginfo": pnginfo(xmp(6))} if kind == "PNG" else {"xmp": xmp(6)}
    data = pictures.encode(pictures.image(), kind, exif=pictures.exif(1), **options)
    assert b"tiff:Orientation" in data
    assert WarningCode.EXIF not in decode(data).warnings


@pytest.mark.parametrize(
    "text", [xmp(0), xmp(9), b"tiff:Orientation", b"tiff:Orientation" + b" " * (1 << 20)]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_xmp_of_no_use_says_nothing(
    text: bytes, compressed: bool, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    chunk = itxt(text, compressed=compressed)
    damaged = itxt(b"\0" + text), (b"iTXt", itxt(text, compressed=True)[1][:-9])
    for one in (chunk, *damaged):
        read = decode(pictures.png(image, 0, before=[one]))
        assert equal(read, image)
        assert read.warnings == ()
