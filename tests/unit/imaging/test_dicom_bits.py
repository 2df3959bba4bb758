"""Stored bits that are not the lowest ones, and overlays in the bits that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import EXPLICIT, JPEG_LS, RLE, dataset, reason_of, written
from pydicom.dataset import Dataset
from test_dicom_refusals import image

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED

Decode = Callable[..., Radiograph]

SYNTAXES = [EXPLICIT, BIG_ENDIAN, DEFLATED, RLE, JPEG_LS]


def marks() -> NDArray[np.bool_]:
    found = np.zeros(image().shape, bool)
    found[20:40, 30:90] = True
    return found


def with_overlays(words: NDArray[Any], *places: int, bits: int = 16) -> Dataset:
    """An image with marks in these bits, and overlay planes that state them (PS3.3, C.9.2)."""
    for place in places:
        words = words | (marks().astype(np.uint16) << np.uint16(place))
    one = dataset(words, stored=12)
    for number, place in enumerate(places):
        group = 0x6000 + 2 * number << 16
        one.add_new(group | 0x0100, "US", bits)
        one.add_new(group | 0x0102, "US", place)
    return one


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("places", [(12,), (15,), (13, 14)])
def test_overlay_in_an_unused_bit_is_no_part_of_the_image(
    places: tuple[int, ...], syntax: str, decode: Decode
) -> None:
    read = decode(written(with_overlays(image(12), *places), syntax))
    assert np.array_equal(read.pixels, image(12))
    assert read.warnings == ()


def test_only_the_stated_bits_are_an_overlay(decode: Decode) -> None:
    other = with_overlays(image(12), 12)
    other[0x60000102].value = 13
    no_bits = with_overlays(image(12), 12, bits=1)
    inside = with_overlays(image(12) & 0x07FF, 11)
    inside.BitsStored, inside.HighBit = 11, 10
    del inside[0x60000100]
    for one in (other, no_bits, inside):
        assert reason_of(decode, written(one)) is Reason.BITS


@pytest.mark.parametrize(
    ("syntax", "signed"), [*((one, False) for one in SYNTAXES), (EXPLICIT, True), (RLE, True)]
)
@pytest.mark.parametrize("high_bit", [15, 13])
def test_stored_bits_are_those_up_to_the_high_bit(
    high_bit: int, syntax: str, signed: bool, decode: Decode
) -> None:
    """PS3.5, 8.1.1, until 2014: the others may be copies of a sign, or empty."""
    middle = 2048 if signed else 0
    stored = image(12).astype(np.int32) - middle
    files = []
    for low, highest in ((high_bit - 11, high_bit), (0, 11)):
        words = (stored << low).astype(np.int16 if signed else np.uint16)
        one = dataset(words, stored=12, HighBit=highest)
        one.WindowCenter, one.WindowWidth = 2048 - middle, 4096
        files.append(written(one, syntax))
    read, expected = map(decode, files)
    assert np.array_equal(read.pixels, expected.pixels)
    assert read.warnings == expected.warnings == ()


def test_overlay_below_the_stored_bits_is_no_part_of_the_image(decode: Decode) -> None:
    one = with_overlays(image(12) << np.uint16(4), 0, 3)
    one.HighBit = 15
    read = decode(written(one))
    assert np.array_equal(read.pixels, image(12))
    one[0x60020102].value = 2
    assert reason_of(decode, written(one)) is Reason.BITS


def test_signed_words_may_have_an_overlay_among_the_copies_of_their_sign(decode: Decode) -> None:
    stored = image(12).astype(np.int32) - 2048
    words = stored.astype(np.int16).view(np.uint16) & np.uint16(0xDFFF)
    one = with_overlays(words, 13)
    one.PixelRepresentation = 1
    twin = decode(written(dataset(stored.astype(np.int16), stored=12)))
    read = decode(written(one))
    assert np.array_equal(read.pixels, twin.pixels)
    assert WarningCode.DEPTH not in read.warnings


def test_a_layout_behind_the_pixels_is_damage_and_no_other_kind_of_pixels(decode: Decode) -> None:
    data = written(dataset(image(12), stored=12))
    layout, pixels = data.index(b"\x28\0\x02\0US"), data.index(b"\xe0\x7f\x10\0OW")
    with pytest.raises(NotAssessedError) as caught:
        decode(data[:layout] + data[pixels:] + data[layout:pixels])
    assert caught.value.reason is Reason.DECODE
    assert caught.value.detail == "no Bits Allocated (0028,0100) before the pixels"
