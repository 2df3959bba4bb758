"""What a codestream says is believed: every kind of each, written by encoders of other houses."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import spread
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
import dicom_files
import imagecodecs
from codestreams import EOI, JFIF, JFXX, LosslessJpeg, adobe, byte_planes, colour_jpeg, rle
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    J2K,
    JPEG,
    JPEG_12,
    JPEG_LS,
    LOSSLESS,
    LOSSLESS_SV1,
    NEAR_LOSSLESS,
    RLE,
    SECONDARY_CAPTURE,
    WRITABLE,
    by_dcmtk,
    compressed,
    dataset,
    fragments,
    frame_of,
    written,
)
from pydicom import dcmread
from test_dicom_refusals import image, with_codestream
from test_dicom_sandbox import request
from test_refusals import photograph

from deepcovid_edge.imaging.dicom import decoders
from deepcovid_edge.imaging.dicom.codestreams import read_codestream, with_end
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT, SYNTAXES, Family

Decode = Callable[..., Radiograph]

needs_dcmtk = pytest.mark.skipif(bool(dicom_files.dcmtk()), reason=str(dicom_files.dcmtk()))


def reason(decode: Decode, data: bytes) -> Reason:
    with pytest.raises(NotAssessedError) as caught:
        decode(data)
    return caught.value.reason


# --- JPEG lossless ---------------------------------------------------------------------------


def lossless(stream: bytes, bits: int, pixels: NDArray[Any]) -> NDArray[Any]:
    """What is decoded, in this process: what a sandbox is for is tested elsewhere."""
    facts = {"rows": pixels.shape[0], "columns": pixels.shape[1]}
    found = read_codestream(stream, pixels.itemsize)
    assert found is not None
    return decoders.decode(request(LOSSLESS, bits=bits, **facts), found.data)


@pytest.mark.parametrize(("bits", "predictor"), [*product((8, 12, 16), range(1, 8))])
def test_lossless_jpeg_is_multiplied_by_its_point_transform(bits: int, predictor: int) -> None:
    pixels = image(bits, height=40, width=52)
    for point in range(bits):  # T.81, table B.3: 0 to 15
        stream = LosslessJpeg(bits, predictor, point).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point), point


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 39, 40, 65_535 // 52])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_is_read_across_restart_markers(bits: int, rows: int) -> None:
    pixels = image(bits, height=40, width=52)
    for predictor, point in product(range(1, 8), (0, 3)):
        stream = LosslessJpeg(bits, predictor, point, restart_rows=rows).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point)


NOTHING_MEANT: dict[str, dict[str, Any]] = {
    "DRI of 0": {"interval": 0},
    "DRI behind the last row": {"interval": 40 * 52},
    **{f"Se {se}": {"se": se} for se in (1, 7, 63, 255)},
    **{f"Ah {ah}": {"ah": ah} for ah in (1, 15)},
    "height behind the scan": {"height_behind": True},
    "height behind the scan, restarts": {"height_behind": True, "restart_rows": 4},
    "all at once": {"height_behind": True, "restart_rows": 7, "se": 63, "ah": 1, "point": 2},
}


@pytest.mark.parametrize("kind", NOTHING_MEANT)
def test_parameters_that_mean_nothing_change_nothing(kind: str) -> None:
    pixels = image(12, height=40, width=52)
    writer = LosslessJpeg(12, **NOTHING_MEANT[kind])
    found = lossless(writer.encode(pixels), 12, pixels)
    assert np.array_equal(found, pixels >> writer.point << writer.point)


def test_restart_interval_of_a_part_of_a_row_is_an_error_and_no_image() -> None:
    """T.81, H.1.1: a restart interval of JPEG lossless is a whole number of rows."""
    pixels = image(12, height=40, width=52)
    with pytest.raises(Exception, match="restart"):
        lossless(LosslessJpeg(12, interval=53).encode(pixels), 12, pixels)


@pytest.mark.parametrize("one_scan", [True, False])
def test_channels_of_lossless_jpeg_may_stand_in_scans_of_their_own(
    one_scan: bool, decode: Decode
) -> None:
    grey = image()
    stream = LosslessJpeg(8, 4, one_scan=one_scan).encode(np.dstack([grey] * 3))
    assert np.array_equal(decode(screen_copy(stream, LOSSLESS, "RGB")).pixels, grey)


@pytest.mark.parametrize(("syntax", "predictor"), [(LOSSLESS_SV1, 1), (LOSSLESS, 6)])
def test_file_with_point_transform_and_restarts_is_its_image(
    syntax: str, predictor: int, decode: Decode
) -> None:
    stream = LosslessJpeg(12, predictor, 2, restart_rows=16, se=63).encode(image(12))
    read = decode(with_codestream(stream, syntax))
    assert np.array_equal(read.pixels, image(12) >> 2 << 2)
    assert read.warnings == ()


@needs_dcmtk
@pytest.mark.parametrize("predictor", range(1, 8))
def test_dcmtk_reads_the_same_from_what_is_written_here(predictor: int, tmp_path: Path) -> None:
    stream = LosslessJpeg(12, predictor, 3, restart_rows=8).encode(image(12))
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    before.write_bytes(with_codestream(stream, LOSSLESS))
    subprocess.run(["dcmdjpeg", str(before), str(after)], check=True)
    assert np.array_equal(dcmread(after).pixel_array, image(12) >> 3 << 3)
    assert np.array_equal(lossless(stream, 12, image(12)), image(12) >> 3 << 3)


@needs_dcmtk
@pytest.mark.parametrize(("predictor", "point"), [(1, 1), (4, 3), (7, 5)])
def test_point_transform_that_dcmtk_wrote_is_undone(
    predictor: int, point: int, decode: Decode
) -> None:
    options = ("+sv", str(predictor), "+pt", str(point))
    data = by_dcmtk(written(dataset(image(12), stored=12)), LOSSLESS, *options)
    assert np.array_equal(decode(data).pixels, image(12) >> point << point)


def test_lossy_jpeg_is_read_across_restart_markers(decode: Decode) -> None:
    stream = io.BytesIO()
    Image.fromarray(image()).save(stream, "JPEG", quality=95, restart_marker_rows=2)
    plain = io.BytesIO()
    Image.fromarray(image()).save(plain, "JPEG", quality=95)
    assert np.array_equal(
        decode(with_codestream(stream.getvalue(), JPEG, 8)).pixels,
        decode(with_codestream(plain.getvalue(), JPEG, 8)).pixels,
    )


@pytest.mark.parametrize(("bits", "predictor"), [(8, 1), (12, 4), (16, 7)])
def test_gdcm_reads_the_same_where_imagecodecs_is_missing(
    bits: int, predictor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gdcm", reason="needs python-gdcm")
    monkeypatch.setattr(decoders, "_codec", lambda family: None)
    pixels = image(bits, height=40, width=52)
    for point, rows in product((0, 1, 5), (0, 8)):
        stream = LosslessJpeg(bits, predictor, point, restart_rows=rows, se=63).encode(pixels)
        assert np.array_equal(lossless(stream, bits, pixels), pixels >> point << point)


def test_twelve_bits_of_jpeg_name_the_extra_where_imagecodecs_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No plug-in of pydicom's that is used reads them: whole or not is not to be said."""
    monkeypatch.setattr(decoders, "_codec", lambda family: None)
    stream = compressed(image(12), 12, JPEG_12)
    for codestream in (stream, stream[:-2]):
        with pytest.raises(NotAssessedError, match=r"deepcovid-edge\[dicom\]") as caught:
            decoders.decode(request(JPEG_12), codestream)
        assert caught.value.reason is Reason.SYNTAX


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
    assert reason(decode, screen_copy(encode(picture), syntax, label)) is Reason.COLOUR


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


