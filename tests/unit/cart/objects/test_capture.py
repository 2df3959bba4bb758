"""The Secondary Capture of a result: its picture is the overlay, with a bar of words below."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
pytest.importorskip("highdicom", reason="needs extra cart")
from cart_results import (
    FACTS,
    POSITIVE,
    REAL_IMAGES,
    SCORES,
    errors_of,
    make_image,
    needs_dciodvfy,
    needs_dcmtk,
    needs_images,
    overlay,
    overlay_png,
    prediction,
)
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGLSNearLossless

from deepcovid_edge.cart.objects.capture import build_capture, burned, burned_lines, card
from deepcovid_edge.cart.objects.facts import object_uid
from deepcovid_edge.cart.objects.source import SourceImage

WITH_A_LOSSLESS_MODE = (JPEGLSNearLossless, JPEG2000, "1.2.840.10008.1.2.4.203")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceImage:
    return SourceImage.read(make_image(tmp_path_factory.mktemp("image")))


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


def expected(score: float | None = POSITIVE) -> NDArray[np.uint8]:
    return burned(overlay(), burned_lines(prediction(score), FACTS.made))


def test_the_picture_is_the_overlay_above_a_bar(source: SourceImage) -> None:
    made = read(build_capture(source, prediction(POSITIVE), overlay_png(), FACTS))
    pixels = np.frombuffer(made.PixelData, np.uint8)[: made.Rows * made.Columns * 3]
    pixels = pixels.reshape(made.Rows, made.Columns, 3)
    rows = overlay().shape[0]
    assert np.array_equal(pixels[:rows], overlay())
    bar = pixels[rows:]
    assert 60 <= len(bar) <= 200
    assert bar.max() == 255
    assert np.median(bar) == 0
    assert np.array_equal(pixels, expected())


@needs_dcmtk
def test_dcmtk_shows_the_same_picture(source: SourceImage, tmp_path: Path) -> None:
    given, shown = (tmp_path / name for name in ("sc.dcm", "sc.ppm"))
    given.write_bytes(build_capture(source, prediction(POSITIVE), overlay_png(), FACTS))
    subprocess.run(["dcm2pnm", "+op", given, shown], check=True, capture_output=True)
    with Image.open(shown) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), expected())


def test_the_capture_says_what_it_is_and_of_which_image(source: SourceImage) -> None:
    made = read(build_capture(source, prediction(POSITIVE), overlay_png(), FACTS))
    uid = object_uid(source.sop_uid, prediction(POSITIVE), FACTS, "sc", overlay_png())
    assert made.SOPInstanceUID == uid
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert (made.StudyInstanceUID, made.SeriesNumber, made.Modality) == ("1.2.3", 9002, "OT")
    assert list(made.ImageType) == ["DERIVED", "SECONDARY"]
    assert (made.BurnedInAnnotation, made.BodyPartExamined) == ("YES", "CHEST")
    assert made.SeriesDescription == "AI HEAT MAP - RESEARCH USE ONLY"
    image = made.SourceImageSequence[0]
    assert image.ReferencedSOPInstanceUID == source.sop_uid
    assert image.ReferencedSOPClassUID == source.sop_class
    assert made.ImageComments == "RESEARCH USE ONLY - NOT A DIAGNOSIS"
    assert (made.DateOfSecondaryCapture, made.LossyImageCompression) == ("20260304", "00")


def test_the_bar_says_verdict_model_and_time() -> None:
    lines = burned_lines(prediction(POSITIVE), FACTS.made)
    assert lines == [
        "RESEARCH USE ONLY - NOT A DIAGNOSIS",
        "FLAG FOR REVIEW (positive) | model squeezenet1_1, int8-cpu | 2026-03-04 05:06:07+01:00",
    ]
    assert burned_lines(prediction(None), FACTS.made)[1].startswith("NOT ASSESSED | model")


def test_an_image_once_lossy_stays_so(tmp_path: Path) -> None:
    path = make_image(
        tmp_path,
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    )
    made = read(build_capture(SourceImage.read(path), prediction(POSITIVE), overlay_png(), FACTS))
    assert (made.LossyImageCompression, made.LossyImageCompressionRatio) == ("01", 12.5)
    assert made.LossyImageCompressionMethod == "ISO_10918_1"


@pytest.mark.parametrize(
    ("syntax", "stated", "expected"),
    [
        (JPEGBaseline8Bit, "", "01"),
        (JPEGBaseline8Bit, "00", "01"),
        *((syntax, "", "01") for syntax in WITH_A_LOSSLESS_MODE),
        *((syntax, "01", "01") for syntax in WITH_A_LOSSLESS_MODE),
        *((syntax, "00", "00") for syntax in WITH_A_LOSSLESS_MODE),
    ],
)
def test_an_image_in_a_lossy_syntax_is_lossy_unless_it_may_rightly_say_that_it_is_not(
    tmp_path: Path, syntax: str, stated: str, expected: str
) -> None:
    image = dcmread(make_image(tmp_path))
    if stated:
        image.LossyImageCompression = stated
    image.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = UID(syntax)
    path = tmp_path / "jpeg.dcm"
    image.save_as(path)
    source = SourceImage.read(path)
    made = read(build_capture(source, prediction(POSITIVE), None, FACTS))
    assert (made.LossyImageCompression, source.is_lossy) == (expected, expected == "01")


def test_words_never_leave_the_bar() -> None:
    for width in (80, 300, 1404):
        picture = np.full((10, width, 3), 7, np.uint8)
        made = burned(picture, ["x" * 400, "a word and " * 40, ""])
        assert made.shape[1] == width
        assert made[10:, -8:].max() == 0
        assert np.array_equal(made[:10], picture)


def test_a_card_of_words_stands_where_there_is_no_picture(source: SourceImage) -> None:
    refused = read(build_capture(source, prediction(None), None, FACTS))
    assert refused.SeriesDescription == "AI: NOT ASSESSED"
    assert (refused.Columns, "BodyPartExamined" in refused) == (1024, False)
    without_map = read(build_capture(source, prediction(POSITIVE), None, FACTS))
    assert without_map.SeriesDescription == "AI HEAT MAP - RESEARCH USE ONLY"
    assert without_map.Rows < 400
    assert card(["one"]).shape[0] < card(["one", "two"]).shape[0]


def test_equal_facts_make_equal_bytes(source: SourceImage) -> None:
    first, second = (
        build_capture(source, prediction(POSITIVE), overlay_png(), FACTS) for _ in range(2)
    )
    assert first == second
    later = replace(FACTS, made=datetime.fromisoformat("2026-03-04T05:06:08+01:00"))
    assert build_capture(source, prediction(POSITIVE), overlay_png(), later) != first


@needs_dciodvfy
@pytest.mark.parametrize("with_map", [True, False])
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_dciodvfy_finds_no_error(
    score: float | None, with_map: bool, source: SourceImage, tmp_path: Path
) -> None:
    png = overlay_png() if with_map else None
    data = build_capture(source, prediction(score), png, FACTS)
    (tmp_path / "capture.dcm").write_bytes(data)
    assert errors_of(tmp_path / "capture.dcm") == []


@needs_images
@needs_dciodvfy
@pytest.mark.parametrize("path", REAL_IMAGES, ids=lambda path: path.stem)
def test_dciodvfy_finds_no_error_with_real_images(path: Path, tmp_path: Path) -> None:
    source = SourceImage.read(path)
    for score in SCORES.values():
        data = build_capture(source, prediction(score), overlay_png(), FACTS)
        (tmp_path / "capture.dcm").write_bytes(data)
        assert errors_of(tmp_path / "capture.dcm") == []
