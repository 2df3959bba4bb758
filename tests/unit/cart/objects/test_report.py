"""The structured report of a result, read again by highdicom, pydicom, dciodvfy and dsrdump."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
hd = pytest.importorskip("highdicom", reason="needs extra cart")
from cart_results import (
    FACTS,
    NEGATIVE,
    NOT_ASSESSED,
    POSITIVE,
    REAL_IMAGES,
    REGIONS,
    SCORES,
    errors_of,
    make_image,
    needs_dciodvfy,
    needs_dcmtk,
    needs_images,
    prediction,
)
from pydicom import dcmread
from pydicom.dataset import Dataset

from deepcovid_edge.cart.objects.facts import Facts, not_assessed_text, object_uid
from deepcovid_edge.cart.objects.report import ReportClass, build_report
from deepcovid_edge.cart.objects.source import SECONDARY_CAPTURE, SourceImage
from deepcovid_edge.cart.objects.uids import device_uid
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT
from deepcovid_edge.reasons import Reason, WarningCode

CLASSES: list[ReportClass] = ["comprehensive", "comprehensive3d"]
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.3"
PRIVATE, RETIRED = "1.3.6.1.4.1.99999.1.2", "1.2.840.10008.5.1.4.1.1.6"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceImage:
    return SourceImage.read(make_image(tmp_path_factory.mktemp("image")))


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


def items(node: Dataset) -> Iterator[Dataset]:
    """All content items below a node."""
    for item in node.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(node: Dataset, kind: str, name: str) -> list[Any]:
    """Values of the content items of a kind and name."""
    value: Any = {
        "TEXT": lambda item: item.TextValue,
        "CODE": lambda item: item.ConceptCodeSequence[0].CodeValue,
        "NUM": lambda item: float(item.MeasuredValueSequence[0].NumericValue),
        "UIDREF": lambda item: item.UID,
        "SCOORD": lambda item: list(item.GraphicData),
    }[kind]
    return [
        value(item)
        for item in items(node)
        if item.ValueType == kind and item.ConceptNameCodeSequence[0].CodeMeaning == name
    ]


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_the_report_says_what_the_record_says(score: float | None, source: SourceImage) -> None:
    record = prediction(score)
    report = read(build_report(source, record, FACTS))
    assert report.SOPInstanceUID == object_uid(source.sop_uid, record, FACTS, "sr")
    assert (report.StudyInstanceUID, report.SeriesNumber, report.Modality) == ("1.2.3", 9001, "SR")
    flags = (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag)
    assert flags == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert named(report, "TEXT", "Algorithm Name") == ["squeezenet1_1"]
    assert named(report, "TEXT", "Algorithm Version") == [
        f"{FACTS.version}+sha256:{record.run.model_sha256}"
    ]
    assert named(report, "TEXT", "Algorithm Parameters") == [
        f"model sha256: {'ab' * 32}",
        "variant: int8-cpu",
        "backend: onnxruntime-cpu",
        "positive class: covid",
        "limits: low 0.02 high 0.05",
        f"site file: North clinic, sha256 {'cd' * 32}",
        f"software: deepcovid-edge {FACTS.version}",
        f"image sha256: {'11' * 32}",
    ]
    assert named(report, "UIDREF", "Device Observer UID") == [device_uid("CART-0001")]
    assert not named(report, "NUM", "Certainty of Finding")
    texts = named(report, "TEXT", "Comment")
    assert f"Warning W_AP: {WarningCode.AP.sentence}" in texts
    assert any("RESEARCH USE ONLY - NOT A DIAGNOSIS" in text for text in texts)


@pytest.mark.parametrize(
    ("decision", "presence", "finding", "said"),
    [
        ("positive", ["52101004"], ["840539006"], "FLAG FOR REVIEW (positive)"),
        ("indeterminate", ["82334004"], ["840539006"], "TOO CLOSE TO CALL (indeterminate)"),
        ("negative", [], [], "NO FLAG (negative)"),
    ],
)
def test_presence_is_stated_by_decision(
    decision: str, presence: list[str], finding: list[str], said: str, source: SourceImage
) -> None:
    report = read(build_report(source, prediction(SCORES[decision]), FACTS))
    assert named(report, "CODE", "Presence") == presence
    assert named(report, "CODE", "Finding") == finding
    texts = named(report, "TEXT", "Comment")
    score = f"{SCORES[decision]:.6f}".rstrip("0")
    assert texts[:2] == [
        said,
        f"model score {score}, limits low 0.02 high 0.05, not a probability of disease",
    ]
    assert report.SeriesDescription == "AI RESULT - RESEARCH USE ONLY"


def test_a_refusal_has_a_reason_and_neither_number_nor_presence(source: SourceImage) -> None:
    record = prediction(NOT_ASSESSED, regions=REGIONS)
    report = read(build_report(source, record, FACTS))
    kinds = {item.ValueType for item in items(report)}
    assert not kinds & {"NUM", "SCOORD"}
    assert not named(report, "CODE", "Presence")
    assert not named(report, "CODE", "Finding")
    assert named(report, "CODE", "CAD Processing and Findings Summary") == ["111245"]
    first = named(report, "TEXT", "Comment")[0]
    assert first == f"NOT ASSESSED: E_VIEW: {Reason.VIEW.sentence}"
    assert report.SeriesDescription == "AI: NOT ASSESSED"


def test_each_reason_has_its_sentence() -> None:
    for reason in Reason:
        text = not_assessed_text(prediction(None, reason=reason.code))
        assert text == f"NOT ASSESSED: {reason.code}: {reason.sentence}"
    own = prediction(None, reason="E_LATER", message="A later version's reason.")
    assert not_assessed_text(own) == "NOT ASSESSED: E_LATER: A later version's reason."


def test_a_single_threshold_and_no_site_are_stated_as_such(source: SourceImage) -> None:
    record = prediction(POSITIVE)
    run = replace(record.run, indeterminate_range=None, site=None)
    report = read(build_report(source, replace(record, run=run), FACTS))
    assert "threshold 0.03, not a" in named(report, "TEXT", "Comment")[1]
    parameters = named(report, "TEXT", "Algorithm Parameters")
    assert {"limits: threshold 0.03", "site file: none"} <= set(parameters)


def test_regions_are_outlined_on_the_image(source: SourceImage) -> None:
    report = read(build_report(source, prediction(POSITIVE), FACTS))
    outlines = named(report, "SCOORD", "Image Region")
    assert outlines == [
        [10, 20, 40, 20, 40, 60, 10, 60, 10, 20],
        [60, 20, 85, 20, 85, 65, 60, 65, 60, 20],
    ]
    regions = [item for item in items(report) if item.ValueType == "SCOORD"]
    for region in regions:
        image = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert image.ReferencedSOPInstanceUID == source.sop_uid
        assert image.ReferencedSOPClassUID == source.sop_class
        assert "ReferencedFrameNumber" not in image
    texts = [text for text in named(report, "TEXT", "Comment") if text.startswith("Region")]
    assert "Peak 0.5. Hiding it crosses the threshold: yes." in texts[0]
    assert "Peak 0.25. Hiding it crosses the threshold: not known." in texts[1]


def test_regions_of_an_image_with_frames_name_the_frame(tmp_path: Path) -> None:
    path = make_image(tmp_path, SOPClassUID=MULTI_FRAME, NumberOfFrames="1")
    report = read(build_report(SourceImage.read(path), prediction(POSITIVE), FACTS))
    for region in (item for item in items(report) if item.ValueType == "SCOORD"):
        image = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert image.ReferencedFrameNumber == 1


@pytest.mark.parametrize("sop_class", [CR, DX, SECONDARY_CAPTURE])
def test_regions_of_a_class_without_frames_name_none(sop_class: str, tmp_path: Path) -> None:
    """Some devices state one frame all the same."""
    path = make_image(tmp_path, SOPClassUID=sop_class, NumberOfFrames="1")
    report = read(build_report(SourceImage.read(path), prediction(POSITIVE), FACTS))
    assert "ReferencedFrameNumber" not in {element.keyword for element in report.iterall()}


def test_the_image_is_listed_as_evidence(source: SourceImage) -> None:
    report = read(build_report(source, prediction(POSITIVE), FACTS))
    study = report.CurrentRequestedProcedureEvidenceSequence[0]
    series = study.ReferencedSeriesSequence[0]
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == ("1.2.3", "1.2.3.4")
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.sop_uid


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("score", [POSITIVE, NOT_ASSESSED])
@pytest.mark.parametrize("sop_class", [PRIVATE, RETIRED, "no class"])
def test_an_image_of_any_class_has_a_report_that_names_it(
    sop_class: str, score: float | None, tmp_path: Path
) -> None:
    path = make_image(tmp_path, SOPClassUID=sop_class)
    report = read(build_report(SourceImage.read(path), prediction(score), FACTS))
    classes = [
        element.value for element in report.iterall() if element.keyword == "ReferencedSOPClassUID"
    ]
    assert classes == [sop_class] * (2 if score is None else 2 + len(REGIONS))


@pytest.mark.parametrize("sr_class", CLASSES)
def test_highdicom_reads_its_groups_again(sr_class: ReportClass, source: SourceImage) -> None:
    report = read(build_report(source, prediction(POSITIVE), FACTS, sr_class=sr_class))
    kind = {"comprehensive": hd.sr.ComprehensiveSR, "comprehensive3d": hd.sr.Comprehensive3DSR}
    content = kind[sr_class].from_dataset(report).content
    (whole,) = content.get_image_measurement_groups()
    assert whole.finding_type.value == "840539006"
    assert [one.value.value for one in whole.get_qualitative_evaluations()] == ["52101004"]
    regions = content.get_planar_roi_measurement_groups()
    assert [group.tracking_identifier for group in regions] == ["Region 1", "Region 2"]
    assert regions[0].roi.value.tolist() == [[10, 20], [40, 20], [40, 60], [10, 60], [10, 20]]


def test_a_class_without_a_code_gets_a_private_one(source: SourceImage) -> None:
    record = prediction(POSITIVE)
    run = replace(record.run, positive_class="tuberculosis suspected", classes=("a", "b"))
    record = replace(record, run=run, probabilities={"tuberculosis suspected": 0.9})
    report = read(build_report(source, record, FACTS))
    finding = next(
        item.ConceptCodeSequence[0]
        for item in items(report)
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Finding"
    )
    assert finding.CodingSchemeDesignator == "99DEEPCOVID"
    assert finding.CodeMeaning == "tuberculosis suspected"


def test_names_of_a_clinic_in_other_letters_become_ascii(source: SourceImage) -> None:
    record = prediction(POSITIVE)
    site = replace(record.run.site, name="中山 clinic\n")  # type: ignore[type-var]
    record = replace(record, run=replace(record.run, site=site))
    report = read(build_report(source, record, replace(FACTS, station="Iași\\B of the long name")))
    assert f"site file: \\u4e2d\\u5c71 clinic , sha256 {'cd' * 32}" in named(
        report, "TEXT", "Algorithm Parameters"
    )
    assert report.StationName == "Ia/u0219i/B of t"


@pytest.mark.parametrize("sr_class", CLASSES)
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_equal_facts_make_equal_bytes(
    score: float | None, sr_class: ReportClass, source: SourceImage
) -> None:
    first, second = (
        build_report(source, prediction(score), FACTS, sr_class=sr_class) for _ in range(2)
    )
    assert first == second  # although highdicom writes the microsecond


OTHERS: dict[str, Facts] = {
    "another cart": replace(FACTS, serial="CART-0002"),
    "another name of the cart": replace(FACTS, station="cart-2"),
    "another program": replace(FACTS, version="99.0.0"),
    "another content": replace(FACTS, content_sha256="22" * 32),
    "another moment": replace(FACTS, made=FACTS.made + timedelta(seconds=1)),
}


@pytest.mark.parametrize("facts", OTHERS.values(), ids=OTHERS)
def test_what_makes_other_bytes_makes_another_object(facts: Facts, source: SourceImage) -> None:
    one, other = (build_report(source, prediction(POSITIVE), one) for one in (FACTS, facts))
    assert one != other
    assert read(one).SOPInstanceUID != read(other).SOPInstanceUID


def test_another_result_is_another_object_and_other_times_and_places_are_not(
    source: SourceImage,
) -> None:
    record = prediction(POSITIVE)
    run = record.run
    others = [
        replace(record, run=replace(run, variant="fp32")),
        replace(record, run=replace(run, backend="openvino-cpu")),
        replace(record, run=replace(run, model_sha256="ba" * 32)),
        replace(record, run=replace(run, site=None)),
        replace(record, regions=REGIONS[:1]),
        prediction(NEGATIVE),
        prediction(NOT_ASSESSED),
    ]
    uids = {object_uid(source.sop_uid, one, FACTS, "sr") for one in (record, *others)}
    assert len(uids) == 1 + len(others)
    same = replace(record, path="elsewhere.dcm", overlay="o.png", timings_ms={"total": 9.0})
    assert object_uid(source.sop_uid, same, FACTS, "sr") in uids
    assert object_uid(source.sop_uid, record, FACTS, "sc", b"a map") not in {
        object_uid(source.sop_uid, record, FACTS, "sc", b"another map"),
        object_uid(source.sop_uid, record, FACTS, "sc"),
    }


def test_two_carts_are_two_devices(source: SourceImage) -> None:
    reports = [
        read(build_report(source, prediction(POSITIVE), replace(FACTS, serial=serial)))
        for serial in ("a" * 32, "b" * 32)
    ]
    assert [one.DeviceSerialNumber for one in reports] == ["a" * 32, "b" * 32]
    observers = [named(one, "UIDREF", "Device Observer UID") for one in reports]
    assert observers[0] != observers[1]


def test_both_classes_say_the_same_under_their_own_uids(source: SourceImage) -> None:
    plain, spatial = (
        read(build_report(source, prediction(POSITIVE), FACTS, sr_class=one)) for one in CLASSES
    )
    assert plain.SOPInstanceUID != spatial.SOPInstanceUID
    texts = [named(one, "TEXT", "Comment") for one in (plain, spatial)]
    assert texts[0] == texts[1]


@needs_dciodvfy
@pytest.mark.parametrize("sr_class", CLASSES)
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_dciodvfy_finds_no_error(
    score: float | None, sr_class: ReportClass, source: SourceImage, tmp_path: Path
) -> None:
    data = build_report(source, prediction(score), FACTS, sr_class=sr_class)
    (tmp_path / "report.dcm").write_bytes(data)
    assert errors_of(tmp_path / "report.dcm") == []


@needs_dciodvfy
@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": MULTI_FRAME, "NumberOfFrames": "1"},
        {"SOPClassUID": CR, "NumberOfFrames": "1"},
        {"PatientOrientation": ["F", "R"], "TimezoneOffsetFromUTC": "-0300"},
        dict.fromkeys(["PatientName", "PatientID", "StudyDate", "StudyInstanceUID", "Modality"]),
    ],
)
def test_dciodvfy_finds_no_error_with_odd_images(elements: dict[str, Any], tmp_path: Path) -> None:
    source = SourceImage.read(make_image(tmp_path, IMPLICIT, **elements))
    (tmp_path / "report.dcm").write_bytes(build_report(source, prediction(POSITIVE), FACTS))
    assert errors_of(tmp_path / "report.dcm") == []


@needs_images
@needs_dciodvfy
@pytest.mark.parametrize("path", REAL_IMAGES, ids=lambda path: path.stem)
def test_dciodvfy_finds_no_error_with_real_images(path: Path, tmp_path: Path) -> None:
    source = SourceImage.read(path)
    for score in SCORES.values():
        for sr_class in CLASSES:
            data = build_report(source, prediction(score), FACTS, sr_class=sr_class)
            (tmp_path / "report.dcm").write_bytes(data)
            assert errors_of(tmp_path / "report.dcm") == []


@needs_dcmtk
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_dsrdump_prints_the_tree(score: float | None, source: SourceImage, tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(build_report(source, prediction(score), FACTS))
    done = subprocess.run(
        ["dsrdump", "+Pl", str(tmp_path / "report.dcm")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert '<has concept mod TEXT:(,,"Algorithm Name")="squeezenet1_1">' in done.stdout
    assert done.stdout.count('(,,"Image Region")=(POLYLINE,') == (0 if score is None else 2)
    assert ('(,,"Presence")' in done.stdout) == (score in (SCORES["positive"], 0.03))
