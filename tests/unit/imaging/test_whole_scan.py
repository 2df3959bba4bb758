"""Damaged JPEG in DICOM files, whose end marker is in its place."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("pydicom", reason="needs extra dicom")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs extra dicom")
from codestreams import LosslessJpeg
from dicom_files import JPEG, JPEG_12, LOSSLESS, LOSSLESS_SV1, compressed
from test_dicom_refusals import image
from test_dicom_sandbox import request

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding import decoders
from deepcovid_edge.imaging.dicom.decoding.whole_scan import check_by_last_bits
from deepcovid_edge.imaging.formats.jpeg import SOS, segments

END = b"\xff\xd9"
KINDS = [
    (JPEG, 8),
    (JPEG_12, 12),
    *((one, bits) for one in (LOSSLESS_SV1, LOSSLESS) for bits in (8, 12, 16)),
]


def half(data: bytes) -> int:
    return len(data) // 2


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: half(data)] + END,
    "cut at its last part": lambda data: data[: len(data) * 49 // 50] + END,
    "bytes lost": lambda data: data[: half(data)] + data[half(data) + 512 :],
    "bytes overwritten": lambda data: data[: half(data)] + b"\0" * 512 + data[half(data) + 512 :],
    "bytes twice": lambda data: data[: half(data)] + data[half(data) - 512 :],
}
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "padded": lambda data: data + b"\0",
    "filled before its end": lambda data: data[:-2] + b"\xff\xff\xff" + END,
    "a byte of zeros before its end": lambda data: data[:-2] + b"\0" + END,
}


def noisy(bits: int, *, border: int = 0) -> NDArray[Any]:
    """An image with a detector's noise, maybe with a black border and a saturated corner."""
    values = image(bits, height=320, width=280) * 0.9
    values += np.random.default_rng(0).normal(0.0, 0.01 * (1 << bits), values.shape)
    if border:
        values[-border:] = values[:, -border:] = 0.0
        values[:60, :60] = 1 << bits
    return np.clip(values, 0, (1 << bits) - 1).astype(np.uint8 if bits == 8 else np.uint16)


def decoded(codestream: bytes, syntax: str, pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    facts = {"rows": pixels.shape[0], "columns": pixels.shape[1]}
    return decoders.decode(request(syntax, bits=bits, **facts), codestream)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("syntax", "bits"), KINDS)
def test_a_damaged_scan_is_no_image(syntax: str, bits: int, damage: str) -> None:
    """libjpeg makes pixels of each of them."""
    if damage == "bytes twice" and (syntax, bits) == (JPEG, 8):
        pytest.skip("libjpeg does not warn of all bytes that no pixel needs")
    pixels = noisy(bits)
    damaged = DAMAGE[damage](compressed(pixels, bits, syntax))
    assert imagecodecs.jpeg8_decode(damaged).shape == pixels.shape
    with pytest.raises((NotAssessedError, ValueError)):  # the sandbox makes `E_DECODE` of others
        decoded(damaged, syntax, pixels, bits)