# --- surplus ---------------------------------------------------------------------------------

SURPLUS = {
    **{f"{size} zeros": bytes(size) for size in (1, 2, 3, 12, 256, 318, 512, 1000, 4096, 70_000)},
    **{f"{size} times FF": b"\xff" * size for size in (2, 512, 4096)},
    "blanks": b" " * 100,
    "something short": bytes(range(100, 200)),
}

SURPLUS_OF_RLE = [kind for kind in SURPLUS if kind != "something short"]


def with_value(value: bytes, bits: int, syntax: str = EXPLICIT) -> bytes:
    """A file of an image whose pixel data are these bytes."""
    longer = dataset(image(bits), stored=bits)
    longer.add_new(0x7FE00010, "OW", value + b"\0" * (len(value) % 2))
    return written(longer, syntax)


@pytest.mark.parametrize(
    ("kind", "bits", "syntax"), spread(SURPLUS, (8, 12), (EXPLICIT, IMPLICIT, DEFLATED), of=6)
)
def test_bytes_behind_uncompressed_pixels_are_cut(
    kind: str, bits: int, syntax: str, decode: Decode
) -> None:
    surplus = SURPLUS[kind]
    data = with_value(image(bits).tobytes() + surplus, bits, syntax)
    assert np.array_equal(decode(data).pixels, image(bits))


