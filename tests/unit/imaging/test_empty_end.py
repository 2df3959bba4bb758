"""Files whose end was never written: a copy reserved its length, stopped, and left zeros."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.empty_end import PixelBlock, check_end, check_tiff
from deepcovid_edge.imaging.formats.tiff.directory import read_directory
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from codestreams import byte_planes, rle
from dicom_files import (
    EXPLICIT,
    JPEG,
    WRITABLE,
    dataset,
    reason_of,
    stored_image,
    written,
)
from test_dicom_refusals import image, with_codestream
from test_tiff import in_pieces, strips

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT, RLE

Decode = Callable[..., Radiograph]

XRAY = Path(os.environ.get("DEEPCOVID_XRAY", Path(__file__).parents[4] / "shared/xray"))
SHARES = [0.03, 0.1, 0.25, 0.4]


def emptied(data: bytes, share: float, row: int = 0) -> bytes:
    """The file with that share of it zeros at its end, half a row of so many bytes left behind."""
    kept = round(len(data) * (1 - share))
    if row:
        kept = len(data) - round((len(data) - kept) / row) * row - row // 2
    return data[:kept] + bytes(len(data) - kept)


def framed(grey: NDArray[Any]) -> NDArray[Any]:
    """The image with black borders, as of a collimator, wherever a real one has them."""
    grey = grey.copy()
    grey[:6], grey[:, :12], grey[:, -12:] = 0, 0, 0
    return grey


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("frame", [False, True])
def test_uncompressed_dicom_that_ends_in_zeros_is_cut_off(
    frame: bool, bits: int, photometric: str, share: float, decode: Decode
) -> None:
    grey = framed(image()) if frame else image()
    words, elements = stored_image(grey, bits, photometric, window=False)
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN):
        whole = written(dataset(words, **elements), syntax)
        assert decode(whole).warnings == ()
        cut = emptied(whole, share, words.itemsize * 160)
        assert reason_of(decode, cut) is Reason.TRUNCATED


@pytest.mark.parametrize("share", SHARES)
def test_signed_rescaled_and_colour_images_that_end_in_zeros_are_cut_off(
    share: float, decode: Decode
) -> None:
    signed = (image(12).astype(np.int32) - 2048).astype(np.int16)
    colour = np.dstack([image()] * 3)
    for data, row in (
        (written(dataset(signed, stored=12)), 320),
        (written(dataset(signed, RescaleSlope="-1", RescaleIntercept="5")), 320),
        (written(dataset(colour)), 480),
    ):
        decode(data)
        assert reason_of(decode, emptied(data, share, row)) is Reason.TRUNCATED


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("syntax", [uid for uid in WRITABLE if uid not in (JPEG, BIG_ENDIAN)])
def test_no_syntax_gives_a_number_for_an_end_of_zeros(
    syntax: str, share: float, decode: Decode
) -> None:
    data = emptied(written(dataset(image(12), stored=12), syntax), share, 320)
    assert reason_of(decode, data) in {Reason.TRUNCATED, Reason.DECODE, Reason.LENGTH}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("TIFF", {}),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits")),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("PNG", {"compress_level": 0}),
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("colours", ["L", "RGB"])
def test_no_picture_that_ends_in_zeros_gives_a_number(
    colours: str,
    format: str,
    options: dict[str, Any],
    share: float,
    pictures: Any,
    decode: Decode,
) -> None:
    grey = pictures.image(300, 320)
    data = pictures.encode(pictures.rgb(grey) if colours == "RGB" else grey, format, **options)
    decode(data)
    cut = emptied(data, share, 320 * len(colours))
    assert reason_of(decode, cut) in {Reason.TRUNCATED, Reason.DECODE, Reason.BLANK}


def test_tiff_of_several_strips_and_16_bits_is_cut_off(pictures: Any, decode: Decode) -> None:
    for pixels in (image(12), pictures.image(bits=16)):
        data = pictures.encode(pixels, "TIFF", strip_size=4000)
        decode(data)
        assert reason_of(decode, emptied(data, 0.3, 320)) is Reason.TRUNCATED


def tiles(pixels: NDArray[Any], side: int) -> list[bytes]:
    """Uncompressed tiles, with zeros where they go on beyond the image."""
    high, wide = (-(-length // side) * side for length in pixels.shape[:2])
    padded = np.zeros((high, wide, *pixels.shape[2:]), pixels.dtype)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    corners = ((top, left) for top in range(0, high, side) for left in range(0, wide, side))
    return [padded[top : top + side, left : left + side].tobytes() for top, left in corners]


LAID: dict[str, tuple[dict[int, int], Callable[[NDArray[Any]], list[bytes]]]] = {
    "one strip": ({278: 300}, lambda pixels: [pixels.tobytes()]),
    "strips": ({278: 7}, lambda pixels: strips(pixels, 7)),
    "rows": ({278: 1}, lambda pixels: strips(pixels, 1)),
    "tiles": ({322: 64, 323: 64}, lambda pixels: tiles(pixels, 64)),
    "one tile": ({322: 304, 323: 304}, lambda pixels: tiles(pixels, 304)),
}


def unwritten(pieces: list[bytes], kept: int) -> list[bytes]:
    """The pieces with zeros behind so many of their bytes."""
    whole = b"".join(pieces)
    left = whole[:kept] + bytes(len(whole) - kept)
    ends = np.cumsum([0, *map(len, pieces)])
    return [left[at:end] for at, end in pairwise(ends)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("gap", [0, 2, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("laid", LAID)
def test_tiff_is_cut_off_however_its_pixels_lie(
    laid: str, channels: int, gap: int, share: float, pictures: Any, decode: Decode
) -> None:
    grey = np.maximum(pictures.image(300, 304), 1)
    pixels = grey if channels == 1 else pictures.rgb(grey)
    tags, lay = LAID[laid]
    pieces = lay(pixels)
    whole = decode(in_pieces(pieces, pixels.shape, tags, gap=gap))
    assert np.array_equal(whole.pixels, grey)
    assert whole.warnings == ()
    row = channels * tags.get(322, 304)
    end = round(sum(map(len, pieces)) * (1 - share)) // row * row
    cut = in_pieces(unwritten(pieces, end + row // 3), pixels.shape, tags, gap=gap)
    assert reason_of(decode, cut) is Reason.TRUNCATED
    at_a_row = in_pieces(unwritten(pieces, end), pixels.shape, tags, gap=gap)
    assert decode(at_a_row).warnings == (WarningCode.EMPTY_END,)


# --- gaps amid the pixels, and erased flash -----------------------------------------------------


def overwritten(data: bytes, at: float, length: int, fill: int) -> bytes:
    """The file with whole sectors of one value from a share of it on."""
    start = int(len(data) * at) // 512 * 512
    return data[:start] + bytes([fill]) * length + data[start + length :]


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("length", [4096, 8192])
@pytest.mark.parametrize("at", [0.31, 0.55])
@pytest.mark.parametrize("kind", ["DICOM", "deep DICOM", "BMP", "TIFF", "strips"])
def test_gap_amid_the_pixels_is_found(
    kind: str, at: float, length: int, fill: int, pictures: Any, decode: Decode
) -> None:
    grey = np.clip(pictures.image(300, 320), 1, 254)
    make: dict[str, Callable[[], bytes]] = {
        "DICOM": lambda: written(dataset(grey)),
        "deep DICOM": lambda: written(dataset(grey.astype(np.uint16) * 257)),
        "BMP": lambda: pictures.encode(grey, "BMP"),
        "TIFF": lambda: pictures.encode(grey, "TIFF"),
        "strips": lambda: in_pieces(strips(grey, 7), grey.shape, {278: 7}, gap=2),
    }
    whole = make[kind]()
    assert WarningCode.EMPTY_END not in decode(whole).warnings
    assert reason_of(decode, overwritten(whole, at, length, fill)) is Reason.TRUNCATED


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["DICOM", "deep DICOM", "BMP", "TIFF", "tiles"])
def test_pixels_that_end_in_ones_are_cut_off(
    kind: str, share: float, pictures: Any, decode: Decode
) -> None:
    grey = np.clip(pictures.image(300, 304), 1, 254)
    make: dict[str, tuple[Callable[[], bytes], int]] = {
        "DICOM": (lambda: written(dataset(grey)), 304),
        "deep DICOM": (lambda: written(dataset(grey.astype(np.uint16) * 257)), 608),
        "BMP": (lambda: pictures.encode(grey, "BMP"), 304),
        "TIFF": (lambda: pictures.encode(grey, "TIFF"), 304),
        "tiles": (lambda: b"".join(tiles(grey, 64)), 64),
    }
    data, row = make[kind][0](), make[kind][1]
    kept = len(emptied(data, share, row).rstrip(b"\0"))
    cut = data[:kept] + b"\xff" * (len(data) - kept)
    if kind == "tiles":
        cut = cut[: kept - 320] + b"\xff" * (len(cut) - kept + 320)
        lengths = np.cumsum([0] + [64 * 64] * 25)
        pieces = [cut[at:end] for at, end in pairwise(lengths)]
        cut = in_pieces(pieces, grey.shape, {322: 64, 323: 64})
    assert reason_of(decode, cut) is Reason.TRUNCATED


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_segment_of_rle_that_ends_in_ones_is_cut_off(share: float, decode: Decode) -> None:
    stream = rle(byte_planes(image(12)))
    decode(with_codestream(stream, RLE))
    kept = round(len(stream) * (1 - share))
    cut = stream[:kept] + b"\xff" * (len(stream) - kept)
    assert reason_of(decode, with_codestream(cut, RLE)) is Reason.TRUNCATED


def test_white_and_ones_behind_the_pixels_of_rle_are_whole(decode: Decode) -> None:
    words = image(12)
    words[40:, :] |= 255
    stream = rle(byte_planes(words), b"\xff" * 2000)
    assert np.array_equal(decode(with_codestream(stream, RLE)).pixels, words)


ALL = slice(None)
AREAS: dict[str, list[tuple[slice, slice]]] = {
    "box": [(slice(400, 500), slice(200, 2000))],
    "box at the right": [(slice(400, 500), slice(300, None))],
    "box at the left": [(slice(400, 500), slice(2100))],
    "band": [(slice(400, 480), ALL)],
    "letterbox": [(slice(90), ALL), (slice(-90, None), ALL)],
    "borders": [(ALL, slice(1100)), (ALL, slice(-1000, None))],
    "line": [(slice(300, 301), slice(100, 2300))],
    "steps": [(slice(400, None), slice(900, None)), (slice(420, None), ALL)],
    "letters": [
        (slice(row, row + 60), slice(column, column + 25))
        for row in (300, 420)
        for column in range(100, 2200, 45)
    ],
}


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("pixel", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", AREAS)
def test_black_and_white_areas_with_straight_edges_are_no_gaps(
    name: str, pixel: type[np.generic], fill: int
) -> None:
    grey = np.clip(np.tile(image(), (5, 15)), 1, 254)
    for area in AREAS[name]:
        grey[area] = fill
    words = grey.astype(pixel) * (257 if pixel is np.uint16 else 1)
    block = PixelBlock(3, len(words), words.strides[0], words.itemsize)
    check_end(bytes(3) + words.tobytes(), block)


# --- what is no such end ------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("bits", [8, 12])
def test_black_border_on_several_sides_is_none(bits: int, syntax: str, decode: Decode) -> None:
    words = np.maximum(image(bits), 1)
    words[-20:], words[:9], words[:, :7] = 0, 0, 0
    assert decode(written(dataset(words, stored=bits), syntax)).warnings == ()


def test_rows_below_that_alone_are_zero_are_noted(decode: Decode, pictures: Any) -> None:
    """They may have been cut off at the end of a row; most ends lie in the midst of one."""
    words = np.maximum(image(12), 1)
    words[-20:] = 0
    read = decode(written(dataset(words, stored=12)))
    assert read.warnings == (WarningCode.EMPTY_END,)
    assert np.array_equal(read.pixels, words)
    padded = written(dataset(words, stored=12, PixelPaddingValue=0))
    assert decode(padded).warnings == ()


@pytest.mark.parametrize("drop", [0.02, 0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_black_below_an_edge_that_is_not_level_is_none(side: str, drop: float) -> None:
    """Edges of a mask lie across rows at any angle, or round."""
    x = np.arange(160)
    edge = {"left": x * drop, "right": (160 - x) * drop, "middle": (x - 80) ** 2 * drop / 160}[side]
    filled = np.arange(128)[:, None] < 100 - (edge - edge.min())[None, :]
    words = np.where(filled, np.maximum(image(), 1), 0).astype(np.uint8)
    check_end(words.tobytes(), PixelBlock(0, 128, 160, 1))


@pytest.mark.parametrize("fill", [0, 255])
def test_noise_about_black_and_white_ends_in_no_row(fill: int) -> None:
    """JPEG leaves single steps of grey beside a mask."""
    grey = np.full((128, 160), fill ^ 1, np.uint8)
    grey[:60], grey[100, 80:], grey[101:] = image()[:60], fill, fill
    check_end(grey.tobytes(), PixelBlock(0, 128, 160, 1))


@settings(max_examples=60)
@given(st.integers(10, 125), st.integers(4, 155), st.integers(0, 3))
def test_end_in_the_midst_of_a_row_is_found_wherever_it_is(
    row: int, column: int, border: int
) -> None:
    words = np.maximum(image(12), 1)
    words[:, : 10 * border] = 0
    words[:border] = 0
    end = row * 160 + max(column, 10 * border + 4)
    flat = words.ravel()
    flat[end:] = 0
    with pytest.raises(NotAssessedError) as caught:
        check_end(flat.tobytes(), PixelBlock(0, 128, 320, 2))
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.skipif(not XRAY.is_dir(), reason=f"no X-rays at {XRAY}")
def test_no_real_image_is_taken_for_cut_off() -> None:
    """Whichever of its sides is the last of the file, and inverted as MONOCHROME1 stores it."""
    noted = 0
    paths = sorted((XRAY / "test").rglob("*.jpg"))[::5]
    for path in paths:
        pixels = read_radiograph(path).pixels
        for turned in (
            np.rot90(grey, turns) for grey in (pixels, 255 - pixels) for turns in range(4)
        ):
            data = np.ascontiguousarray(turned)
            block = PixelBlock(0, len(data), data.shape[1], 1)
            noted += len(check_end(data.tobytes(), block))
            tiled = in_pieces(tiles(data, 128), data.shape, {322: 128, 323: 128})
            noted += len(check_tiff(tiled, read_directory(tiled)))
    assert noted <= 0.01 * 16 * len(paths)
