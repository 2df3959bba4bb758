"""What objects copy from an image: patient and study byte for byte, whatever its header is like."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
pytest.importorskip("highdicom", reason="needs extra cart")
from cart_results import FACTS, POSITIVE, errors_of, make_image, overlay_png, prediction
from dicom_files import EXPLICIT, dataset, written
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from deepcovid_edge.cart.objects.capture import build_capture
from deepcovid_edge.cart.objects.encoding import LONGEST
from deepcovid_edge.cart.objects.report import build_report
from deepcovid_edge.cart.objects.source import _KINDS as KINDS
from deepcovid_edge.cart.objects.source import _NEVER_EMPTY as NEVER_EMPTY
from deepcovid_edge.cart.objects.source import SourceImage
from deepcovid_edge.errors import DataError
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.reading import decode_radiograph

CHARSET, NAME, PATIENT_ID, BIRTH, SEX = 0x00080005, 0x00100010, 0x00100020, 0x00100030, 0x00100040
ACCESSION, STUDY_DATE, STUDY_ID, AGE, COMMENTS = (
    *(0x00080050, 0x00080020, 0x00200010),
    *(0x00101010, 0x00104000),
)
STUDY_UID = 0x0020000D
TRIAL = {0x00120010, 0x00120020, 0x00120040, 0x00120042}
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
NAMES: dict[str, tuple[bytes, bytes]] = {
    "ascii": (b"ISO_IR 100", b"Rontgen^Anna"),
    "latin": (b"ISO_IR 100", "Röntgen^Añña".encode("latin-1")),
    "japanese": (
        b"\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "japanese katakana": (
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    "chinese": (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "korean": (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "persian": (b"ISO_IR 192", "محمدی^زهرا".encode()),
    "arabic": (b"ISO_IR 127", "قباني^لنزار".encode("iso8859-6")),
    "wrong set": (b"ISO_IR 192", b"R\xf6ntgen^Anna\xff\xfe"),
    "set of no name": (b"KLINGON 7", "王^小东".encode("gb18030")),
    "no set": (b"", "Röntgen^Anna".encode()),
    "only padding": (b"ISO_IR 100", b"      "),
    "control letters": (b"ISO_IR 100", b"A\r\n\x07B^\x00\x1bC\x7f"),
}


def objects_of(path: Path) -> dict[str, Any]:
    """The objects of an image as pydicom reads them, their values as bytes."""
    source, result = SourceImage.read(path), prediction(POSITIVE)
    made = {
        "report": build_report(source, result, FACTS),
        "capture": build_capture(source, result, overlay_png(), FACTS),
    }
    read = {}
    for name, data in made.items():
        (path.parent / name).write_bytes(data)
        read[name] = dcmread(path.parent / name, stop_before_pixels=True)
    return read


def value_of(read: Dataset, tag: int) -> bytes:
    return bytes(read.get_item(tag).value or b"")


def padded(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


@pytest.mark.parametrize("script", NAMES)
def test_names_in_any_character_set_keep_their_bytes(script: str, tmp_path: Path) -> None:
    charset, name = (padded(value) for value in NAMES[script])
    raw = {CHARSET: ("CS", charset), NAME: ("PN", name)}
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED):
        source = SourceImage.read(make_image(tmp_path, syntax, raw))
        assert source.copied[NAME] == b"\x10\0\x10\0PN" + bytes([len(name), 0]) + name
        assert source.copied[CHARSET] == b"\x08\0\x05\0CS" + bytes([len(charset), 0]) + charset
    data = build_report(source, prediction(None), FACTS)
    assert source.copied[NAME] in data
    assert source.copied[CHARSET] in data
    (tmp_path / "report").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom reads what it finds odd
        elements = dcmread(tmp_path / "report", specific_tags=[Tag(NAME)])
    assert value_of(elements, NAME) == name


def test_a_name_is_read_as_it_is_written(tmp_path: Path) -> None:
    charset, name = NAMES["japanese"]
    path = make_image(tmp_path, raw={CHARSET: ("CS", padded(charset)), NAME: ("PN", padded(name))})
    for read in objects_of(path).values():
        assert read.PatientName == JAPANESE


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (BIRTH, "DA", b"1957.04.02"),
        (BIRTH, "DA", b"unknown "),
        (SEX, "CS", b"female"),
        (PATIENT_ID, "LO", b"a" * 90),
        (PATIENT_ID, "LO", b"17\\18 "),
        (STUDY_DATE, "DA", b"20201340"),
        (ACCESSION, "SH", b"\xff\xfe\xfd\xfc" * 8),
        (STUDY_ID, "SH", b""),
        (NAME, "PN", b""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_malformed_values_keep_their_bytes(
    tag: int, kind: str, value: bytes, tmp_path: Path
) -> None:
    for read in objects_of(make_image(tmp_path, raw={tag: (kind, value)})).values():
        assert value_of(read, tag) == value


def test_what_the_image_lacks_is_there_and_empty(tmp_path: Path) -> None:
    bare: dict[str, Any] = dict.fromkeys(
        ["PatientName", "PatientID", "PatientBirthDate", "StudyDate", "PatientAge", "Modality"]
    )
    bare |= dict.fromkeys(["PatientOrientation", "ImageLaterality", "SeriesInstanceUID"])
    for read in objects_of(make_image(tmp_path, **bare)).values():
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
            assert not read[keyword].value, keyword
        assert read.StudyInstanceUID == "1.2.3"
        assert "PatientAge" not in read


def test_an_image_without_a_study_gets_one_that_follows_from_its_uid(tmp_path: Path) -> None:
    source = SourceImage.read(make_image(tmp_path, StudyInstanceUID=None))
    assert source.study_uid.startswith("2.25.")
    assert source.study_uid == SourceImage.read(tmp_path / "image.dcm").study_uid
    (tmp_path / "report").write_bytes(build_report(source, prediction(POSITIVE), FACTS))
    assert dcmread(tmp_path / "report").StudyInstanceUID == source.study_uid


@pytest.mark.parametrize("value", [b"", b"\0\0", b"  ", b"\\1.2.3\0"])
def test_an_empty_study_uid_is_none(value: bytes, tmp_path: Path) -> None:
    path = make_image(tmp_path, raw={STUDY_UID: ("UI", value)})
    source = SourceImage.read(path)
    assert source.study_uid.startswith("2.25.")
    for read in objects_of(path).values():
        assert read.StudyInstanceUID == source.study_uid


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not there")
def test_what_may_not_be_empty_is_left_out_where_it_is(tmp_path: Path) -> None:
    """Of type 1C and sequences, whose conditions this image does not meet."""
    empty = {tag: (KINDS[tag], b"") for tag in NEVER_EMPTY - TRIAL - {0x00102201, 0x00102202}}
    assert len(empty) > 15
    path = make_image(tmp_path, raw=empty)
    read = objects_of(path)
    for name in read:
        assert errors_of(tmp_path / name) == []
        assert not any(tag in read[name] for tag in empty if tag != STUDY_UID)


@pytest.mark.parametrize("uid", ["1.2.840.0001.5", "../../etc/passwd", "1" * 70, "a b"])
@pytest.mark.filterwarnings("ignore")
def test_uids_that_are_none_are_referred_to_as_they_stand(uid: str, tmp_path: Path) -> None:
    path = make_image(tmp_path)
    image = dataset(np.zeros((8, 8), np.uint8))
    image.SOPInstanceUID = uid
    path.write_bytes(written(image))
    read = objects_of(path)
    assert read["capture"].SourceImageSequence[0].ReferencedSOPInstanceUID == uid
    series = read["report"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uid


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_orders_of_the_image_are_those_of_the_report(
    undefined: bool, syntax: str, tmp_path: Path
) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "RPID1", "99X", "Thorax"
    request = Dataset()
    request.StudyInstanceUID, request.AccessionNumber = "1.2.3", "A17"
    request.RequestedProcedureID, request.RequestedProcedureDescription = "R1", "Chest"
    request.RequestedProcedureCodeSequence = [code]
    request.ScheduledProcedureStepID = "S1"
    request.add_new(0x00091001, "LO", "private")
    issuer = Dataset()
    issuer.UniversalEntityID, issuer.UniversalEntityIDType = "1.2.9", "ISO"
    image = dataset(np.zeros((8, 8), np.uint8))
    image.IssuerOfPatientID = "CLINIC"
    image.IssuerOfPatientIDQualifiersSequence = [issuer]
    image.PregnancyStatus = 4
    image.RequestAttributesSequence = Sequence([request])
    image["RequestAttributesSequence"].is_undefined_length = undefined
    path = tmp_path / "image.dcm"
    path.write_bytes(written(image, syntax))
    read = objects_of(path)
    del request[0x00091001]
    assert list(read["capture"].RequestAttributesSequence) == [request]
    del request.ScheduledProcedureStepID
    request.PlacerOrderNumberImagingServiceRequest = ""
    request.FillerOrderNumberImagingServiceRequest = ""
    request.ReferencedStudySequence = []
    assert list(read["report"].ReferencedRequestSequence) == [request]
    assert "RequestAttributesSequence" not in read["report"]
    for one in read.values():
        assert (one.IssuerOfPatientID, one.PregnancyStatus) == ("CLINIC", 4)
        assert list(one.IssuerOfPatientIDQualifiersSequence) == [issuer]


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (AGE, "AS", b"62"),
        (0x00101030, "DS", b"heavy "),
        (COMMENTS, "LT", b"x" * (LONGEST + 2)),
        (0x00080201, "SH", b"+25:00"),
    ],
)
def test_what_may_be_missing_is_left_out_where_it_is_malformed(
    tag: int, kind: str, value: bytes, tmp_path: Path
) -> None:
    assert tag not in SourceImage.read(make_image(tmp_path, IMPLICIT, {tag: (kind, value)})).copied


def test_private_elements_stay_behind(tmp_path: Path) -> None:
    big = {0x00091001: ("UT", b"secret" * 200_000)}
    source = SourceImage.read(make_image(tmp_path, raw=big))
    assert not any(b"secret" in value for value in source.copied.values())
    assert b"secret" not in build_report(source, prediction(POSITIVE), FACTS)


@pytest.mark.parametrize(
    "element",
    [
        b"\x09\0\x01\x10??\x04\0abcd",
        b"\x09\0\x01\x10\0\0\x04\0abcd",
        b"\x09\0\x01\x10OX\0\0\x04\0\0\0abcd",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
    ],
    ids=["no representation", "zeros", "one to come", "end of no sequence"],
)
def test_an_odd_element_before_the_patient_costs_neither_patient_nor_study(
    element: bytes, tmp_path: Path
) -> None:
    path = make_image(tmp_path, raw={NAME: ("PN", b"Test^Case ")})
    whole, plain = path.read_bytes(), SourceImage.read(path)
    at = whole.index(b"\x10\0\x10\0PN")
    path.write_bytes(whole[:at] + element + whole[at:])
    assert NAME in plain.copied
    assert SourceImage.read(path) == plain


def test_a_header_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    path = make_image(tmp_path)
    whole = path.read_bytes()
    counts = []
    for end in range(140, whole.index(b"\xe0\x7f\x10\x00"), 7):
        path.write_bytes(whole[:end])
        with contextlib.suppress(DataError):  # before the UID
            counts.append(len(SourceImage.read(path).copied))
    assert build_report(SourceImage.read(path), prediction(None), FACTS)
    assert counts == sorted(counts)
    assert len(set(counts)) > 4


def test_sequences_that_are_nested_without_end_are_left_out(tmp_path: Path) -> None:
    inner = Dataset()
    for _ in range(40):
        outer = Dataset()
        outer.ReferencedStudySequence = [inner]
        inner = outer
    source = SourceImage.read(make_image(tmp_path, RequestAttributesSequence=[inner]))
    assert len(source.copied.get(0x00400275, b"")) < 200
    assert build_report(source, prediction(POSITIVE), FACTS)


@pytest.mark.parametrize("content", [b"", b"DICM" * 50, b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_other_files_are_said_to_be_no_images(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DataError, match="SOP Instance UID"):
        SourceImage.read(tmp_path / "other")
    with pytest.raises(DataError, match="No such file"):
        SourceImage.read(tmp_path / "absent")


@pytest.mark.parametrize("offset", ["+0900", "-0330", None])
def test_times_stand_in_the_images_offset(offset: str | None, tmp_path: Path) -> None:
    stated: dict[str, Any] = {} if offset is None else {"TimezoneOffsetFromUTC": offset}
    expected = {"+0900": "20260304130607", "-0330": "20260304003607", None: "20260304050607"}
    for read in objects_of(make_image(tmp_path, **stated)).values():
        assert read.TimezoneOffsetFromUTC == (offset or "+0100")
        for kind in ("InstanceCreation", "Content", "Series"):
            at = str(read[f"{kind}Date"].value) + str(read[f"{kind}Time"].value)
            assert at == expected[offset] + ".000089"


ORIENTATIONS = [("L", "F"), ("L", "H"), ("R", "H"), ("F", "L"), ("F", "R"), ("H", "L"), ("R", "F")]


@pytest.mark.parametrize("spacing", [None, ["0.1", "0.2"]])
@pytest.mark.parametrize("orientation", [*ORIENTATIONS, ("H", "R")])
def test_a_box_on_the_upright_image_is_outlined_where_it_lies_in_the_file(
    orientation: tuple[str, str], spacing: list[str] | None, tmp_path: Path
) -> None:
    pixels = np.tile(np.arange(120, 200, dtype=np.uint8), (160, 2))[:, :140]
    pixels[30:50, 90:120] = 255  # rows 30 to 49, columns 90 to 119 of the file
    path = tmp_path / "image.dcm"
    image = dataset(pixels, PatientOrientation=list(orientation))
    if spacing:
        image.ImagerPixelSpacing = spacing
    path.write_bytes(written(image))
    shown = decode_radiograph(FileBytes(path, path.read_bytes(), "0" * 64))
    rows, columns = np.nonzero(shown.pixels == shown.pixels.max())
    down, across = (a / b for a, b in zip(shown.box_shape, shown.pixels.shape, strict=True))
    left, right = round(columns.min() * across), round((columns.max() + 1) * across)
    top, bottom = round(rows.min() * down), round((rows.max() + 1) * down)
    outline = SourceImage.read(path).outline(left, top, right - left, bottom - top)
    found = np.array(outline)
    assert outline[0] == outline[-1]
    assert found.min(axis=0) == pytest.approx([90, 30], abs=1 if spacing else 0)
    assert found.max(axis=0) == pytest.approx([120, 50], abs=1 if spacing else 0)