@pytest.mark.parametrize(
    "change", [{"Rows": 127}, {"Rows": 100}, {"Columns": 159}, {"Columns": 150}]
)
@pytest.mark.parametrize("bits", [8, 12])
def test_pixels_that_the_header_leaves_out_are_no_padding(
    bits: int, change: dict[str, int], decode: Decode
) -> None:
    """Also where they are all black: rows of another length would lean to one side."""
    pixels = image(bits)
    for black in (False, True):
        pixels[-8 if black else 128 :] = 0
        other = dataset(pixels, stored=bits, **change)
        if black and "Rows" in change:
            continue  # the last rows, all black, are padding by any measure
        assert reason(decode, written(other)) is Reason.LENGTH


@pytest.mark.parametrize(("kind", "bits"), spread(SURPLUS_OF_RLE, (8, 12), of=2))
def test_bytes_behind_the_pixels_of_a_segment_of_rle_are_cut(
    kind: str, bits: int, decode: Decode
) -> None:
    words = image(bits)
    stream = rle(byte_planes(words), SURPLUS[kind])
    assert np.array_equal(decode(with_codestream(stream, RLE, bits)).pixels, words)


@pytest.mark.parametrize("stated", [1, 2, 15])
def test_count_of_segments_that_is_wrong_gives_way_to_their_offsets(
    stated: int, decode: Decode
) -> None:
    stream = rle(byte_planes(image(12)), segments=stated)
    assert np.array_equal(decode(with_codestream(stream, RLE)).pixels, image(12))


RLE_FAULTS: dict[str, tuple[Reason, Callable[[], bytes]]] = {
    "a segment too many": (
        Reason.LENGTH,
        lambda: rle([*byte_planes(image(12)), np.zeros((128, 160), np.uint8)]),
    ),
    "a segment too few": (Reason.LENGTH, lambda: rle(byte_planes(image(12))[:1])),
    "rows too few": (Reason.LENGTH, lambda: rle(byte_planes(image(12)[:120]))),
    "rows too many": (Reason.LENGTH, lambda: rle(byte_planes(image(12, height=136)))),
    "columns too many": (Reason.LENGTH, lambda: rle(byte_planes(image(12, width=161)))),
    "cut in the last segment": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:-900]),
    "cut in the first": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:9000]),
    "cut in its header": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:40]),
    "the first segment short": (
        Reason.DECODE,
        lambda: rle([byte_planes(image(12))[0][:100], byte_planes(image(12))[1]]),
    ),
    "no header": (Reason.DECODE, lambda: bytes(500)),
}


@pytest.mark.parametrize("kind", RLE_FAULTS)
def test_fault_of_rle_gets_the_reason_that_is_true(kind: str, decode: Decode) -> None:
    expected, make = RLE_FAULTS[kind]
    assert reason(decode, with_codestream(make(), RLE)) is expected


# --- ends ------------------------------------------------------------------------------------

