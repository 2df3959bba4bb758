"""JPEG 2000 and HTJ2K are decoded no larger than the model input needs, and show the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import FileBytes, ImageBytes
from deepcovid_edge.imaging.prepare import enough_halvings, prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import decode_radiograph
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_edge.pipeline.reader import ImageReader
from deepcovid_edge.reasons import Reason

imagecodecs: Any = pytest.importorskip("imagecodecs", reason="needs extra dicom")
pytest.importorskip("pydicom", reason="needs extra dicom")
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    WRITABLE,
    dataset,
    fragments,
    written,
)
from test_dicom_refusals import lut

from deepcovid_edge.imaging.dicom.decoding.sandbox import Limits, Request, Sandbox

SPEC = InputSpec(40, 40)
BITS = 12
WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
MEAN, MOST = 0.8, 10.0
"""The tolerance: grey levels of 255 by which a model input differs, on average, and at 99.9 %."""
ROWS, COLUMNS = 441, 402
SOFT = 8
"""Pixels across which an edge lies."""


def film(rows: int = ROWS, columns: int = COLUMNS, bits: int = BITS) -> NDArray[np.uint16]:
    """A phantom with the noise of a detector."""
    top = (1 << bits) - 1
    # A detector's pixels are smaller than what it shows, so edges lie across several of them.
    sides = (columns // SOFT, rows // SOFT)
    small = cv2.resize(drawn_phantom(0), sides, interpolation=cv2.INTER_AREA)
    drawn = cv2.resize(small.astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, top / 170, drawn.shape)
    return np.asarray(np.clip(drawn * (top / 255) + noise, 0, top), np.uint16)


def codestream(
    pixels: NDArray[Any], syntax: str = J2K, bits: int = BITS, resolutions: int = 6
) -> bytes:
    if syntax in (HTJ2K, HTJ2K_LOSSY):
        return bytes(imagecodecs.htj2k_encode(pixels, resolutions=resolutions - 1, reversible=True))
    kind: dict[str, Any] = {"level": 0, "reversible": True}
    if syntax == J2K_LOSSY:
        kind = {"level": 60, "reversible": False}
    return bytes(
        imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", bitspersample=bits, resolutions=resolutions, **kind
        )
    )


def file_of(frame: bytes, pixels: NDArray[Any], syntax: str = J2K, **elements: Any) -> FileBytes:
    header = dataset(pixels, **{"stored": BITS, **WINDOW, **elements})
    return FileBytes(Path("image"), written(fragments(header, frame), syntax), "0" * 64)


def of(pixels: NDArray[Any], syntax: str = J2K, **elements: Any) -> FileBytes:
    return file_of(codestream(pixels, syntax), pixels, syntax, **elements)


def apart(file: FileBytes, spec: InputSpec) -> NDArray[np.int64]:
    """How far the model inputs of a halved and of the whole picture differ."""
    halved, whole = decode_radiograph(file, spec), decode_radiograph(file)
    assert halved.halvings
    assert not whole.halvings
    assert np.array_equal(halved.box_shape, whole.pixels.shape)
    assert (halved.white, halved.warnings, halved.dicom) == (
        *(whole.white, whole.warnings),
        whole.dicom,
    )
    found: NDArray[np.int64] = np.abs(prepare(halved, spec).astype(np.int64) - prepare(whole, spec))
    return found


def is_within_tolerance(found: NDArray[np.int64]) -> bool:
    return bool(found.mean() <= MEAN and np.percentile(found, 99.9) <= MOST)


@pytest.mark.parametrize("syntax", [one for one in (J2K, J2K_LOSSY, HTJ2K) if one in WRITABLE])
@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_each_resolution_gives_the_model_input_of_the_whole_picture(
    syntax: str, halvings: int
) -> None:
    bits = 16 if syntax == HTJ2K else BITS
    window: dict[str, Any] = {
        "WindowCenter": 1 << (bits - 1),
        "WindowWidth": 1 << bits,
        "stored": bits,
    }
    spec = SPEC if halvings > 1 else InputSpec(80, 80)
    pixels = film(*((ROWS, COLUMNS) if halvings < 3 else (889, 802)), bits)
    file = file_of(codestream(pixels, syntax, bits), pixels, syntax, **window)
    assert decode_radiograph(file, spec).halvings == halvings
    assert is_within_tolerance(apart(file, spec))


@pytest.mark.parametrize("rule", list(ResizeRule))
@pytest.mark.parametrize("sides", [(440, 400), (441, 403), (402, 441), (443, 401)])
def test_odd_sides_and_every_resize_rule_keep_their_place(
    sides: tuple[int, int], rule: ResizeRule
) -> None:
    """Half a pixel aside would show at the phantom's edges."""
    assert is_within_tolerance(apart(of(film(*sides)), replace(SPEC, resize=rule)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_tone_maps_that_are_not_straight_are_within_the_tolerance(photometric: str) -> None:
    curve = np.rint(4095 / (1 + np.exp((2048 - np.arange(4096)) / 600))).astype(np.uint16)
    no_window: dict[str, Any] = dict.fromkeys(WINDOW, "")
    of_lut: dict[str, Any] = {
        **no_window,
        "VOILUTSequence": lut(curve),
        "PhotometricInterpretation": photometric,
    }
    assert is_within_tolerance(apart(of(film(), **of_lut), SPEC))
    sigmoid: dict[str, Any] = {
        "VOILUTFunction": "SIGMOID",
        "PhotometricInterpretation": photometric,
    }
    assert is_within_tolerance(apart(of(film(), **sigmoid), SPEC))


@pytest.mark.parametrize("syntax", [one for one in (J2K, HTJ2K) if one in WRITABLE])
def test_filters_that_overshoot_do_not_wrap_around(syntax: str) -> None:
    """Black beside white: the filters leave the range on both sides of the edge."""
    pixels = film(bits=16)
    pixels[60:200, 80:200], pixels[:40], pixels[250:, :90] = 65535, 0, 0
    pixels[220:330:4] = 65535
    window: dict[str, Any] = {"WindowCenter": 32768, "WindowWidth": 65536, "stored": 16}
    file = file_of(codestream(pixels, syntax, 16), pixels, syntax, **window)
    assert apart(file, SPEC).max() < 64


@pytest.mark.parametrize(("resolutions", "halvings"), [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_a_codestream_of_few_resolutions_is_decoded_from_the_lowest(
    resolutions: int, halvings: int
) -> None:
    pixels = film()
    file = file_of(codestream(pixels, resolutions=resolutions), pixels)
    assert decode_radiograph(file, SPEC).halvings == halvings


def test_no_more_is_left_out_than_two_and_a_half_pixels_for_one_of_the_input() -> None:
    assert [enough_halvings((side, 3000), InputSpec()) for side in (1119, 1120, 2239, 2240)] == [
        *(0, 1, 1, 2),
    ]
    assert enough_halvings((150, 120), InputSpec()) == 0


ALL_PIXELS: dict[str, dict[str, Any]] = {
    "padding": {"PixelPaddingValue": 0},
    "shutter": {"ShutterShape": "CIRCULAR"},
    "aspect": {"PixelAspectRatio": [6, 5]},
    "spacing": {"PixelSpacing": [0.12, 0.1]},
    "imager spacing": {"ImagerPixelSpacing": [0.1, 0.12]},
    "no chest": {"PixelAspectRatio": [2, 1]},
    "on its side": {"PatientOrientation": ["F", "L"]},
    "no window": dict.fromkeys(WINDOW, ""),
    "window of no width": {"WindowWidth": 0},
    "narrow window": {"WindowWidth": 800},
    "second window": {"WindowCenter": [60000, 2048], "WindowWidth": [10, 4096]},
    "other bits": {"stored": 13},
    "step": {"WindowWidth": 1},
}


@pytest.mark.parametrize("elements", ALL_PIXELS.values(), ids=ALL_PIXELS)
def test_the_whole_picture_is_decoded_where_a_halved_one_shows_something_else(
    elements: dict[str, Any],
) -> None:
    assert decode_radiograph(of(film()), SPEC).halvings == 2
    assert_whole(of(film(), **elements))


def refusal(file: FileBytes, spec: InputSpec | None) -> tuple[Reason, str | None] | None:
    try:
        decode_radiograph(file, spec)
    except NotAssessedError as error:
        return error.reason, error.detail
    return None


def assert_whole(file: FileBytes) -> None:
    """Reading for a model input gives what reading gives, refusals included."""
    refused = refusal(file, None)
    assert refusal(file, SPEC) == refused
    if refused:
        return
    whole = decode_radiograph(file)
    read = decode_radiograph(file, SPEC)
    assert np.array_equal(read.pixels, whole.pixels)
    assert (read.halvings, read.warnings) == (0, whole.warnings)


def test_a_tone_map_that_rises_and_falls_needs_all_pixels() -> None:
    hill = np.rint(4095 * np.sin(np.linspace(0, np.pi, 4096))).astype(np.uint16)
    elements: dict[str, Any] = {**dict.fromkeys(WINDOW, ""), "VOILUTSequence": lut(hill)}
    assert_whole(of(film(), **elements))


def test_a_tone_map_with_one_word_that_stands_out_needs_all_pixels() -> None:
    """Between the words that a coarse look at the tone map would try."""
    ramp = np.arange(4096, dtype=np.uint16)
    ramp[1479:1499] = 4095
    elements: dict[str, Any] = {**dict.fromkeys(WINDOW, ""), "VOILUTSequence": lut(ramp)}
    assert_whole(of(film(), **elements))


def test_reversible_filters_of_few_bits_need_all_pixels() -> None:
    """They round up: a third of a grey level at each of 8-bit's levels."""
    pixels = (film() >> 4).astype(np.uint8)
    window: dict[str, Any] = {"WindowCenter": 128, "WindowWidth": 256, "stored": 8}
    assert_whole(file_of(codestream(pixels, bits=8), pixels, **window))
    lossy = file_of(codestream(pixels, J2K_LOSSY, 8), pixels, J2K_LOSSY, **window)
    assert is_within_tolerance(apart(lossy, SPEC))


def test_signed_words_and_tiles_need_all_pixels() -> None:
    signed = (film().astype(np.int32) - 2048).astype(np.int16)
    window: dict[str, Any] = {"WindowCenter": 0, "WindowWidth": 4096, "stored": 16}
    assert_whole(file_of(codestream(signed, bits=16), signed, **window))
    pixels = film()
    frame = bytearray(codestream(pixels))
    at = frame.index(b"\xff\x90") + 4  # ITU-T T.800, A.4.2: SOT, then the tile's number
    frame[at : at + 2] = b"\0\1"
    assert_whole(file_of(bytes(frame), pixels))


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_a_codestream_that_was_cut_and_closed_is_refused_as_before(kept: float) -> None:
    pixels = film()
    frame = codestream(pixels)
    frame = frame[: int(len(frame) * kept) // 2 * 2] + b"\xff\xd9"
    assert_whole(file_of(frame, pixels))


def test_faint_and_nearly_black_pictures_are_refused_as_the_whole_one() -> None:
    """Halving takes noise away, and contrast with it."""
    draw = np.random.default_rng(0)
    refusals = []
    for contrast in (60.0, 70.0, 110.0):  # of 4095; the limit is 64
        faint = np.clip(draw.normal(2048, contrast, (ROWS, COLUMNS)), 0, 4095).astype(np.uint16)
        refusals.append(refusal(of(faint), SPEC))
        assert refusals[-1] == refusal(of(faint), None)
    for black in (200, 280, 360):
        dark = film()
        dark[:black] = np.clip(draw.normal(30, 25, (black, COLUMNS)), 0, 4095)
        refusals.append(refusal(of(dark), SPEC))
        assert refusals[-1] == refusal(of(dark), None)
    assert {found and found[0] for found in refusals} == {None, Reason.BLANK}


def test_a_resolution_that_is_not_there_gives_the_whole_picture() -> None:
    pixels = film()
    asked = Request(J2K, ROWS, COLUMNS, 1, 16, BITS, False, "MONOCHROME2", halvings=7)
    pool = Sandbox(Limits())
    try:
        assert np.array_equal(pool.decode(asked, codestream(pixels)), pixels)
        halved = pool.decode(replace(asked, halvings=2), codestream(pixels))
        assert halved.shape == (111, 101)
    finally:
        pool.close()


def test_records_state_the_size_and_warnings_of_the_whole_picture() -> None:
    pixels = film(1121, 1203)
    native = written(dataset(pixels, stored=BITS, ViewPosition="", **WINDOW), EXPLICIT)
    packed = of(pixels, ViewPosition="").data
    whole, halved = (
        ImageReader(InputSpec(), keeps_radiographs=True).read(ImageBytes("image.dcm", data))
        for data in (native, packed)
    )
    assert halved.radiograph
    assert halved.radiograph.halvings == 1
    assert (halved.shape, halved.warnings, halved.uid) == (
        *((1121, 1203), whole.warnings),
        whole.uid,
    )
    assert halved.warnings == ("W_NO_VIEW",)


def test_a_change_gets_all_pixels() -> None:
    seen = []

    def change(image: Radiograph) -> Radiograph:
        seen.append(image.pixels.shape)
        return image

    ImageReader(InputSpec(), change).read(ImageBytes("image.dcm", of(film(1121, 1203)).data))
    assert seen == [(1121, 1203)]


def test_other_compressions_are_decoded_whole() -> None:
    pixels = film()
    frame = bytes(imagecodecs.jpegls_encode(pixels))
    assert_whole(file_of(frame, pixels, JPEG_LS))


@pytest.mark.skipif(HTJ2K not in WRITABLE, reason="this imagecodecs has no HTJ2K")
@pytest.mark.parametrize("spec", [None, SPEC])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.7, 0.9])
def test_damage_of_htj2k_does_not_leave_rows_black(place: float, spec: InputSpec | None) -> None:
    """imagecodecs' decoder of HTJ2K ended there without an error."""
    pixels = film()
    frame = codestream(pixels, HTJ2K)
    at = int(len(frame) * place)
    damaged = file_of(frame[:at] + bytes(4096) + frame[at + 4096 :], pixels, HTJ2K)
    with pytest.raises(NotAssessedError) as caught:
        decode_radiograph(damaged, spec)
    assert caught.value.reason is Reason.DECODE


@pytest.mark.skipif(HTJ2K_LOSSY not in WRITABLE, reason="this imagecodecs has no HTJ2K")
def test_lossy_words_beyond_the_range_do_not_wrap_around_in_the_whole_picture() -> None:
    """imagecodecs' decoder of HTJ2K made black of the brightest words."""
    pixels = film(bits=16)
    pixels[60:200, 80:200], pixels[:40] = 65535, 0
    frame = bytes(imagecodecs.htj2k_encode(pixels, level=0.01, reversible=False))
    window: dict[str, Any] = {"WindowCenter": 32768, "WindowWidth": 65536, "stored": 16}
    read = decode_radiograph(file_of(frame, pixels, HTJ2K_LOSSY, **window))
    assert np.abs(read.pixels.astype(np.int64) - pixels).max() < 6553