@pytest.mark.parametrize("kind", ["zeros", "FF", "anything"])
@pytest.mark.parametrize(("syntax", "bits"), [(JPEG_12, 12), (LOSSLESS, 12), (LOSSLESS_SV1, 16)])
def test_a_lost_sector_is_no_image(syntax: str, bits: int, kind: str) -> None:
    """Wherever it lies: the bytes that are missing at the end are few for some."""
    pixels = noisy(bits)
    whole = compressed(pixels, bits, syntax)
    judged = 0
    for at in range(700, len(whole) - 1200, (len(whole) - 1900) // 40):
        try:
            decoded(whole[:at] + SECTORS[kind] + whole[at + 512 :], syntax, pixels, bits)
        except (*REFUSED, ValueError):
            continue
        judged += 1
    assert judged <= 1


@pytest.mark.parametrize("border", ["black", "white"])
@pytest.mark.parametrize("shape", [(320, 280), (173, 363)])
def test_a_last_block_that_is_clamped_is_no_damage(shape: tuple[int, int], border: str) -> None:
    for seed in range(20):
        pixels = noisy(12)[: shape[0], :280]
        pixels = np.pad(pixels, ((0, 0), (0, shape[1] - 280)))
        pixels[-20 - seed :] = 0 if border == "black" else 4095
        whole = bytes(imagecodecs.jpeg8_encode(pixels, level=40 + seed, bitspersample=12))
        expected = imagecodecs.jpeg8_decode(whole)
        assert np.array_equal(decoded(whole, JPEG_12, pixels, 12), expected)


@pytest.mark.parametrize("tail", [b"", b"\0", END])
def test_a_progressive_image_without_its_last_scans_is_no_image(tail: bytes) -> None:
    pixels = noisy(8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, progressive=True)
    whole = stream.getvalue()
    *earlier, last = [part.scan_end for part in segments(whole) if part.marker == SOS]
    for end in earlier:
        with pytest.raises(NotAssessedError, match=r"missing|without its end"):
            decoded(whole[:end] + tail, JPEG, pixels, 8)
    read = decoded(whole[:last] + tail, JPEG, pixels, 8)
    assert np.array_equal(read, imagecodecs.jpeg8_decode(whole))


@pytest.mark.parametrize("oddity", HARMLESS)
@pytest.mark.parametrize("border", [0, 20])
@pytest.mark.parametrize(("syntax", "bits"), KINDS)
def test_a_whole_scan_is_read(syntax: str, bits: int, border: int, oddity: str) -> None:
    pixels = noisy(bits, border=border)
    whole = compressed(pixels, bits, syntax)
    if oddity == "a byte of zeros before its end" and (syntax, bits) == (JPEG, 8):
        pytest.skip("libjpeg warns of it, as in a JPEG file")
    expected = imagecodecs.jpeg8_decode(whole)
    assert np.array_equal(decoded(HARMLESS[oddity](whole), syntax, pixels, bits), expected)


@pytest.mark.parametrize("value", [0, 1, 4095])
@pytest.mark.parametrize("syntax", [JPEG_12, LOSSLESS_SV1, LOSSLESS])
def test_an_image_that_ends_in_one_grey_is_read(syntax: str, value: int) -> None:
    pixels = noisy(12)
    pixels[-150:] = value
    whole = compressed(pixels, 12, syntax)
    assert np.array_equal(decoded(whole, syntax, pixels, 12), imagecodecs.jpeg8_decode(whole))


def test_a_decoder_that_raises_errors_is_believed() -> None:
    """Such as those that pydicom asks where imagecodecs is not installed."""
    pixels = noisy(12)
    whole = compressed(pixels, 12, LOSSLESS_SV1)
    check_by_last_bits(whole, pixels, lambda _: None, dct=False)


def test_a_damaged_scan_of_colours_is_no_image() -> None:
    pixels = np.dstack([noisy(8)] * 3)
    whole = bytes(imagecodecs.jpeg8_encode(pixels, level=90))
    facts = {"rows": 320, "columns": 280, "samples": 3, "photometric": "YBR_FULL_422"}
    asked = request(JPEG, bits=8, **facts)
    assert decoders.decode(asked, whole).shape == pixels.shape
    for name in DAMAGE.keys() - {"bytes twice"}:
        with pytest.raises((NotAssessedError, ValueError)):
            decoders.decode(asked, DAMAGE[name](whole))


SECTORS = {
    "zeros": bytes(512),
    "FF": b"\xff" * 512,
    "anything": np.random.default_rng(5).bytes(512),
}
REFUSED = (NotAssessedError, imagecodecs.Jpeg8Error)
COLOURS = {"samples": 3, "photometric": "RGB"}


def overwritten(stream: bytes, share: float, sector: bytes) -> bytes:
    at = round(share * (len(stream) - 700)) + 100
    return stream[:at] + sector + stream[at + len(sector) :]


@pytest.mark.parametrize("sector", SECTORS)
@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_damage_is_found_in_every_restart_interval(bits: int, rows: int, sector: str) -> None:
    """Each begins anew, so the last one is whole."""
    pixels = noisy(bits, border=20)
    whole = LosslessJpeg(bits, restart_rows=rows).encode(pixels)
    assert np.array_equal(decoded(whole, LOSSLESS_SV1, pixels, bits), pixels)
    for share in (0.05, 0.5, 0.8):
        changed = overwritten(whole, share, SECTORS[sector])
        with pytest.raises(REFUSED):
            decoded(changed, LOSSLESS_SV1, pixels, bits)


def test_a_restart_interval_that_is_missing_is_damage() -> None:
    pixels = noisy(12)
    whole = LosslessJpeg(12, restart_rows=8).encode(pixels)
    start, end = whole.index(b"\xff\xd3"), whole.index(b"\xff\xd4")
    with pytest.raises(NotAssessedError, match="40 restart intervals by its header"):
        decoded(whole[:start] + whole[end:], LOSSLESS_SV1, pixels, 12)


@pytest.mark.parametrize("value", [0, 1, 4095])
@pytest.mark.parametrize("rows", [1, 16])
def test_restart_intervals_that_end_in_one_grey_are_read(rows: int, value: int) -> None:
    pixels = noisy(12)
    pixels[:, -150:] = value
    pixels[100:200] = value
    for predictor in (1, 7):
        whole = LosslessJpeg(12, predictor, restart_rows=rows).encode(pixels)
        assert np.array_equal(decoded(whole, LOSSLESS, pixels, 12), pixels)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_of_one_grey_is_read_whatever_its_codes(value: int) -> None:
    """That of 128 has one code alone: its inverse is none, and stands for the same."""
    pixels = np.full((320, 280), value, np.uint8)
    whole = compressed(pixels, 8, LOSSLESS_SV1)
    assert np.array_equal(decoded(whole, LOSSLESS_SV1, pixels, 8), pixels)
    colours = np.dstack([pixels] * 3)
    stream = imagecodecs.jpeg8_encode(
        colours, lossless=True, predictor=1, colorspace="RGB", outcolorspace="RGB"
    )
    asked = request(LOSSLESS_SV1, bits=8, rows=320, columns=280, **COLOURS)
    assert np.array_equal(decoders.decode(asked, stream), colours)


@pytest.mark.parametrize("sector", SECTORS)
@pytest.mark.parametrize("one_scan", [True, False])
@pytest.mark.parametrize("rows", [0, 16])
def test_damage_is_found_in_the_channels_of_lossless_jpeg(
    rows: int, one_scan: bool, sector: str
) -> None:
    pixels = np.dstack([noisy(8, border=border) for border in (0, 10, 20)])
    whole = LosslessJpeg(8, restart_rows=rows, one_scan=one_scan).encode(pixels)
    asked = request(LOSSLESS_SV1, bits=8, rows=320, columns=280, **COLOURS)
    assert np.array_equal(decoders.decode(asked, whole), pixels)
    for share in (0.05, 0.5, 0.95):
        with pytest.raises(REFUSED):
            decoders.decode(asked, overwritten(whole, share, SECTORS[sector]))