ENDED = [
    (syntax, bits)
    for syntax, bits in (
        *((JPEG, 8), (JPEG_12, 12), (LOSSLESS, 12), (LOSSLESS_SV1, 16), (JPEG_LS, 12)),
        *((NEAR_LOSSLESS, 12), (J2K, 12), (HTJ2K, 12)),
    )
    if syntax in WRITABLE
]
BEHIND = {
    **{f"{size} zeros": bytes(size) for size in (1, 2, 4095, 5000, 100_000)},
    **{f"{size} times FF": b"\xff" * size for size in (1, 2, 5000, 100_000)},
    "both": bytes(4000) + b"\xff" * 4000,
    "something else": b"of a vendor, and not short: " * 300,
    "another codestream": b"\xff\xd8\xff\xd8",
}


PADDINGS = {
    "nothing": b"",
    "2 zeros": bytes(2),
    "5000 zeros": bytes(5000),
    "5000 times FF": b"\xff" * 5000,
}


def same(decode: Decode, data: bytes, bits: int, syntax: str) -> bool:
    whole = decode(written(dataset(image(bits), stored=bits), syntax))
    return np.array_equal(decode(data).pixels, whole.pixels)


@pytest.mark.parametrize(("ended", "kind"), spread(ENDED, BEHIND, of=6))
def test_what_stands_behind_a_whole_codestream_does_not_matter(
    ended: tuple[str, int], kind: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    assert same(decode, with_codestream(stream + BEHIND[kind], syntax, bits), bits, syntax)


CONTAINERS: dict[str, Callable[[bytes, int], bytes]] = {
    "no delimiter": lambda data, _: data[:-8],
    "half a delimiter": lambda data, _: data[:-5],
    "zeros instead": lambda data, _: data[:-8] + bytes(10_000),
    "FF instead": lambda data, _: data[:-8] + b"\xff" * 10_000,
    "an empty item more": lambda data, _: data[:-8] + b"\xfe\xff\0\xe0\0\0\0\0" + data[-8:],
    "an item longer than the file": lambda data, size: longer_item(data, size, 10_000),
    "no table": lambda data, _: data.replace(b"\xfe\xff\0\xe0\4\0\0\0\0\0\0\0", b"", 1),
}


def longer_item(data: bytes, size: int, more: int) -> bytes:
    even = size + size % 2
    at = len(data) - 8 - even - 4
    assert data[at : at + 4] == even.to_bytes(4, "little")
    return data[:at] + (even + more).to_bytes(4, "little") + data[at + 4 : -8]


@pytest.mark.parametrize(("ended", "kind"), spread([*ENDED, (RLE, 12), (RLE, 8)], CONTAINERS, of=6))
def test_whole_codestream_in_a_broken_container_is_read(
    ended: tuple[str, int], kind: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    data = CONTAINERS[kind](with_codestream(stream, syntax, bits), len(stream))
    assert same(decode, data, bits, syntax)


@pytest.mark.parametrize(("ended", "padding"), spread(ENDED, PADDINGS, of=4))
def test_codestream_that_lacks_its_end_and_nothing_else_is_read(
    ended: tuple[str, int], padding: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    assert stream.endswith(EOI)
    assert with_end(stream) == stream
    assert same(
        decode, with_codestream(stream[:-2] + PADDINGS[padding], syntax, bits), bits, syntax
    )


@pytest.mark.parametrize(
    ("ended", "padding", "share"),
    spread([*ENDED, (RLE, 12)], PADDINGS, (0.01, 0.5, 0.9, 0.98), of=8),
)
def test_codestream_that_is_cut_off_is_said_to_be(
    ended: tuple[str, int], padding: str, share: float, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    if syntax == RLE and PADDINGS[padding]:
        pytest.skip("zeros are runs of RLE too")
    cut = stream[: round(share * len(stream))] + PADDINGS[padding]
    assert reason(decode, with_codestream(cut, syntax, bits)) is Reason.TRUNCATED


# --- labels ----------------------------------------------------------------------------------

LABELLED = (RLE, JPEG, JPEG_12, LOSSLESS, JPEG_LS, J2K, HTJ2K, EXPLICIT)
ALL_KINDS = [*ENDED, (RLE, 12), (EXPLICIT, 12)]


@pytest.mark.parametrize(("label", "stored"), spread(LABELLED, ALL_KINDS, of=6))
def test_pixels_are_read_as_what_they_are_under_every_label(
    label: str, stored: tuple[str, int], decode: Decode
) -> None:
    syntax, bits = stored
    whole = written(dataset(image(bits), stored=bits), syntax)
    read = decode(relabelled(whole, syntax, label))
    assert np.array_equal(read.pixels, decode(whole).pixels)
    assert read.dicom is not None
    families = [SYNTAXES[uid].family for uid in (read.dicom.transfer_syntax_uid, syntax)]
    assert families[0] is families[1]


def relabelled(data: bytes, syntax: str, label: str) -> bytes:
    """The file with another transfer syntax in its file meta information."""
    before, after = (uid.encode() + b"\0" * (len(uid) % 2) for uid in (syntax, label))
    element = b"\x02\0\x10\0UI"
    old = element + len(before).to_bytes(2, "little") + before
    assert old in data
    return data.replace(old, element + len(after).to_bytes(2, "little") + after, 1)


@pytest.mark.parametrize(("syntax", "bits"), [*ENDED, (RLE, 12)])
def test_codestream_of_a_stated_length_is_read(syntax: str, bits: int, decode: Decode) -> None:
    stream = compressed(image(bits), bits, syntax)
    bare = with_value(stream, bits)
    items = fragments(dataset(image(bits)), stream).PixelData
    for data in (bare, with_value(items, bits)):
        assert same(decode, data, bits, syntax)
        assert same(decode, relabelled(data, EXPLICIT, syntax), bits, syntax)


def test_uncompressed_pixels_in_a_fragment_are_read(decode: Decode) -> None:
    """PS3.5, A.4.11, and files that say something else of themselves."""
    for label in (EXPLICIT, RLE, JPEG_LS):
        assert np.array_equal(decode(with_codestream(image(12).tobytes(), label)).pixels, image(12))


def test_uncompressed_pixels_of_an_undefined_length_are_read(decode: Decode) -> None:
    data = written(dataset(image(12), stored=12))
    value = image(12).tobytes()
    head = data[: -len(value) - 4]
    assert data == head + len(value).to_bytes(4, "little") + value
    for end in (b"", b"\xfe\xff\xdd\xe0\0\0\0\0"):
        assert np.array_equal(decode(head + b"\xff" * 4 + value + end).pixels, image(12))
    assert reason(decode, head + b"\xff" * 4 + value[:-2]) is Reason.TRUNCATED


@pytest.mark.parametrize("syntax", [J2K, *([HTJ2K] if HTJ2K in WRITABLE else [])])
def test_jpeg_2000_that_was_cut_and_closed_again_is_cut_off(syntax: str, decode: Decode) -> None:
    stream = compressed(image(12), 12, syntax)[:-900] + EOI
    assert reason(decode, with_codestream(stream, syntax)) is Reason.TRUNCATED


@pytest.mark.parametrize("tile", [(64, 64), (128, 160), (50, 70)])
def test_all_tiles_of_jpeg_2000_are_looked_for(tile: tuple[int, int], decode: Decode) -> None:
    file = io.BytesIO()
    Image.fromarray(image()).save(file, "JPEG2000", no_jp2=True, tile_size=tile[::-1])
    stream = file.getvalue()
    for whole in (stream, stream[:-2], stream[:-2] + bytes(5000)):
        assert np.array_equal(decode(with_codestream(whole, J2K, 8)).pixels, image())
    last = stream.rindex(b"\xff\x90\0\x0a")
    if last > stream.index(b"\xff\x90\0\x0a"):
        assert reason(decode, with_codestream(stream[:last] + EOI, J2K, 8)) is Reason.TRUNCATED


def test_what_is_no_codestream_could_not_be_decoded(decode: Decode) -> None:
    assert reason(decode, with_codestream(b"no codestream at all" * 99, J2K)) is Reason.DECODE
