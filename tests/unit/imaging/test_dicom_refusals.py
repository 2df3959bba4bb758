"""What the DICOM reader does not assess, each with its reason, and its warnings."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK, Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    J2K,
    JPEG,
    JPEG_12,
    JPEG_LS,
    LOSSLESS,
    LOSSLESS_SV1,
    RLE,
    SECONDARY_CAPTURE,
    WRITABLE,
    compressed,
    dataset,
    fragments,
    written,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_refusals import ELSEWHERE, photograph

from deepcovid_edge.imaging.dicom.syntaxes import DEFLATED, MAX_INFLATED

Decode = Callable[..., Radiograph]

STORAGE = "1.2.840.10008.5.1.4.1.1."
PIXELS = 0x7FE00010


def image(bits: int = 8, *, height: int = 128, width: int = 160) -> NDArray[Any]:
    """A ramp with waves that uses every value of so many bits."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / width * 9) + np.cos(y / height * 7) + x / width + 2 * y / height
    scaled = (waves - waves.min()) / np.ptp(waves) * ((1 << bits) - 1)
    values: NDArray[Any] = np.rint(scaled).astype(np.uint8 if bits == 8 else np.uint16)
    return values


def plain(bits: int = 12, **elements: Any) -> bytes:
    return written(dataset(image(bits), stored=bits, **elements))


def without_pixels(**elements: Any) -> bytes:
    header = dataset(image(), **elements)
    del header[PIXELS]
    return written(header)


def of_kind(number: str, modality: str) -> bytes:
    return without_pixels(SOPClassUID=STORAGE + number, Modality=modality)


def codestream(syntax: str, bits: int = 12) -> bytes:
    return compressed(image(bits), bits, syntax)


def with_codestream(frame: bytes, syntax: str, bits: int = 12, **elements: Any) -> bytes:
    return written(fragments(dataset(image(bits), stored=bits, **elements), frame), syntax)


