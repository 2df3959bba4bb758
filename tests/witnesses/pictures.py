"""Draws pictures of every kind that clinics export: one seed and number give one file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from conftest import Pictures
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.reasons import Reason
from witnesses.specs import Draw, one, seldom
from witnesses.tools import run

PILLOW, OPENCV, BY_HAND = "Pillow", "OpenCV", "by hand"
TURBO, MAGICK, LIBTIFF, LIBWEBP = "libjpeg-turbo", "GraphicsMagick", "libtiff", "libwebp"
Grey8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What an encoder is given.

    Attributes:
        draw: Where its parameters are drawn from.
        grey: The picture, of shape (rows, columns).
        place: An empty folder.
    """

    draw: Draw
    grey: Grey8
    place: Path

    def deep(self) -> NDArray[np.uint16]:
        """The picture in 16 bits."""
        return np.asarray(self.grey.astype(np.uint16) * 257)

    def alpha(self) -> Grey8:
        """Whole in the middle, half transparent at an edge."""
        share = np.full_like(self.grey, 255)
        share[:, : share.shape[1] // 8] = int(self.draw.integers(256))
        return share

    def pnm(self, pixels: NDArray[Any] | None = None) -> Path:
        """The picture as a PGM or PPM file, a program's input."""
        pixels = self.grey if pixels is None else pixels
        kind, top = (b"P5", b"P6")[pixels.ndim == 3], np.iinfo(pixels.dtype).max
        path = self.place / f"source.{'pgm' if pixels.ndim == 2 else 'ppm'}"
        header = kind + f"\n{pixels.shape[1]} {pixels.shape[0]}\n{top}\n".encode()
        path.write_bytes(header + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes())
        return path

    def source(self, pixels: NDArray[Any], format: str = "png", **options: Any) -> Path:
        """Pixels that a PNM cannot hold, as a file of Pillow's."""
        path = self.place / f"source.{format}"
        Image.fromarray(pixels).save(path, **options)
        return path


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        name: What it is.
        writer: Whose encoder writes it.
        make: Writes one.
        reason: The code of the reason that we give it, or empty.
        lossy: Whether decoders may round differently.
    """

    name: str
    writer: str
    make: Callable[[Drawn], bytes]
    reason: str = ""
    lossy: bool = False


# ---------------------------------------------------------------- JPEG


def _cjpeg(drawn: Drawn) -> bytes:
    draw, colour = drawn.draw, drawn.draw.random() < 0.4
    source = drawn.pnm(Pictures.rgb(drawn.grey) if colour else None)
    options = ["-quality", one(draw, "60", "85", "97"), "-dct", one(draw, "int", "float")]
    options += ["-sample", one(draw, "1x1", "2x1", "1x2", "2x2")] if colour else []
    options += one(draw, ["-progressive"], ["-optimize"], [], ["-arithmetic"])
    options += seldom(draw, 0.4, ["-restart", one(draw, "1", "3", "7B")], [])
    return _by_program(drawn, ["cjpeg", *options, "-outfile"], source)


def _jpegtran(drawn: Drawn) -> bytes:
    source = drawn.source(drawn.grey, "jpg", quality=one(drawn.draw, 70, 90, 97))
    options = one(drawn.draw, ["-progressive"], ["-arithmetic"], ["-optimize"], ["-restart", "2"])
    return _by_program(drawn, ["jpegtran", *options, "-copy", "all", "-outfile"], source)


def _pillow_jpeg(drawn: Drawn) -> bytes:
    draw = drawn.draw
    pixels = Pictures.rgb(drawn.grey) if draw.random() < 0.5 else drawn.grey
    return Pictures.encode(
        pixels,
        "JPEG",
        quality=one(draw, 60, 85, 97),
        progressive=draw.random() < 0.4,
        exif=Pictures.exif(int(draw.integers(1, 9))),
        dpi=(150, 150),
    )


def _opencv_jpeg(drawn: Drawn) -> bytes:
    options = (cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    return Pictures.opencv(drawn.grey, ".jpg", *options)


def _cmyk(format: str) -> Callable[[Drawn], bytes]:
    def make(drawn: Drawn) -> bytes:
        return Pictures.encode(Image.fromarray(drawn.grey).convert("CMYK"), format)

    return make


# ---------------------------------------------------------------- PNG


def _pillow_png(drawn: Drawn) -> bytes:
    draw, grey = drawn.draw, drawn.grey
    pixels: list[NDArray[Any]] = [
        *(grey, drawn.deep(), Pictures.rgb(grey), Pictures.rgb(grey, drawn.alpha())),
        *(np.dstack([grey, drawn.alpha()]), grey.astype(np.uint16) * 16),
    ]
    facts = PngInfo()
    if draw.random() < 0.4:
        facts.add(b"gAMA", struct.pack(">I", one(draw, 45455, 100000)))
    if draw.random() < 0.3:
        facts.add(b"pHYs", struct.pack(">IIB", 5000, 5000, 1))
    more = seldom(draw, 0.4, {"exif": Pictures.exif(int(draw.integers(1, 9)))}, {})
    return Pictures.encode(pixels[int(draw.integers(len(pixels)))], "PNG", pnginfo=facts, **more)


def _palette(drawn: Drawn) -> Image.Image:
    """A grey picture in the colours of a palette, of fewer shades now and then."""
    shades = one(drawn.draw, 256, 256, 16, 4)
    step = 256 // shades
    picture = Image.fromarray((drawn.grey // step).astype(np.uint8), "P")
    picture.putpalette([min(255, shade * step) for shade in range(shades) for _ in range(3)])
    return picture


def _palette_png(drawn: Drawn) -> bytes:
    more = seldom(drawn.draw, 0.3, {"transparency": 3}, {})
    return Pictures.encode(_palette(drawn), "PNG", **more)


def _see_through_png(drawn: Drawn) -> bytes:
    """One grey level, or one colour, that is transparent."""
    level = int(drawn.grey[40, 40])
    if drawn.draw.random() < 0.5:
        return Pictures.encode(drawn.grey, "PNG", transparency=level)
    return Pictures.encode(Pictures.rgb(drawn.grey), "PNG", transparency=(level,) * 3)


def _bilevel(format: str) -> Callable[[Drawn], bytes]:
    def make(drawn: Drawn) -> bytes:
        return Pictures.encode(Image.fromarray(drawn.grey > 100), format)

    return make


def _magick_png(drawn: Drawn) -> bytes:
    draw = drawn.draw
    grey, deep = drawn.grey, drawn.deep()
    pixels: NDArray[Any] = one(draw, grey, deep, Pictures.rgb(grey), Pictures.rgb(deep))
    options = seldom(draw, 0.5, ["-interlace", "Line"], [])
    options += seldom(draw, 0.3, ["-type", one(draw, "Palette", "TrueColorMatte", "Grayscale")], [])
    return _magick(drawn, drawn.pnm(pixels), options, "png")


def _few_bits_png(drawn: Drawn) -> bytes:
    """Grey of 2 or 4 bits (PNG, section 11.2.1)."""
    bits = one(drawn.draw, 2, 4)
    rows = b""
    for row in drawn.grey >> (8 - bits):
        padded = np.pad(row, (0, -len(row) % (8 // bits))).reshape(-1, 8 // bits)
        weights = 1 << np.arange(8 - bits, -1, -bits)
        rows += b"\0" + (padded * weights).sum(axis=1).astype(np.uint8).tobytes()
    return Pictures.png_of_rows(rows, (*drawn.grey.shape, bits, 0))


def _opencv_png(drawn: Drawn) -> bytes:
    deep = drawn.deep()
    pixels: NDArray[Any] = one(drawn.draw, drawn.grey, deep, Pictures.rgb(deep))
    return Pictures.opencv(pixels, ".png")


# ---------------------------------------------------------------- TIFF


def _libtiff(drawn: Drawn) -> bytes:
    draw = drawn.draw
    kinds = (drawn.grey, drawn.deep(), Pictures.rgb(drawn.grey))
    pixels = kinds[int(draw.integers(3))]
    source = drawn.source(pixels, "tif") if pixels.ndim == 2 or pixels.dtype == np.uint8 else None
    assert source is not None
    packing = one(draw, "none", "lzw", "lzw:2", "zip", "zip:2", "packbits")
    options = ["-c", packing, one(draw, "-L", "-B")]
    options += one(draw, ["-t", "-w", "64", "-l", "48"], ["-s", "-r", "16"], ["-s"])
    options += seldom(draw, 0.3, ["-p", one(draw, "separate", "contig")], [])
    target = drawn.place / "written.tif"
    run(["tiffcp", *options, source, target])
    return target.read_bytes()


def _jpeg_tiff(drawn: Drawn) -> bytes:
    target = drawn.place / "written.tif"
    run(["tiffcp", "-c", "jpeg:90", "-r", "16", drawn.source(drawn.grey, "tif"), target])
    return target.read_bytes()


def _pillow_tiff(drawn: Drawn) -> bytes:
    draw = drawn.draw
    pixels: NDArray[Any] = one(
        draw, drawn.grey, drawn.deep(), np.dstack([drawn.grey, drawn.alpha()])
    )
    tags = seldom(draw, 0.5, {274: int(draw.integers(1, 9))}, {})
    packing = one(draw, "raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    return Pictures.encode(pixels, "TIFF", compression=packing, tiffinfo=tags)


def _tiff_by_hand(drawn: Drawn) -> bytes:
    """WhiteIsZero or BlackIsZero, of 8 or 16 bits, either byte order (TIFF 6.0, section 8)."""
    draw = drawn.draw
    photometric = one(draw, 0, 0, 1)
    kinds: list[tuple[int, NDArray[Any]]] = [
        *((255, drawn.grey), (65535, drawn.deep()), (4095, drawn.grey.astype(np.uint16) * 16)),
    ]
    white, pixels = kinds[int(draw.integers(3))]
    if photometric == 0:
        pixels = (white - pixels).astype(pixels.dtype)
    packing = seldom(draw, 0.4, {259: 8}, {})
    return Pictures.tiff(pixels, photometric, order=one(draw, "<", ">"), tags=packing)


def _deep_colour_tiff(drawn: Drawn) -> bytes:
    return Pictures.tiff(Pictures.rgb(drawn.deep()), 2, order=one(drawn.draw, "<", ">"))


def _float_tiff(drawn: Drawn) -> bytes:
    return Pictures.encode(Image.fromarray(drawn.grey.astype(np.float32)), "TIFF")


def _magick_tiff(drawn: Drawn) -> bytes:
    draw = drawn.draw
    grey = drawn.grey
    pixels: NDArray[Any] = one(draw, grey, drawn.deep(), Pictures.rgb(grey))
    options = ["-compress", one(draw, "None", "LZW", "Zip", "RLE")]
    options += seldom(draw, 0.3, ["-interlace", "Plane"], []) if pixels.dtype == np.uint8 else []
    return _magick(drawn, drawn.pnm(pixels), options, "tif")


# ---------------------------------------------------------------- WebP and BMP


def _cwebp(drawn: Drawn) -> bytes:
    draw = drawn.draw
    pixels = Pictures.rgb(drawn.grey, *([drawn.alpha()] if draw.random() < 0.4 else []))
    options = one(
        draw, ["-lossless"], ["-q", "90"], ["-q", "70", "-m", "2"], ["-near_lossless", "60"]
    )
    options += seldom(draw, 0.3, ["-exact"], [])
    target = drawn.place / "written.webp"
    run(["cwebp", "-quiet", *options, drawn.source(pixels), "-o", target])
    return target.read_bytes()


def _pillow_webp(drawn: Drawn) -> bytes:
    draw = drawn.draw
    more = seldom(draw, 0.4, {"exif": Pictures.exif(int(draw.integers(1, 9)))}, {})
    pixels = Pictures.rgb(drawn.grey)
    return Pictures.encode(pixels, "WEBP", lossless=draw.random() < 0.5, quality=90, **more)


def _magick_bmp(drawn: Drawn) -> bytes:
    draw = drawn.draw
    options = one(draw, ["-type", "Palette"], ["-compress", "RLE", "-type", "Palette"], [])
    options += seldom(draw, 0.3, ["-colors", "16"], [])
    return _magick(drawn, drawn.pnm(), options, one(draw, "bmp", "bmp3", "bmp2"))


def _pillow_bmp(drawn: Drawn) -> bytes:
    kinds = (
        Image.fromarray(drawn.grey),
        Image.fromarray(Pictures.rgb(drawn.grey)),
        _palette(drawn),
    )
    return Pictures.encode(one(drawn.draw, *kinds), "BMP")


def _bmp_by_hand(drawn: Drawn) -> bytes:
    """24 bits or 16 bits of 5 each, upright or upside down (Windows GDI, BITMAPINFOHEADER)."""
    draw, grey = drawn.draw, drawn.grey
    height, width = grey.shape
    if draw.random() < 0.5:
        five = (grey >> 3).astype("<u2")
        pixels: NDArray[Any] = (five << 10 | five << 5 | five)[..., None].view(np.uint8)
        bits = 16
    else:
        pixels, bits = Pictures.rgb(grey), 24
    lines = pixels.reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4)))
    if draw.random() < 0.5:
        return Pictures.bmp(lines.tobytes(), (width, -height), bits)
    return Pictures.bmp(lines[::-1].tobytes(), (width, height), bits)


# ---------------------------------------------------------------- programs


def _by_program(drawn: Drawn, command: list[str], source: Path) -> bytes:
    """What a program writes that takes the name of its result before that of its source."""
    target = drawn.place / "written"
    run([*command, target, source])
    return target.read_bytes()


def _magick(drawn: Drawn, source: Path, options: list[str], suffix: str) -> bytes:
    target = drawn.place / f"written.{suffix}"
    run(["gm", "convert", source, *options, target])
    return target.read_bytes()


_MODE = Reason.MODE.code
KINDS = (
    Kind("JPEG", TURBO, _cjpeg, lossy=True),
    Kind("JPEG, coded again", TURBO, _jpegtran, lossy=True),
    Kind("JPEG with EXIF", PILLOW, _pillow_jpeg, lossy=True),
    Kind("JPEG with restart markers", OPENCV, _opencv_jpeg, lossy=True),
    Kind("CMYK JPEG", PILLOW, _cmyk("JPEG"), _MODE),
    Kind("PNG", PILLOW, _pillow_png),
    Kind("PNG with a palette", PILLOW, _palette_png),
    Kind("PNG with a transparent level", PILLOW, _see_through_png),
    Kind("1-bit PNG", PILLOW, _bilevel("PNG"), _MODE),
    Kind("PNG, interlaced or not", MAGICK, _magick_png),
    Kind("PNG of 2 or 4 bits", BY_HAND, _few_bits_png),
    Kind("PNG of 8 or 16 bits", OPENCV, _opencv_png),
    Kind("TIFF in strips or tiles", LIBTIFF, _libtiff),
    Kind("TIFF with JPEG", LIBTIFF, _jpeg_tiff, lossy=True),
    Kind("TIFF", PILLOW, _pillow_tiff),
    Kind("TIFF, WhiteIsZero or BlackIsZero", BY_HAND, _tiff_by_hand),
    Kind("TIFF of 16-bit colours", BY_HAND, _deep_colour_tiff),
    Kind("TIFF of floats", PILLOW, _float_tiff, _MODE),
    Kind("CMYK TIFF", PILLOW, _cmyk("TIFF"), _MODE),
    Kind("1-bit TIFF", PILLOW, _bilevel("TIFF"), _MODE),
    Kind("TIFF in strips or planes", MAGICK, _magick_tiff),
    Kind("WebP", LIBWEBP, _cwebp, lossy=True),
    Kind("WebP with EXIF", PILLOW, _pillow_webp, lossy=True),
    Kind("BMP, RLE or palette", MAGICK, _magick_bmp),
    Kind("BMP", PILLOW, _pillow_bmp),
    Kind("BMP of 16 or 24 bits", BY_HAND, _bmp_by_hand),
    Kind("1-bit BMP", PILLOW, _bilevel("BMP"), _MODE),
)


@cache
def _phantom(seed: int) -> Grey8:
    return draw_phantom(seed, opacities=2)


def picture(seed: int, number: int, place: Path) -> tuple[Kind, bytes]:
    """The picture file of that number, and its kind."""
    draw = np.random.default_rng((seed, number, 1))
    shape = (int(draw.integers(101, 190)), int(draw.integers(101, 190)))
    image = _phantom(int(draw.integers(3)))
    grey: NDArray[Any] = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    kind = KINDS[number % len(KINDS)]
    return kind, kind.make(Drawn(draw, np.asarray(grey), place))
