"""The DICOM reader: grey levels, and what it keeps of a header."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
imagecodecs: Any = pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    CR,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    JPEG,
    JPEG_LS,
    RLE,
    SECONDARY_CAPTURE,
    WRITABLE,
    compressed,
    dataset,
    fragments,
    reason_of,
    written,
)
from test_dicom_refusals import image, lut, plain

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT

Decode = Callable[..., Radiograph]


def read_as(read: Radiograph, shares: NDArray[Any]) -> bool:
    """Whether an image has these shares of full white, to half a grey level."""
    return bool(np.abs(read.pixels / read.white - shares).max() <= 0.5 / read.white + 1e-9)


def test_older_class_of_images_is_read(decode: Decode) -> None:
    assert decode(plain(SOPClassUID=CR, Modality="CR")).format == "DICOM"


# --- grey levels -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_without_a_window_stored_bits_are_grey_levels_as_they_are(
    bits: int, decode: Decode
) -> None:
    read = decode(plain(bits))
    assert read.white == (1 << bits) - 1
    assert np.array_equal(read.pixels, image(bits))
    assert read.warnings == ()


def test_window_is_applied_and_then_monochrome1_is_inverted(decode: Decode) -> None:
    words = image(12)
    shown = np.clip((words - 999.5) / 1999.0 + 0.5, 0, 1)
    window = {"WindowCenter": 1000, "WindowWidth": 2000}
    assert read_as(decode(plain(**window)), shown)
    inverted = plain(**window, PhotometricInterpretation="MONOCHROME1")
    assert read_as(decode(inverted), 1 - shown)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_lut_shape_inverts_nothing_a_second_time(
    photometric: str, decode: Decode
) -> None:
    once = decode(plain(PhotometricInterpretation=photometric))
    told = decode(plain(PhotometricInterpretation=photometric, PresentationLUTShape="INVERSE"))
    assert np.array_equal(once.pixels, told.pixels)


def test_first_of_several_windows_is_taken(decode: Decode) -> None:
    several = decode(plain(WindowCenter=["1000", "3000"], WindowWidth=["2000", "50"]))
    assert several.warnings == ()
    assert np.array_equal(several.pixels, decode(plain(WindowCenter=1000, WindowWidth=2000)).pixels)


@pytest.mark.parametrize(("centre", "width"), [(30_000, 2000), (-600, 100), (2048, 0), (2048, -1)])
def test_a_window_that_shows_nothing_gives_way_to_the_next(
    centre: int, width: int, decode: Decode
) -> None:
    several = decode(plain(WindowCenter=[centre, 1000], WindowWidth=[width, 2000]))
    assert several.warnings == (WarningCode.WINDOW,)
    assert np.array_equal(several.pixels, decode(plain(WindowCenter=1000, WindowWidth=2000)).pixels)


def test_windows_beyond_any_number_that_makers_offer_are_passed_over(decode: Decode) -> None:
    """A header of 6,000 took 7 seconds and 3 gigabytes."""

    def behind(blank: int) -> bytes:
        centres = [*["30000"] * blank, "1000"]
        return plain(WindowCenter=centres, WindowWidth=["2000"] * len(centres))

    assert decode(behind(63)).warnings == (WarningCode.WINDOW,)
    assert reason_of(decode, behind(64)) is Reason.BLANK


def test_rescale_comes_before_the_window(decode: Decode) -> None:
    words = image(12)
    read = decode(
        plain(RescaleSlope="0.5", RescaleIntercept="-1000", WindowCenter=0, WindowWidth=2001)
    )
    assert read_as(read, np.clip((words * 0.5 - 1000 + 0.5) / 2000 + 0.5, 0, 1))


def test_negative_slope_turns_black_and_white(decode: Decode) -> None:
    read = decode(plain(RescaleSlope="-1", RescaleIntercept="4095"))
    assert np.array_equal(read.pixels, 4095 - image(12))


def test_modality_lut_and_voi_lut_are_looked_up_in_turn(decode: Decode) -> None:
    squares = np.rint((np.arange(4096) / 4095.0) ** 2 * 1023)
    roots = np.rint(np.sqrt(np.arange(1024) / 1023.0) * 255)
    read = decode(
        plain(
            ModalityLUTSequence=lut(squares, bits=10),
            VOILUTSequence=lut(roots, bits=8),
            WindowCenter=9000,  # a LUT goes before a window
            WindowWidth=10,
        )
    )
    assert read_as(read, roots[squares[image(12)].astype(int)] / 255)


def test_voi_lut_of_fewer_entries_holds_its_ends(decode: Decode) -> None:
    table = np.linspace(0, 4095, 2000)
    read = decode(plain(VOILUTSequence=lut(np.rint(table), first=1000)))
    index = np.clip(image(12).astype(int) - 1000, 0, 1999)
    assert read_as(read, np.rint(table)[index] / 4095)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_no_part_of_the_exposure(photometric: str, decode: Decode) -> None:
    words = np.maximum(image(12), 8)
    words[:, :100] = 3  # 62 % of the image: more than may be black
    data: dict[str, Any] = {"PhotometricInterpretation": photometric, "stored": 12}
    with pytest.raises(NotAssessedError):
        decode(written(dataset(words, **data)))
    read = decode(written(dataset(words, **data, PixelPaddingValue=3)))
    assert read.pixels[:, :100].max() == 0
    assert np.array_equal(
        read.pixels[:, 100:], 4095 - words[:, 100:] if "1" in photometric else words[:, 100:]
    )


def test_range_of_padding_is_black(decode: Decode) -> None:
    words = np.minimum(image(12), 4000)
    words[:20] = 4090
    words[20:30] = 4095
    padded = dataset(words, stored=12, PixelPaddingValue=4090, PixelPaddingRangeLimit=4095)
    read = decode(written(padded))
    assert read.pixels[:30].max() == 0
    assert np.array_equal(read.pixels[30:], words[30:])


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, JPEG_LS])
def test_signed_pixels_are_read_with_their_sign(syntax: str, decode: Decode) -> None:
    words = image(12).astype(np.int16) - 2048
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    if syntax == JPEG_LS:  # knows no sign: words as they stand
        frame = compressed(words.view(np.uint16) & 0x0FFF, 12, syntax)
        data = written(fragments(dataset(words, stored=12, **window), frame), syntax)
    else:
        data = written(dataset(words, stored=12, **window), syntax)
    assert read_as(decode(data), np.clip((words + 2048) / 4095, 0, 1))


def test_signed_pixels_that_are_never_negative_use_the_upper_half(decode: Decode) -> None:
    words = image(12).astype(np.int16)
    read = decode(written(dataset(words, stored=13)))
    assert read_as(read, words / 4095)
    assert read.warnings == (WarningCode.DEPTH,)


def test_signed_bytes_that_are_never_negative_use_all_grey_levels(decode: Decode) -> None:
    words = (image() >> 1).astype(np.int8)
    read = decode(written(dataset(words)))
    assert (read.white, read.warnings) == (255, (WarningCode.DEPTH,))
    assert np.array_equal(read.pixels, np.rint(words * (255 / 127)))
    negative = decode(written(dataset(words - np.int8(64))))
    assert np.array_equal(negative.pixels, words.astype(int) + 64)


@pytest.mark.parametrize(("centre", "black"), [(1001, 30), (1001.5, 70)])
def test_a_window_of_width_one_is_a_step(centre: float, black: int, decode: Decode) -> None:
    """PS3.3, C.11.2.1.2.1: black up to the centre less one half. No such image is assessed."""
    draw = np.random.default_rng(0)
    words = draw.choice(np.array([1000, 1001, 1002], np.uint16), (128, 160), p=[0.3, 0.4, 0.3])
    with pytest.raises(NotAssessedError) as caught:
        decode(written(dataset(words, stored=12, WindowCenter=centre, WindowWidth=1)))
    shares = re.match(r"(\d+)% of it is black, (\d+)% white", caught.value.detail or "")
    assert shares
    assert sum(map(int, shares.groups())) == 100
    assert int(shares[1]) == pytest.approx(black, abs=3)


@pytest.mark.parametrize("share", [0.0005, 0.0])
def test_a_few_stray_bits_are_masked(share: float, decode: Decode) -> None:
    words = image(12)
    clean = words.copy()
    words.ravel()[: round(share * words.size)] |= 0x8000
    assert np.array_equal(decode(written(dataset(words, stored=12))).pixels, clean)


def test_overshoot_of_lossy_coding_is_clipped_and_not_wrapped_to_black(decode: Decode) -> None:
    words = image(12)
    words[50:60] = 4095
    above = words.copy()
    above[50:60] = 4099
    frame = compressed(above, 16, JPEG_LS)
    near = "1.2.840.10008.1.2.4.81"
    read = decode(written(fragments(dataset(words, stored=12), frame), near))
    assert np.array_equal(read.pixels, words)


def test_overshoot_of_signed_pixels_is_clipped_too(decode: Decode) -> None:
    words = image(12).astype(np.int16) - np.int16(2048)
    words[50:60], words[70:80] = 2047, -2048
    beyond = words.copy()
    beyond[50:60], beyond[70:80] = 2055, -2060
    frame = compressed(beyond, 16, J2K)
    read = decode(written(fragments(dataset(words, stored=12), frame), J2K_LOSSY))
    assert np.array_equal(read.pixels, words.astype(np.int32) + 2048)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_of_lossy_htj2k_stays_white(kind: Any, decode: Decode) -> None:
    if HTJ2K_LOSSY not in WRITABLE:
        pytest.skip("imagecodecs has no encoder of HTJ2K here")
    words = image(8 * np.dtype(kind).itemsize)
    top = np.iinfo(kind).max
    words[40:70], words[80:100] = top, 0
    frame = imagecodecs.htj2k_encode(words, reversible=False)
    read = decode(written(fragments(dataset(words), frame), HTJ2K_LOSSY))
    assert np.abs(read.pixels.astype(np.int64) - words).max() < 0.05 * top


def test_image_in_the_lower_bits_is_stretched_with_a_caution(decode: Decode) -> None:
    read = decode(plain(12, BitsStored=16, HighBit=15))
    assert read.white == 4095
    assert np.array_equal(read.pixels, image(12))
    assert read.warnings == (WarningCode.DEPTH,)


def test_monochrome1_image_in_the_lower_bits_is_inverted_within_them(decode: Decode) -> None:
    read = decode(plain(12, BitsStored=16, HighBit=15, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(read.pixels, 4095 - image(12))


@pytest.mark.parametrize("kind", ["OB", "OW"])
@pytest.mark.parametrize("width", [160, 161])
def test_8_bits_in_big_endian_bytes_or_words(kind: str, width: int, decode: Decode) -> None:
    words = image(height=127, width=width)
    stored = np.frombuffer(words.tobytes() + b"\0" * (words.size % 2), np.uint8)
    if kind == "OW":
        stored = stored.reshape(-1, 2)[:, ::-1]
    big = written(dataset(words), BIG_ENDIAN)
    value = words.tobytes() + b"\0" * (words.size % 2)
    assert big.endswith(value)
    swapped = big[: -len(value)].replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10" + kind.encode())
    assert np.array_equal(decode(swapped + stored.tobytes()).pixels, words)


@pytest.mark.parametrize("syntax", [IMPLICIT, RLE, JPEG, J2K])
def test_grey_copy_of_a_screen_in_rgb_is_read(syntax: str, decode: Decode) -> None:
    grey = image()
    copy = dataset(np.dstack([grey] * 3), SOPClassUID=SECONDARY_CAPTURE, Modality="OT")
    if syntax == JPEG:
        copy.PhotometricInterpretation = "YBR_FULL_422"
    read = decode(written(copy, syntax))
    assert np.abs(read.pixels.astype(int) - grey).max() <= (4 if syntax == JPEG else 1)
    assert read.warnings == (WarningCode.SECONDARY,)


def test_colours_in_planes_are_read(decode: Decode) -> None:
    planes = np.stack([image()] * 3)
    copy = dataset(np.dstack(list(planes)), PlanarConfiguration=1)
    copy.add_new(0x7FE00010, "OW", planes.tobytes())
    assert np.array_equal(decode(written(copy)).pixels, image())


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (["L", "H"], lambda pixels: pixels[::-1, ::-1]),
        (["R", "H"], lambda pixels: pixels[::-1, ::-1]),
        (["F", "R"], lambda pixels: np.rot90(pixels, 3)),
        (["H", "L"], lambda pixels: np.rot90(pixels, 1)),
        (["R", "F"], lambda pixels: pixels),
    ],
    ids=["L-H", "R-H", "F-R", "H-L", "R-F"],
)
def test_image_is_turned_until_its_feet_are_below(
    stated: list[str], expected: Callable[[NDArray[Any]], NDArray[Any]], decode: Decode
) -> None:
    read = decode(plain(PatientOrientation=stated))
    assert np.array_equal(read.pixels, expected(image(12)))
    assert read.warnings == (WarningCode.ORIENTATION,)


# --- what is kept ------------------------------------------------------------------------------


def test_identifiers_are_kept_and_names_and_dates_are_not(decode: Decode) -> None:
    read = decode(plain(Modality="DX", SeriesDescription="Thorax of A. Rontgen"))
    assert read.dicom is not None
    assert asdict(read.dicom) == {
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "sop_instance_uid": "1.2.3.4.5",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "DX",
        "body_part": "CHEST",
        "view": "PA",
        "age_years": 62.0,
        "device": "",
        "month": "2020-03",
    }
    assert not {"Rontgen", "19570402", "1957"} & set(repr(read.dicom).split("'"))


def test_age_is_counted_from_birth_where_it_is_not_stated(decode: Decode) -> None:
    read = decode(plain(PatientAge=""))
    assert read.dicom is not None
    assert read.dicom.age_years == pytest.approx(62.98, abs=0.01)


def test_pictures_have_no_dicom_facts(pictures: Any, decode: Decode) -> None:
    assert decode(pictures.encode(pictures.image(), "PNG")).dicom is None


def test_infer_takes_dicom_from_folders_and_writes_no_name(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs extra cpu")
    (tmp_path / "DICOM" / "0001").mkdir(parents=True)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(500))
    (tmp_path / "DICOM/0001/IM0001").write_bytes(plain())
    (tmp_path / "DICOM/0001/1.2.840.99").write_bytes(
        written(dataset(image(12), stored=12), JPEG_LS)
    )
    (tmp_path / "hand.dcm").write_bytes(plain(BodyPartExamined="HAND"))
    done = subprocess.run(
        [sys.executable, "-m", "deepcovid_edge", "infer", str(tmp_path), "--ood", "warn", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(record["path"]).name for record in records] == [
        *("1.2.840.99", "IM0001", "hand.dcm"),
    ]
    assert [record["reason"] for record in records] == [None, None, "E_BODY"]
    assert records[0]["probability"] == records[1]["probability"]
    assert records[2]["probability"] is None
    for text in (done.stdout, done.stderr):
        assert not any(secret in text for secret in ("Rontgen", "Anna", "1957"))


def test_no_dicom_file_no_pydicom() -> None:
    program = (
        "import sys\n"
        "import deepcovid_edge.imaging.dicom.reader, deepcovid_edge.pipeline.pipeline\n"
        "assert not {'pydicom', 'imagecodecs'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