def cut_codestream(syntax: str, bits: int = 12) -> bytes:
    """A whole file whose codestream lacks its end: what a broken console writes."""
    frame = codestream(syntax, bits)
    return with_codestream(frame[: len(frame) // 2], syntax, bits)


def damaged(syntax: str, bits: int = 12) -> bytes:
    frame = bytearray(codestream(syntax, bits))
    frame[2:-2] = np.random.default_rng(1).bytes(len(frame) - 4)
    return with_codestream(bytes(frame), syntax, bits)


def pixels_of_other_length(change: int) -> bytes:
    short = dataset(image(12), stored=12)
    value = short.PixelData
    short.add_new(PIXELS, "OW", (value + value[::-1])[: len(value) + change])
    return written(short)


def stray(share: float, *, signed: bool = False) -> bytes:
    words = image(12)
    words.ravel()[: round(share * words.size)] |= 0x4000
    return written(dataset(words.astype(np.int16) if signed else words, stored=12))


def with_syntax(syntax: str) -> bytes:
    """A file that states another transfer syntax than its own."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    before = EXPLICIT.encode() + b"\0"
    element = b"\x02\x00\x10\x00UI"
    return plain().replace(
        element + len(before).to_bytes(2, "little") + before,
        element + len(value).to_bytes(2, "little") + value,
    )


def deflated(content: bytes) -> bytes:
    """A deflated file of any content; 260 MB of zeros take 250 kB."""
    header = with_syntax(DEFLATED)
    start = header.index(b"\x08\x00\x16\x00UI")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(content[: 1 << 20])
    for at in range(1 << 20, len(content), 1 << 20):
        packed += packer.compress(content[at : at + (1 << 20)])
    return header[:start] + packed + packer.flush()


def with_elements(elements: bytes) -> bytes:
    """A file with more elements before its own."""
    whole = plain()
    start = whole.index(b"\x08\x00\x16\x00UI")
    return whole[:start] + elements + whole[start:]


SEQUENCE = b"\x08\x00\x05\x10SQ\0\0\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"


def in_two_frames() -> bytes:
    two = np.concatenate([image(12), image(12)])
    return written(dataset(two, stored=12, Rows=128, NumberOfFrames=2))


def coloured(pixels: NDArray[Any], photometric: str = "RGB", **elements: Any) -> bytes:
    return written(
        dataset(
            pixels, SOPClassUID=SECONDARY_CAPTURE, PhotometricInterpretation=photometric, **elements
        )
    )


def view_code(value: str, meaning: str) -> Sequence:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return Sequence([code])


@dataclass(frozen=True)
class Refusal:
    """A file that is not assessed."""

    reason: Reason
    make: Callable[[], bytes]
    detail: str = ""


REFUSALS: dict[str, Refusal] = {
    "dicomdir": Refusal(
        Reason.NOT_IMAGE,
        lambda: without_pixels(SOPClassUID="1.2.840.10008.1.3.10"),
        "DICOMDIR",
    ),
    "ct": Refusal(Reason.MODALITY, lambda: of_kind("2", "CT"), "this is CT"),
    "mr": Refusal(Reason.MODALITY, lambda: of_kind("4", "MR"), "this is MR"),
    "mammogram": Refusal(Reason.MODALITY, lambda: of_kind("1.2", "MG"), "mammogram"),
    "ultrasound": Refusal(Reason.MODALITY, lambda: of_kind("6.1", "US"), "ultrasound"),
    "fluoroscopy": Refusal(Reason.MODALITY, lambda: of_kind("12.2", "RF"), "fluoroscopy"),
    "angiogram": Refusal(Reason.MODALITY, lambda: of_kind("12.1", "XA"), "angiogram"),
    "report": Refusal(Reason.MODALITY, lambda: of_kind("88.11", "SR"), "report"),
    "pdf": Refusal(Reason.MODALITY, lambda: of_kind("104.1", "DOC"), "PDF"),
    "presentation": Refusal(Reason.MODALITY, lambda: of_kind("11.1", "PR"), "this is PR"),
    "dx-of-modality-ct": Refusal(Reason.MODALITY, lambda: plain(Modality="CT"), "this is CT"),
    "raw": Refusal(Reason.RAW, lambda: of_kind("1.1.1", "DX")),
    "raw-by-intent": Refusal(Reason.RAW, lambda: plain(PresentationIntentType="FOR PROCESSING")),
    "hand": Refusal(Reason.BODY, lambda: plain(BodyPartExamined="HAND"), "HAND"),
    "thoracic-spine": Refusal(Reason.BODY, lambda: plain(BodyPartExamined="TSPINE"), "TSPINE"),
    "babygram": Refusal(Reason.BODY, lambda: plain(BodyPartExamined="CHEST ABDOMEN")),
    "lateral": Refusal(Reason.VIEW, lambda: plain(ViewPosition="LATERAL"), "LATERAL"),
    "left-lateral": Refusal(Reason.VIEW, lambda: plain(ViewPosition="LL"), "LL"),
    "lateral-in-words": Refusal(Reason.VIEW, lambda: plain(ViewPosition="CHEST_LAT"), "CHEST_LAT"),
    "decubitus": Refusal(Reason.VIEW, lambda: plain(ViewPosition="RLD"), "RLD"),
    "oblique": Refusal(Reason.VIEW, lambda: plain(ViewPosition="Oblique"), "OBLIQUE"),
    "lateral-by-code": Refusal(
        Reason.VIEW,
        lambda: plain(ViewPosition="", ViewCodeSequence=view_code("399173006", "left lateral")),
        "LEFT LATERAL",
    ),
    "lateral-by-orientation": Refusal(
        Reason.VIEW, lambda: plain(PatientOrientation=["A", "F"]), "A\\F"
    ),
    "child": Refusal(Reason.AGE, lambda: plain(PatientAge="017Y"), "17 years"),
    "infant": Refusal(Reason.AGE, lambda: plain(PatientAge="011M"), "0.92 years"),
    "child-by-birth-date": Refusal(
        Reason.AGE, lambda: plain(PatientAge="", PatientBirthDate="20100402"), "9.98 years"
    ),
    "frames": Refusal(Reason.FRAMES, in_two_frames, "2 pictures"),
    "too-big": Refusal(Reason.TOO_BIG, lambda: plain(Rows=20_000, Columns=20_000), "100 mega"),
    "too-small": Refusal(Reason.SHAPE, lambda: written(dataset(image(height=99))), "160 x 99"),
    "strip": Refusal(Reason.SHAPE, lambda: written(dataset(image(width=400))), "400 x 128"),
    "no-size": Refusal(Reason.SHAPE, lambda: plain(Rows=None), "160 x 0"),
    "32-bit": Refusal(Reason.MODE, lambda: plain(BitsAllocated=32), "of 32 bits"),
    "1-bit": Refusal(Reason.MODE, lambda: plain(BitsAllocated=1), "12 of 1 bit"),
    "palette": Refusal(
        Reason.MODE, lambda: plain(8, PhotometricInterpretation="PALETTE COLOR"), "1 channel, "
    ),
    "float-pixels": Refusal(
        Reason.MODE,
        lambda: plain().replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x08\x00OF"),
        "floating point",
    ),
    "high-bit": Refusal(Reason.BITS, lambda: plain(HighBit=15), "highest 15"),
    "high-bit-below-the-stored-ones": Refusal(
        Reason.BITS, lambda: plain(HighBit=10), "12 of 16 bits, the highest 10"
    ),
    "high-bit-above-the-allocated-ones": Refusal(
        Reason.BITS, lambda: plain(HighBit=16), "12 of 16 bits, the highest 16"
    ),
    "more-stored-than-allocated": Refusal(Reason.BITS, lambda: plain(8, BitsStored=12)),
    "stray-bits": Refusal(Reason.BITS, lambda: stray(0.002), "0.2%"),
    "stray-bits-signed": Refusal(Reason.BITS, lambda: stray(0.002, signed=True), "0.2%"),
    "10-bits-stated-12-used": Refusal(
        Reason.BITS, lambda: plain(12, BitsStored=10, HighBit=9), "stored 10"
    ),
    "too-few-pixels": Refusal(Reason.LENGTH, lambda: pixels_of_other_length(-320), "by the header"),
    "too-many-pixels": Refusal(Reason.LENGTH, lambda: pixels_of_other_length(41_000)),
    "rows-do-not-fit": Refusal(Reason.LENGTH, lambda: plain(Rows=127), "40960 bytes"),
    "codestream-of-another-size": Refusal(
        Reason.LENGTH,
        lambda: with_codestream(codestream(JPEG_LS), JPEG_LS, Rows=120),
        "by the header",
    ),
    "rle-of-another-depth": Refusal(
        Reason.LENGTH, lambda: with_codestream(codestream(RLE, 8), RLE), "1 RLE segment, 2 by"
    ),
    "cut-in-the-header": Refusal(Reason.TRUNCATED, lambda: plain()[:400]),
    "cut-in-the-pixels": Refusal(Reason.TRUNCATED, lambda: plain()[:-100], "of 40960 bytes"),
    "cut-before-the-pixels": Refusal(Reason.TRUNCATED, lambda: plain()[: -40960 - 12], "no pixels"),
    "cut-in-a-fragment": Refusal(
        Reason.TRUNCATED, lambda: written(dataset(image(12), stored=12), JPEG_LS)[:-100]
    ),
    "cut-deflated": Refusal(
        Reason.TRUNCATED, lambda: written(dataset(image(12), stored=12), DEFLATED)[:-100]
    ),
    **{
        f"codestream-cut-{syntax[-2:]}": Refusal(
            Reason.TRUNCATED, partial(cut_codestream, syntax, bits), "end"
        )
        for syntax, bits in (
            *((JPEG, 8), (JPEG_12, 12), (LOSSLESS, 12), (LOSSLESS_SV1, 16), (JPEG_LS, 12)),
            *((J2K, 12), (HTJ2K, 12)),
        )
        if syntax in WRITABLE
    },
    **{
        f"codestream-damaged-{syntax[-2:]}": Refusal(Reason.DECODE, partial(damaged, syntax, bits))
        for syntax, bits in ((JPEG, 8), (LOSSLESS_SV1, 12), (JPEG_LS, 12), (J2K, 12), (HTJ2K, 12))
        if syntax in WRITABLE
    },
    "rle-cut": Refusal(Reason.TRUNCATED, lambda: cut_codestream(RLE)),
    "no-fragments": Refusal(
        Reason.DECODE, lambda: with_codestream(b"no", RLE).replace(b"\xfe\xff\x00\xe0", b"\0" * 4)
    ),
    "private-syntax": Refusal(
        Reason.SYNTAX,
        lambda: with_syntax("1.2.840.113619.5.2"),
        "1.2.840.113619.5.2",
    ),
    "video": Refusal(
        Reason.SYNTAX,
        lambda: with_syntax("1.2.840.10008.1.2.4.102"),
        "1.2.840.10008.1.2.4.102",
    ),
    "deflate-bomb": Refusal(
        Reason.TOO_BIG, lambda: deflated(bytes(MAX_INFLATED + 1)), "once inflated"
    ),
    "many-items": Refusal(
        Reason.DECODE, lambda: with_elements(SEQUENCE + (ITEM + bytes(4)) * 201_000)
    ),
    "nested-a-thousand-times": Refusal(
        Reason.DECODE, lambda: with_elements((SEQUENCE + ITEM + b"\xff" * 4) * 1000)
    ),
    "many-elements": Refusal(
        Reason.DECODE,
        lambda: with_elements(b"\x07\0\x05\0CS\0\0" * 201_000),
        "more than 200000 parts",
    ),
    "identifier-of-8-megabytes": Refusal(
        Reason.DECODE,
        lambda: with_elements(
            b"\x08\0\x18\0UT\0\0" + (1 << 23).to_bytes(4, "little") + b"1" * (1 << 23)
        ),
        "8388608 bytes",
    ),
    "jpeg-xl": Refusal(Reason.SYNTAX, lambda: with_syntax("1.2.840.10008.1.2.4.110")),
    "black": Refusal(Reason.BLANK, lambda: written(dataset(image(12) * 0, stored=12)), "contrast"),
    "constant-by-its-window": Refusal(
        Reason.BLANK,
        lambda: plain(WindowCenter=9000, WindowWidth=100),
        "in the window of its header, centre 9000, width 100",
    ),
    "window-of-one-value": Refusal(
        Reason.BLANK, lambda: plain(WindowCenter=2000, WindowWidth=1), "white"
    ),
    "photograph": Refusal(Reason.COLOUR, lambda: coloured(photograph()), "chroma"),
    "photograph-ybr": Refusal(Reason.COLOUR, lambda: coloured(photograph(), "YBR_FULL"), "chroma"),
    "lut-without-entries": Refusal(
        Reason.DECODE, lambda: plain(VOILUTSequence=lut(range(100), entries=4096)), "LUT"
    ),
    "rescale-beyond-numbers": Refusal(
        Reason.DECODE, lambda: plain(RescaleSlope="1e307"), "slope 1e+307"
    ),
    **{
        f"half-a-rescale-{number}": Refusal(  # found by fuzz.py
            Reason.DECODE,
            partial(plain, 12, WindowCenter=2048, WindowWidth=4096, **half),
            "rescale slope",
        )
        for number, half in enumerate(
            (
                {"RescaleSlope": "2"},
                {"RescaleIntercept": "-1024"},
                {"RescaleSlope": "2", "RescaleIntercept": ""},
                {"RescaleSlope": "", "RescaleIntercept": "-1024"},
                {"RescaleSlope": "0", "RescaleIntercept": "0"},
                {"RescaleSlope": "-0.0", "RescaleIntercept": "-1024"},
            )
        )
    },
    "rescale-to-one-number": Refusal(
        Reason.DECODE, lambda: plain(RescaleIntercept="1e300"), "intercept 1e+300"
    ),
    "header-only": Refusal(Reason.TRUNCATED, lambda: bytes(128) + b"DICM" + bytes(500)),
    "tiff-with-a-dicom-prefix": Refusal(
        Reason.TRUNCATED, lambda: b"II*\0".ljust(128, b"\1") + b"DICM" + bytes(500)
    ),
}


def lut(values: Any, *, first: int = 0, bits: int = 12, entries: int | None = None) -> Sequence:
    table = Dataset()
    table.add_new(0x00283002, "US", [entries or len(values), first, bits])
    table.add_new(0x00283006, "OW", np.asarray(values, "<u2").tobytes())
    return Sequence([table])


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written wrong here
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_reason_a_sentence_and_a_detail(name: str, tmp_path: Path) -> None:
    case = REFUSALS[name]
    path = tmp_path / "image.dcm"
    path.write_bytes(case.make())
    with pytest.raises(NotAssessedError) as caught:
        read_radiograph(path)
    error = caught.value
    assert error.reason is case.reason, error
    assert str(error).startswith(case.reason.sentence)
    assert case.detail.lower() in error.detail.lower()
    assert "\n" not in str(error)
    assert not re.search("0x[0-9a-f]{5}", error.detail)  # no address of an object
    assert "Rontgen" not in str(error)


def test_dicom_without_pydicom_gets_a_reason_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, decode: Decode
) -> None:
    data = plain()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(NotAssessedError, match=r"pip install 'deepcovid-edge\[dicom\]'") as caught:
        decode(data)
    assert caught.value.reason is Reason.DICOM


def compressed_hard() -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(image(), level=3))


def plain_colour_marks() -> bytes:
    marked = np.dstack([image()] * 3)
    marked[10:30, 10:30] = (255, 255, 0)
    return written(dataset(marked))


WARNED: dict[str, tuple[WarningCode, Callable[[], bytes], str]] = {
    "suffix": (WarningCode.SUFFIX, plain, "image.png"),
    "no-view": (WarningCode.NO_VIEW, lambda: plain(ViewPosition=""), "image"),
    "no-view-element": (WarningCode.NO_VIEW, lambda: plain(ViewPosition=None), "image"),
    "no-body-part": (WarningCode.NO_VIEW, lambda: plain(BodyPartExamined=""), "image"),
    "upright-and-no-view": (WarningCode.NO_VIEW, lambda: plain(ViewPosition="UPRIGHT"), "image"),
    "unknown-view": (WarningCode.NOT_UNDERSTOOD, lambda: plain(ViewPosition="ZUMMA"), "image"),
    "ap": (WarningCode.AP, lambda: plain(ViewPosition="AP"), "image"),
    "ap-in-words": (WarningCode.AP, lambda: plain(ViewPosition="AP PLATE"), "image"),
    "ap-by-code": (
        WarningCode.AP,
        lambda: plain(ViewPosition="", ViewCodeSequence=view_code("399348003", "antero-posterior")),
        "image",
    ),
    "no-age": (WarningCode.AGE, lambda: plain(PatientAge="", PatientBirthDate=""), "image"),
    "age-that-is-none": (
        WarningCode.AGE,
        lambda: plain(PatientAge="999Y", PatientBirthDate="0000"),
        "image",
    ),
    "secondary-capture": (
        WarningCode.SECONDARY,
        lambda: plain(8, SOPClassUID=SECONDARY_CAPTURE, Modality="OT"),
        "image",
    ),
    "burned-in": (WarningCode.SECONDARY, lambda: plain(BurnedInAnnotation="YES"), "image"),
    "lossy-by-header": (
        WarningCode.LOSSY,
        lambda: plain(LossyImageCompressionRatio=["12", "33.5"]),
        "image",
    ),
    "lossy-by-size": (
        WarningCode.LOSSY,
        lambda: with_codestream(compressed_hard(), JPEG, 8),
        "image",
    ),
    "shutter-of-an-unknown-shape": (
        WarningCode.SHUTTER,
        lambda: plain(ShutterShape="BITMAP"),
        "image",
    ),
    "window-without-width": (
        WarningCode.WINDOW,
        lambda: plain(WindowCenter=2000, WindowWidth=0),
        "image",
    ),
    "window-of-half-a-value": (
        WarningCode.WINDOW,
        lambda: plain(WindowCenter=2000, WindowWidth=0.5),
        "image",
    ),
    "window-of-negative-width": (
        WarningCode.WINDOW,
        lambda: plain(WindowCenter=2000, WindowWidth=-4000),
        "image",
    ),
    "window-without-centre": (WarningCode.WINDOW, lambda: plain(WindowWidth=4000), "image"),
    "window-of-unknown-kind": (
        WarningCode.WINDOW,
        lambda: plain(WindowCenter=2048, WindowWidth=4096, VOILUTFunction="BENT"),
        "image",
    ),
    "12-of-16-bits": (WarningCode.DEPTH, lambda: plain(12, BitsStored=16, HighBit=15), "image"),
    "mirrored": (WarningCode.ORIENTATION, lambda: plain(PatientOrientation=["R", "F"]), "image"),
    "turned": (WarningCode.ORIENTATION, lambda: plain(PatientOrientation=["R", "H"]), "image"),
    "slanted": (WarningCode.ORIENTATION, lambda: plain(PatientOrientation=["LF", "FR"]), "image"),
    "coloured-marks": (WarningCode.COLOUR, plain_colour_marks, "image"),
    "synthetic": (
        WarningCode.SYNTHETIC,
        lambda: plain(ImageComments=SYNTHETIC_MARK.decode()),
        "image",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WARNED)
def test_assessed_with_this_warning_alone(name: str, decode: Decode) -> None:
    warning, make, file_name = WARNED[name]
    assert decode(make(), file_name).warnings == (warning,)


@pytest.mark.parametrize(
    "file_name", ["image", "image.dcm", "1.2.840.113619.17", "IM0001", "a.IMA"]
)
def test_usual_names_of_dicom_files_are_no_reason_for_a_warning(
    file_name: str, decode: Decode
) -> None:
    assert decode(plain(), file_name).warnings == ()


def test_every_reason_and_warning_of_dicom_files_is_brought_about_by_one() -> None:
    brought_about: set[Reason | WarningCode] = {case.reason for case in REFUSALS.values()}
    brought_about |= {Reason.DICOM}
    brought_about |= {warning for warning, _, _ in WARNED.values()}
    expected = {member for member, where in ELSEWHERE.items() if Path(__file__).name in where}
    assert expected <= brought_about
