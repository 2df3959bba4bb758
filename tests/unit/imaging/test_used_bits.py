"""The bits that an image uses: around zero, at an offset, and under burnt-in marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcovid_edge.imaging.depth import used_bits
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import dataset, written
from test_dicom_refusals import image

Decode = Callable[..., Radiograph]

DEPTHS = [10, 12, 14]
MARKS = [65535, 60000, 40000]


def dicom(words: NDArray[Any], **elements: Any) -> bytes:
    return written(dataset(words, stored=16, **elements))


def around_zero(bits: int) -> NDArray[np.int16]:
    return (image(bits).astype(np.int32) - (1 << bits - 1)).astype(np.int16)


# --- around zero and at an offset --------------------------------------------------------------


@pytest.mark.parametrize(
    "elements",
    [{}, {"RescaleSlope": "2", "RescaleIntercept": "-100"}, {"RescaleIntercept": "-1024"}],
    ids=["plain", "rescaled", "shifted"],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", DEPTHS)
def test_signed_image_around_zero_is_its_unsigned_twin(
    bits: int, photometric: str, elements: dict[str, str], decode: Decode
) -> None:
    elements = {"PhotometricInterpretation": photometric, **elements}
    twin, signed = (decode(dicom(words, **elements)) for words in (image(bits), around_zero(bits)))
    assert twin.white == signed.white == (1 << bits) - 1
    assert np.array_equal(twin.pixels, signed.pixels)
    assert twin.warnings == signed.warnings == (WarningCode.DEPTH,)


@pytest.mark.parametrize("bits", DEPTHS)
def test_falling_rescale_inverts_an_image_in_its_own_bits(bits: int, decode: Decode) -> None:
    for words in (image(bits), around_zero(bits)):
        read = decode(dicom(words, RescaleSlope="-1"))
        assert np.array_equal(read.pixels, (1 << bits) - 1 - image(bits))


@pytest.mark.parametrize("offset", [1000, 10_000, 32768 - 2048, 32768, 60_000])
def test_unsigned_image_at_an_offset_is_its_twin_without(offset: int, decode: Decode) -> None:
    read = decode(dicom((image(12) + np.uint32(offset)).astype(np.uint16)))
    assert (read.white, read.warnings) == (4095, (WarningCode.DEPTH,))
    assert np.abs(read.pixels.astype(int) - image(12)).max() <= 40  # 1 %


@pytest.mark.parametrize("offset", [-1024, -30_000, -4095])
def test_signed_image_at_an_offset_is_its_twin_without(offset: int, decode: Decode) -> None:
    read = decode(dicom((image(12) + np.int32(offset)).astype(np.int16)))
    assert (read.white, read.warnings) == (4095, (WarningCode.DEPTH,))
    assert np.abs(read.pixels.astype(int) - image(12)).max() <= 40


@pytest.mark.parametrize("offset", [10_000, 32768 - 2048, 32768, 60_000])
def test_a_picture_at_an_offset_is_its_twin_without(
    offset: int, pictures: Any, decode: Decode
) -> None:
    words = (image(12) + np.uint32(offset)).astype(np.uint16)
    for data in (pictures.encode(words, "PNG"), pictures.tiff(words, 1)):
        read = decode(data)
        assert (read.white, read.warnings) == (4095, (WarningCode.DEPTH,))
        assert np.abs(read.pixels.astype(int) - image(12)).max() <= 40


@pytest.mark.parametrize("border", [0, 65535])
@pytest.mark.parametrize("rows", [12, 24])
@pytest.mark.parametrize("offset", [10_000, 32768 - 2048, 60_000 - 4096])
def test_a_border_of_one_value_far_from_the_image_says_nothing_of_its_range(
    offset: int, rows: int, border: int, pictures: Any, decode: Decode
) -> None:
    words = (image(12) + np.uint32(offset)).astype(np.uint16)
    words[:rows] = words[-rows:] = border
    for data in (pictures.encode(words, "PNG"), dicom(words)):
        read = decode(data)
        assert (read.white, read.warnings) == (4095, (WarningCode.DEPTH,))
        assert (read.pixels[:rows] == (0 if border == 0 else 4095)).all()
        assert np.abs(read.pixels[rows:-rows].astype(int) - image(12)[rows:-rows]).max() <= 40


@pytest.mark.parametrize("most", [300, 500, 511])
def test_an_image_of_half_its_bits_or_fewer_is_scaled_as_a_picture_is(
    most: int, pictures: Any, decode: Decode
) -> None:
    words = np.rint(image(12) * (most / 4095)).astype(np.uint16)
    read = decode(written(dataset(words, stored=10)))
    assert (read.white, read.warnings) == (511, (WarningCode.DEPTH,))
    assert np.array_equal(read.pixels, decode(pictures.encode(words, "PNG")).pixels)


@pytest.mark.parametrize("bits", DEPTHS)
def test_an_image_that_was_turned_by_a_power_of_two_is_as_bright(
    bits: int, pictures: Any, decode: Decode
) -> None:
    """4096 - v instead of 4095 - v: black of the stored image becomes 4096."""
    stored = image(bits)
    stored[:20] = 0
    words = ((1 << bits) - stored).astype(np.uint16)
    for data in (pictures.encode(words, "PNG"), pictures.tiff(words, 1), dicom(words)):
        read = decode(data)
        assert (read.white, read.warnings) == ((1 << bits) - 1, (WarningCode.DEPTH,))
        assert np.array_equal(read.pixels, np.minimum(words, (1 << bits) - 1))


@pytest.mark.parametrize("top", [512, 1024, 4096, 32768])
def test_one_beyond_a_power_of_two_is_of_its_bits(top: int) -> None:
    for value, bits in ((top - 1, top - 1), (top, top - 1), (top + 1, top + 1)):
        assert used_bits(np.full(9, value)) == bits.bit_length()


def test_padding_says_nothing_of_the_range(decode: Decode) -> None:
    words = around_zero(12)
    words[:40] = -32768
    read = decode(dicom(words, PixelPaddingValue=-32768))
    assert read.white == 4095
    assert not read.pixels[:40].any()
    assert np.array_equal(read.pixels[40:], image(12)[40:])


@pytest.mark.parametrize("value", [-2000, -32768])
def test_negative_padding_is_black_where_the_window_would_show_it_white(
    value: int, decode: Decode
) -> None:
    words = image(12).astype(np.int16)
    words[:40] = value
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    elements = {"PhotometricInterpretation": "MONOCHROME1", **window}
    read = decode(dicom(words, PixelPaddingValue=value, **elements))
    assert not read.pixels[:40].any()
    assert read.pixels[40:].max() > read.white * 0.9


@pytest.mark.parametrize("signed", [False, True])
def test_image_that_uses_its_range_is_read_as_it_is(signed: bool, decode: Decode) -> None:
    words = image(16).astype(np.int32) - 32768 * signed
    read = decode(dicom(words.astype(np.int16 if signed else np.uint16)))
    assert np.array_equal(read.pixels, image(16))
    assert read.warnings == ()


# --- marks -------------------------------------------------------------------------------------


def marked(words: NDArray[Any], share: float, value: int, *, soft: bool = False) -> NDArray[Any]:
    """The words with letters at the value, on that share of them; soft where they were resized."""
    drawn = np.zeros(words.shape, np.float32)
    side = round((share * words.size / 4) ** 0.5)
    for number in range(4):
        left = 8 + number * (side + 6)
        drawn[6 : 6 + side, left : left + side] = 1.0
    letters: NDArray[Any] = cv2.blur(drawn, (3, 3)) if soft else drawn
    mixed = words + np.rint(letters * (value - words.astype(np.float64)))
    return np.asarray(mixed.astype(words.dtype))


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02])
@pytest.mark.parametrize("value", MARKS)
@pytest.mark.parametrize("bits", DEPTHS)
def test_marks_make_no_image_dark(
    bits: int, value: int, share: float, pictures: Any, decode: Decode
) -> None:
    if value.bit_length() < bits + 2:
        pytest.skip("not beyond the image's own range")
    words = marked(image(bits), share, value)
    expected = np.minimum(words, (1 << bits) - 1)
    for data in (pictures.encode(words, "PNG"), pictures.tiff(words, 1), dicom(words)):
        read = decode(data)
        assert read.white == (1 << bits) - 1
        assert np.array_equal(read.pixels, expected)
        assert WarningCode.DEPTH in read.warnings


def test_marks_with_soft_edges_make_no_image_dark(pictures: Any, decode: Decode) -> None:
    words = marked(image(12), 0.01, 65535, soft=True)
    assert decode(pictures.encode(words, "PNG")).white == 4095


@pytest.mark.parametrize("value", [32767, -32768])
def test_marks_at_either_end_of_a_signed_image_do_not_count(value: int, decode: Decode) -> None:
    read = decode(dicom(marked(around_zero(12), 0.01, value)))
    assert read.white == 4095
    assert np.array_equal(
        read.pixels, np.clip(marked(around_zero(12), 0.01, value) + 2048.0, 0, 4095)
    )


@settings(max_examples=25)
@given(st.integers(8, 13), st.floats(0.1, 8.0), st.floats(0.005, 0.03))
def test_bright_end_that_thins_out_is_no_mark(bits: int, length: float, share: float) -> None:
    draw = np.random.default_rng(bits)
    count = round(share * 20_000)
    tail = (1 << bits) + draw.exponential(length * (1 << bits), count)
    values = np.concatenate([draw.integers(0, 1 << bits, 20_000 - count), tail.astype(int)])
    assert used_bits(values) == (int(np.percentile(values, 99.9)) - 1).bit_length()


def test_more_than_a_few_bright_pixels_are_no_mark(pictures: Any, decode: Decode) -> None:
    words = image(12)
    bright = np.random.default_rng(0).random(words.shape) < 0.06
    words[bright] = np.random.default_rng(1).integers(5000, 65536, np.count_nonzero(bright))
    assert decode(pictures.encode(words, "PNG")).white == 65535
