"""TIFF and BigTIFF in either order of bytes: what is read, and why the rest is not."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.empty_end import PixelBlock, check_end
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.signatures import is_cut_off, known_kind
from deepcovid_edge.reasons import Reason, WarningCode

Decode = Callable[..., Radiograph]

ORDERS = ["<", ">"]


def two_directories(data: bytes) -> bytes:
    """A big-endian BigTIFF whose directory is followed by itself again."""
    (start,) = struct.unpack_from(">Q", data, 8)
    (count,) = struct.unpack_from(">Q", data, start)
    end = start + 8 + 20 * count
    return data[:end] + struct.pack(">Q", len(data)) + data[end + 8 :] + data[start : end + 8]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("packing", [1, 8])
def test_big_tiff_is_read_in_either_order_of_bytes(
    order: str, bits: int, packing: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    for pixels, kind in ((image, 1), (pictures.rgb(image), 2)):
        data = pictures.tiff(pixels, kind, order=order, big=True, tags={259: packing})
        assert known_kind(data) == "TIFF"
        read = decode(data)
        assert np.array_equal(read.pixels, image)
        assert read.white == (1 << bits) - 1
        assert read.warnings == ()


def test_what_pillow_does_not_open_keeps_its_turn_and_the_shape_of_its_pixels(
    pictures: Any, decode: Decode
) -> None:
    image = pictures.image(height=240, width=160, bits=16)[::2]
    whole = pictures.tiff(image, 1, order=">", big=True, tags={274: 6})
    read = decode(whole)
    assert np.array_equal(read.pixels, np.rot90(image, 3))
    assert read.warnings == (WarningCode.EXIF,)
    across = struct.pack(">HHQII", 282, 5, 1, 200, 1)
    down = struct.pack(">HHQII", 283, 5, 1, 100, 1)
    stated = pictures.tiff(image, 1, order=">", big=True, tags={282: 1, 283: 1})
    for tag, entry in ((282, across), (283, down)):
        at = stated.index(struct.pack(">HHQ", tag, 3, 1))
        stated = stated[:at] + entry + stated[at + 20 :]
    read = decode(stated)
    assert read.pixels.shape == (240, 160)
    assert read.warnings == (WarningCode.ASPECT,)


NOT_READ: dict[str, tuple[Reason, str, Callable[[Any], bytes]]] = {
    "signed": (
        Reason.MODE,
        "signed 16-bit integers",
        lambda p: p.tiff(p.image().astype(np.int16), 1, tags={339: 2}),
    ),
    "signed, big-endian BigTIFF": (
        Reason.MODE,
        "signed 16-bit integers",
        lambda p: p.tiff(p.image().astype(np.int16), 1, order=">", big=True, tags={339: 2}),
    ),
    "half floats": (
        Reason.MODE,
        "floating point",
        lambda p: p.tiff(p.image().astype(np.float16), 1, tags={339: 3}),
    ),
    "32 bits": (
        Reason.MODE,
        "1 of 32 bits a pixel",
        lambda p: p.tiff(p.image().astype(np.uint32), 1, order=">"),
    ),
    "grey and alpha of 16 bits": (
        Reason.MODE,
        "2 of 16 bits a pixel",
        lambda p: p.tiff(np.dstack([p.image(bits=16)] * 2), 1, tags={338: 2}),
    ),
    "pages": (
        Reason.FRAMES,
        "2 pictures",
        lambda p: two_directories(p.tiff(p.image(), 1, order=">", big=True)),
    ),
    "next page beyond the end": (
        Reason.TRUNCATED,
        "a page is missing",
        lambda p: two_directories(p.tiff(p.image(), 1, order=">", big=True))[:-50],
    ),
    "cut off": (
        Reason.TRUNCATED,
        "9000 bytes",
        lambda p: p.encode(p.image(bits=16), "TIFF", big_tiff=True)[:9000],
    ),
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_reason_says_what_the_file_is(kind: str, pictures: Any, decode: Decode) -> None:
    reason, detail, make = NOT_READ[kind]
    with pytest.raises(NotAssessedError) as caught:
        decode(make(pictures))
    assert caught.value.reason is reason
    assert detail in caught.value.detail


@pytest.mark.parametrize("order", ORDERS)
def test_big_tiff_holds_its_directory_its_values_and_its_strips(order: str, pictures: Any) -> None:
    whole = pictures.tiff(pictures.rgb(pictures.image()), 2, order=order, big=True)
    assert not is_cut_off(whole)
    (directory,) = struct.unpack_from(order + "Q", whole, 8)
    for end in (9, 15, 40, directory, directory + 8, directory + 30, len(whole) - 1):
        assert is_cut_off(whole[:end])
    at = whole.index(struct.pack(order + "HHQ", 279, 4, 1))
    for count, length in ((1, len(whole)), (1 << 40, 8), (1 << 63, 8), ((1 << 64) - 1, 8)):
        longer = struct.pack(order + "HHQI", 279, 4, count, length)
        assert is_cut_off(whole[:at] + longer + whole[at + 16 :])
    for offset in (1 << 62, (1 << 64) - 1):
        assert is_cut_off(whole[:8] + struct.pack(order + "Q", offset) + whole[16:])
    many = struct.pack(order + "Q", 1 << 40)
    assert is_cut_off(whole[:directory] + many + whole[directory + 8 :])


@pytest.mark.parametrize("kind", [2, 5, 11, 12, 13, 99])
@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262, 273, 277, 279, 284, 339])
def test_number_of_a_kind_that_no_writer_uses_ends_in_pixels_or_in_a_reason(
    tag: int, kind: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    for order in ORDERS:
        whole = pictures.tiff(image, 1, order=order, tags={284: 1, 339: 1})
        at = whole.index(struct.pack(order + "H", tag), len(whole) - 140)
        for count in (1, 2):
            odd = whole[: at + 2] + struct.pack(order + "HI", kind, count) + whole[at + 8 :]
            with contextlib.suppress(NotAssessedError):
                assert decode(odd).pixels.shape == image.shape


@pytest.mark.parametrize("start", [101, 200, 1 << 40])
def test_pixels_beyond_the_end_are_cut_off(start: int) -> None:
    with pytest.raises(NotAssessedError) as caught:
        check_end(bytes(200), PixelBlock(start, 10, 10, 1))
    assert caught.value.reason is Reason.TRUNCATED


def test_strips_without_lengths_are_no_reason_to_fail(pictures: Any, decode: Decode) -> None:
    whole = pictures.tiff(pictures.image(), 1)
    at = whole.index(struct.pack("<HHI", 279, 4, 1))
    without = whole[:at] + struct.pack("<H", 280) + whole[at + 2 :]
    assert np.array_equal(decode(without).pixels, pictures.image())
