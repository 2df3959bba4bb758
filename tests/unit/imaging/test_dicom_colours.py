"""Colours of DICOM files: the stream says what they are, whatever the header says."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import spread
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
import imagecodecs
from codestreams import JFIF, JFXX, LosslessJpeg, adobe, byte_planes, colour_jpeg, rle
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    J2K,
    JPEG,
    JPEG_LS,
    LOSSLESS,
    RLE,
    SECONDARY_CAPTURE,
    WRITABLE,
    by_dcmtk,
    compressed,
    dataset,
    fragments,
    frame_of,
    reason_of,
    written,
)
from test_dicom_refusals import image
from test_refusals import photograph

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT, SYNTAXES, Family

Decode = Callable[..., Radiograph]


# --- colour ----------------------------------------------------------------------------------

LABELS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "MONOCHROME2")


def screen_copy(stream: bytes, syntax: str, label: str) -> bytes:
    pixels = image() if label == "MONOCHROME2" else np.dstack([image()] * 3)
    labelled = dataset(pixels, SOPClassUID=SECONDARY_CAPTURE, PhotometricInterpretation=label)
    return written(fragments(labelled, stream), syntax)


def ycc(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    converted = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(converted[..., [0, 2, 1]])


def subsampled(rgb: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=98, subsampling="4:2:0")
    return stream.getvalue().replace(stream.getvalue()[2:20], b"", 1)


def by_dcmcjpls(rgb: NDArray[np.uint8], interleave: str) -> bytes:
    if shutil.which("dcmcjpls") is None:
        pytest.skip("dcmcjpls not found: apt-get install dcmtk")
    data = written(dataset(rgb, SOPClassUID=SECONDARY_CAPTURE))
    return frame_of(by_dcmtk(data, JPEG_LS, interleave))


STREAMS: dict[str, tuple[str, Callable[[NDArray[np.uint8]], bytes]]] = {
    "JPEG, JFIF": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), JFIF)),
    "JPEG, JFIF and JFXX": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), JFIF + JFXX)),
    "JPEG, JFIF and Adobe 0": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), JFIF + adobe(0))),
    "JPEG, Adobe 0": (JPEG, lambda rgb: colour_jpeg(rgb, adobe(0))),
    "JPEG, Adobe 1": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), adobe(1))),
    "JPEG, Adobe 2": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), adobe(2))),
    "JPEG, R G B": (JPEG, lambda rgb: colour_jpeg(rgb, identifiers=b"RGB")),
    "JPEG, halved, unmarked": (JPEG, subsampled),
    "JPEG, RGB, unmarked": (JPEG, colour_jpeg),
    "JPEG, YCbCr, unmarked": (JPEG, lambda rgb: colour_jpeg(ycc(rgb))),
    "JPEG, RGB, wrongly marked": (JPEG, lambda rgb: colour_jpeg(rgb, JFIF)),
    "JPEG, YCbCr, wrongly marked": (JPEG, lambda rgb: colour_jpeg(ycc(rgb), adobe(0))),
    "lossless, RGB": (LOSSLESS, LosslessJpeg(8).encode),
    "lossless, YCbCr": (LOSSLESS, lambda rgb: LosslessJpeg(8).encode(ycc(rgb))),
    "lossless, YCbCr, JFIF": (
        LOSSLESS,
        lambda rgb: LosslessJpeg(8, segments=JFIF).encode(ycc(rgb)),
    ),
    "lossless, RGB, JFIF": (LOSSLESS, LosslessJpeg(8, segments=JFIF).encode),
    "JPEG-LS, RGB": (JPEG_LS, lambda rgb: compressed(rgb, 8, JPEG_LS)),
    "JPEG-LS, YCbCr": (JPEG_LS, lambda rgb: compressed(ycc(rgb), 8, JPEG_LS)),
    "JPEG-LS by line": (JPEG_LS, lambda rgb: by_dcmcjpls(rgb, "+il")),
    "JPEG-LS by sample": (JPEG_LS, lambda rgb: by_dcmcjpls(rgb, "+is")),
    "JPEG-LS by plane": (JPEG_LS, lambda rgb: by_dcmcjpls(rgb, "+in")),
    **{
        f"JPEG 2000, {name}": (J2K, make)
        for name, make in {
            "transformed": lambda rgb: j2k(rgb, mct=True),
            "transformed, lossy": lambda rgb: j2k(rgb, mct=True, reversible=False, level=60),
            "RGB": lambda rgb: j2k(rgb, mct=False),
            "YCbCr": lambda rgb: j2k(ycc(rgb), mct=False),
            "YCbCr, transformed": lambda rgb: j2k(ycc(rgb), mct=True),
            "sYCC in JP2": lambda rgb: j2k(
                ycc(rgb), mct=False, codecformat="jp2", colorspace="SYCC"
            ),
            "sRGB in JP2": lambda rgb: j2k(rgb, codecformat="jp2", colorspace="SRGB"),
        }.items()
    },
    "RLE, RGB": (RLE, lambda rgb: rle(byte_planes(rgb))),
    "RLE, YCbCr": (RLE, lambda rgb: rle(byte_planes(ycc(rgb)))),
}
if HTJ2K in WRITABLE:
    STREAMS["HTJ2K, transformed"] = (HTJ2K, lambda rgb: compressed(rgb, 8, HTJ2K))


def j2k(planes: NDArray[np.uint8], **options: Any) -> bytes:
    settings = {"codecformat": "j2k", "level": 0, "reversible": True, **options}
    return bytes(imagecodecs.jpeg2k_encode(planes, **settings))


def test_kinds_of_stream_are_all_families_and_all_colours() -> None:
    families = {SYNTAXES[syntax].family for syntax, _ in STREAMS.values()}
    missing = {Family.NATIVE} | ({Family.HTJ2K} if HTJ2K not in WRITABLE else set())
    assert families == set(Family) - missing


@pytest.mark.parametrize(("kind", "label"), spread(STREAMS, LABELS, of=6))
def test_grey_copy_is_grey_whatever_its_header_says(kind: str, label: str, decode: Decode) -> None:
    syntax, encode = STREAMS[kind]
    grey = image()
    read = decode(screen_copy(encode(np.dstack([grey] * 3)), syntax, label))
    assert np.abs(read.pixels.astype(int) - grey).max() <= (
        4 if "JPEG," in kind or "lossy" in kind else 1
    )
    assert read.warnings == (WarningCode.SECONDARY,)


@pytest.mark.parametrize(("kind", "label"), spread(STREAMS, LABELS, of=12))
def test_coloured_picture_is_refused_whatever_its_header_says(
    kind: str, label: str, decode: Decode
) -> None:
    syntax, encode = STREAMS[kind]
    picture = cv2.resize(photograph(), (160, 128)).astype(np.uint8)
    assert reason_of(decode, screen_copy(encode(picture), syntax, label)) is Reason.COLOUR


@pytest.mark.parametrize("label", [label for label in LABELS if label != "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [LOSSLESS, JPEG_LS, J2K, RLE])
def test_one_channel_under_a_label_of_three_is_read(
    syntax: str, label: str, decode: Decode
) -> None:
    stream = compressed(image(), 8, syntax)
    assert np.array_equal(decode(screen_copy(stream, syntax, label)).pixels, image())


SAYS_ITSELF = [
    kind for kind in STREAMS if "unmarked" not in kind and "wrongly" not in kind
    and any(word in kind for word in ("JFIF", "Adobe", "R G B", "transformed", "sYCC"))
    and kind not in ("lossless, RGB, JFIF", "JPEG 2000, YCbCr, transformed")
]  # fmt: skip


@pytest.mark.parametrize(("kind", "label"), spread(SAYS_ITSELF, LABELS, of=6))
def test_coloured_marks_have_the_colours_of_the_stream(
    kind: str, label: str, decode: Decode
) -> None:
    """A yellow mark turns to the grey of yellow, not to that of what the header makes of it."""
    syntax, encode = STREAMS[kind]
    copy = np.dstack([image()] * 3)
    copy[32:56, 32:56] = (255, 255, 0)
    read = decode(screen_copy(encode(copy), syntax, label))
    assert abs(float(np.median(read.pixels[36:52, 36:52])) - 226) <= 3  # 0.299 + 0.587 of 255
    assert WarningCode.COLOUR in read.warnings


NATIVE_COLOURS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "RGB": lambda rgb: rgb,
    "YBR_FULL": ycc,
    "YBR_FULL, RGB by label": ycc,
    "RGB, YBR_FULL by label": lambda rgb: rgb,
}


@pytest.mark.parametrize(
    ("kind", "planar", "planar_by_label", "syntax"),
    spread(NATIVE_COLOURS, (0, 1), (0, 1), (EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN), of=5),
)
def test_uncompressed_grey_copy_is_grey_in_every_order_of_its_samples(
    kind: str, syntax: str, planar: int, planar_by_label: int, decode: Decode
) -> None:
    label = "YBR_FULL" if kind in ("YBR_FULL", "RGB, YBR_FULL by label") else "RGB"
    samples = NATIVE_COLOURS[kind](np.dstack([image()] * 3))
    copy = dataset(samples, SOPClassUID=SECONDARY_CAPTURE, PhotometricInterpretation=label)
    copy.PlanarConfiguration = planar_by_label
    stored = np.moveaxis(samples, -1, 0) if planar else samples
    copy.add_new(0x7FE00010, "OB", np.ascontiguousarray(stored).tobytes())
    assert np.array_equal(decode(written(copy, syntax)).pixels, image())


@pytest.mark.parametrize("halved", [True, False])
def test_uncompressed_ybr_full_422_is_read(halved: bool, decode: Decode) -> None:
    """PS3.3, C.7.6.3.1.2; and where the label outlived a conversion."""
    grey = image()
    copy = dataset(np.dstack([grey] * 3), PhotometricInterpretation="YBR_FULL_422")
    if halved:
        pairs = np.full((128, 80, 4), 128, np.uint8)
        pairs[..., :2] = grey.reshape(128, 80, 2)
        copy.add_new(0x7FE00010, "OB", pairs.tobytes())
    assert np.array_equal(decode(written(copy)).pixels, grey)


@pytest.mark.parametrize("one_scan", [True, False])
def test_channels_of_lossless_jpeg_may_stand_in_scans_of_their_own(
    one_scan: bool, decode: Decode
) -> None:
    grey = image()
    stream = LosslessJpeg(8, 4, one_scan=one_scan).encode(np.dstack([grey] * 3))
    assert np.array_equal(decode(screen_copy(stream, LOSSLESS, "RGB")).pixels, grey)


@pytest.mark.parametrize("kind", spread(STREAMS, of=6))
def test_grey_channels_are_shown_as_the_header_says_of_grey(kind: str, decode: Decode) -> None:
    """A header of one channel over a codestream of three: its inversion and its window hold."""
    syntax, encode = STREAMS[kind]
    dark = image() // 4 + 60
    for pixels, elements in (
        (255 - image(), {"PhotometricInterpretation": "MONOCHROME1"}),
        (dark, {"WindowCenter": 92, "WindowWidth": 64}),
    ):
        labelled = dataset(pixels, SOPClassUID=SECONDARY_CAPTURE, **elements)
        expected = decode(written(labelled)).pixels
        stream = encode(np.dstack([pixels] * 3))
        read = decode(written(fragments(labelled, stream), syntax)).pixels
        assert np.abs(read.astype(int) - expected).mean() < 2.0, elements


def test_eight_stored_bits_of_sixteen_keep_their_colours(decode: Decode) -> None:
    pixels = np.dstack([image(), np.full_like(image(), 128), np.full_like(image(), 128)])
    wide = dataset(pixels.astype(np.uint16), SOPClassUID=SECONDARY_CAPTURE, stored=8)
    wide.PhotometricInterpretation = "YBR_FULL"
    np.testing.assert_array_equal(decode(written(wide)).pixels, image())
