"""LUTs of DICOM files: the sign of their first value, the bits and the number of their entries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import EXPLICIT, dataset, reason_of, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_dicom_refusals import image

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT

Decode = Callable[..., Radiograph]

RAMP = np.arange(4096)


def lut(
    entries: NDArray[Any],
    first: int,
    bits: int,
    *,
    kind: str = "US",
    count: int | None = None,
    syntax: str = EXPLICIT,
) -> Sequence:
    """A LUT whose descriptor is of that kind, its numbers as they fit into 16 bits."""
    item = Dataset()
    described = [(len(entries) if count is None else count) & 0xFFFF, first & 0xFFFF, bits]
    if kind == "SS":
        described = [value - 65536 if value > 32767 else value for value in described]
    item.add_new(0x00283002, kind, described)
    data = entries.astype("u1" if entries.dtype == np.uint8 else "<u2").tobytes()
    data += bytes(len(data) % 2)
    if syntax == BIG_ENDIAN:  # PS3.5, 7.3; pydicom leaves OW as it is
        data = np.frombuffer(data, "<u2").astype(">u2").tobytes()
    item.add_new(0x00283006, "OW", data)
    return Sequence([item])


def levels(read: Radiograph) -> NDArray[Any]:
    return np.asarray(np.rint(read.pixels * (4095 / read.white)).astype(int))


# name -> words, bits, elements but the LUT, the value that the first entry stands for
FIRSTS: dict[str, tuple[NDArray[Any], int, dict[str, Any], int]] = {
    "unsigned": (image(12), 12, {}, 0),
    "unsigned-rescaled": (image(12), 12, {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, -1024),
    "far-down": (image(12), 12, {"RescaleSlope": "1", "RescaleIntercept": "-32768"}, -32768),
    "up": (image(12), 12, {"RescaleSlope": "1", "RescaleIntercept": "1000"}, 1000),
    "far-up": (image(12), 12, {"RescaleSlope": "1", "RescaleIntercept": "40000"}, 40000),
    "signed": (image(12).astype(np.int16) - 2048, 12, {}, -2048),
    "signed-raised": (
        image(12).astype(np.int16) - 2048,
        12,
        {"RescaleSlope": "1", "RescaleIntercept": "42048"},
        40000,
    ),
    "16-bits-high": (image(12) + np.uint16(50000), 16, {}, 50000),
}


@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("name", FIRSTS)
def test_first_value_has_the_sign_of_what_is_mapped(name: str, kind: str, decode: Decode) -> None:
    words, bits, elements, first = FIRSTS[name]
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN):
        voi = lut(RAMP, first, 12, kind=kind, syntax=syntax)
        read = decode(written(dataset(words, stored=bits, **elements, VOILUTSequence=voi), syntax))
        assert np.array_equal(levels(read), image(12))
        assert read.warnings == ()


@pytest.mark.parametrize("kind", ["US", "SS"])
def test_modality_lut_of_signed_pixels_has_a_signed_first_value(kind: str, decode: Decode) -> None:
    words = image(12).astype(np.int16) - 2048
    modality = lut(RAMP * 8 + 32768, -2048, 16, kind=kind)
    voi = lut(np.arange(32768) // 8, 32768, 12)
    data = dataset(words, stored=12, ModalityLUTSequence=modality, VOILUTSequence=voi)
    assert np.array_equal(levels(decode(written(data))), image(12))


def test_zero_entries_are_65536(decode: Decode) -> None:
    voi = lut(np.arange(65536), 0, 16)
    read = decode(written(dataset(image(16), stored=16, VOILUTSequence=voi)))
    assert np.array_equal(read.pixels, image(16))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("stated", [13, 14, 15, 16])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_entries_are_scaled_over_the_bits_that_they_use(
    keyword: str, stated: int, photometric: str, decode: Decode
) -> None:
    elements = {keyword: lut(RAMP, 0, stated), "PhotometricInterpretation": photometric}
    read = decode(written(dataset(image(12), stored=12, **elements)))
    expected = 4095 - image(12) if photometric == "MONOCHROME1" else image(12)
    assert np.array_equal(levels(read), expected)
    assert read.warnings == (WarningCode.DEPTH,)


@pytest.mark.parametrize("stated", [0, 8, 10])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_entries_may_have_more_bits_than_stated(keyword: str, stated: int, decode: Decode) -> None:
    read = decode(written(dataset(image(12), stored=12, **{keyword: lut(RAMP, 0, stated)})))
    assert np.array_equal(levels(read), image(12))
    assert read.warnings == (WarningCode.DEPTH,)


@pytest.mark.parametrize(("bits", "stated"), [(12, 12), (12, 16), (8, 8), (10, 10)])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_an_entry_of_exactly_the_next_power_of_two_is_white(
    keyword: str, bits: int, stated: int, decode: Decode
) -> None:
    """Not half as bright: 4096 would be 13 bits."""
    entries = np.rint(RAMP / 4095 * (1 << bits)).astype(int)
    read = decode(written(dataset(image(12), stored=12, **{keyword: lut(entries, 0, stated)})))
    white = (1 << bits) - 1
    expected = np.minimum(entries, white)[image(12)] / white
    assert np.abs(read.pixels / read.white - expected).max() < 1 / white
    assert read.warnings == (WarningCode.DEPTH,)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("count", [4095, 4096])
def test_entries_of_8_bits_may_be_packed(count: int, syntax: str, decode: Decode) -> None:
    entries = (RAMP[:count] >> 4).astype(np.uint8)
    words = np.minimum(image(12), count - 1)
    voi = lut(entries, 0, 8, syntax=syntax)
    read = decode(written(dataset(words, stored=12, VOILUTSequence=voi), syntax))
    assert np.array_equal(np.rint(read.pixels / read.white * 255), words >> 4)


@pytest.mark.parametrize(("given", "stated"), [(4095, 4096), (4090, 4096), (4096, 4090)])
def test_wrong_number_of_entries_matters_where_pixels_reach_them(
    given: int, stated: int, decode: Decode
) -> None:
    voi = lut(RAMP[:given], 0, 12, count=stated)
    inside = np.minimum(image(12), 4000)
    read = decode(written(dataset(inside, stored=12, VOILUTSequence=voi)))
    assert np.array_equal(levels(read), inside)
    beyond = image(12)
    beyond[:8] = 4095
    with pytest.raises(NotAssessedError) as caught:
        decode(written(dataset(beyond, stored=12, VOILUTSequence=voi)))
    assert caught.value.reason is Reason.DECODE
    assert f"{given} entries, {stated} stated" in caught.value.detail


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="no dcm2pnm: apt-get install dcmtk")
@pytest.mark.parametrize("name", sorted(set(FIRSTS) - {"signed-raised", "far-up"}))
def test_dcmtk_shows_the_same_grey_levels(name: str, tmp_path: Path, decode: Decode) -> None:
    words, bits, elements, first = FIRSTS[name]
    voi = lut(RAMP, first, 12, kind="SS" if first < 0 else "US")
    data = written(dataset(words, stored=bits, **elements, VOILUTSequence=voi))
    Path(tmp_path, "film.dcm").write_bytes(data)
    command = ["dcm2pnm", "+Wl", "1", "film.dcm", "film.pgm"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    shown = cv2.imread(str(tmp_path / "film.pgm"), cv2.IMREAD_GRAYSCALE)
    read = decode(data)
    assert shown is not None
    assert np.abs(read.pixels / read.white * 255 - shown).max() <= 1.0


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_an_item_in_which_nothing_stands_is_no_lut(keyword: str, decode: Decode) -> None:
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    plain = dataset(image(12), stored=12, **window)
    empty = dataset(image(12), stored=12, **window, **{keyword: Sequence([Dataset()])})
    assert np.array_equal(decode(written(empty)).pixels, decode(written(plain)).pixels)


def test_where_the_first_lut_leaves_the_image_black_the_second_is_taken(decode: Decode) -> None:
    blank, whole = lut(np.zeros(4096, int) + 1, 0, 12), lut(RAMP, 0, 12)
    both = dataset(image(12), stored=12, VOILUTSequence=Sequence([blank[0], whole[0]]))
    read = decode(written(both))
    assert np.array_equal(levels(read), image(12))
    assert read.warnings == (WarningCode.WINDOW,)
    with pytest.raises(NotAssessedError) as caught:
        decode(written(dataset(image(12), stored=12, VOILUTSequence=blank)))
    assert caught.value.reason is Reason.BLANK


def test_luts_beyond_any_number_that_makers_offer_are_passed_over(decode: Decode) -> None:
    def behind(count: int) -> bytes:
        blank, whole = lut(np.ones(4096, int), 0, 12), lut(RAMP, 0, 12)
        luts = Sequence([*[blank[0]] * count, whole[0]])
        return written(dataset(image(12), stored=12, VOILUTSequence=luts))

    assert decode(behind(63)).warnings == (WarningCode.WINDOW,)
    assert reason_of(decode, behind(64)) is Reason.BLANK
