"""The order of an image is stated in its report, as PS3.3, table C.17-2 has it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
pytest.importorskip("highdicom", reason="needs extra cart")
from cart_results import FACTS, POSITIVE, errors_of, make_image, needs_dciodvfy, prediction
from pydicom import dcmread
from pydicom.dataset import Dataset

from deepcovid_edge.cart.objects.report import build_report
from deepcovid_edge.cart.objects.source import SourceImage

TYPE_2 = {
    *("AccessionNumber", "ReferencedStudySequence", "RequestedProcedureDescription"),
    *("RequestedProcedureCodeSequence", "RequestedProcedureID"),
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
}


def order(**values: Any) -> Dataset:
    """An item of the image's Request Attributes Sequence."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def report_of(folder: Path, *orders: Dataset, **elements: Any) -> Dataset:
    """The report of an image with these orders, on the disk as well."""
    path = make_image(folder, RequestAttributesSequence=[*orders], **elements)
    data = build_report(SourceImage.read(path), prediction(POSITIVE), FACTS)
    (folder / "report.dcm").write_bytes(data)
    return dcmread(io.BytesIO(data))


def test_what_the_order_does_not_state_is_the_image_s_or_empty(tmp_path: Path) -> None:
    report = report_of(tmp_path, order(RequestedProcedureID="R1"), AccessionNumber="A17")
    (request,) = report.ReferencedRequestSequence
    assert {element.keyword for element in request} == TYPE_2 | {"StudyInstanceUID"}
    assert (request.StudyInstanceUID, request.AccessionNumber) == ("1.2.3", "A17")
    assert request.RequestedProcedureID == "R1"
    assert not request.RequestedProcedureDescription
    assert not request.RequestedProcedureCodeSequence


def test_each_order_is_stated_with_its_own_study_and_numbers(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        order(StudyInstanceUID="1.2.99", AccessionNumber="A18", RequestedProcedureID="R1"),
        order(PlacerOrderNumberImagingServiceRequest="P2", ReasonForTheRequestedProcedure="Cough"),
        AccessionNumber="A17",
    )
    first, second = report.ReferencedRequestSequence
    assert (first.StudyInstanceUID, first.AccessionNumber) == ("1.2.99", "A18")
    assert (second.StudyInstanceUID, second.AccessionNumber) == ("1.2.3", "A17")
    assert second.PlacerOrderNumberImagingServiceRequest == "P2"
    assert second.ReasonForTheRequestedProcedure == "Cough"


@pytest.mark.parametrize(
    "orders",
    [
        [],
        [order()],
        [order(RequestedProcedureID=" ", ScheduledProcedureStepID="S1")],
    ],
)
def test_an_image_that_was_not_ordered_has_no_request(
    orders: list[Dataset], tmp_path: Path
) -> None:
    report = report_of(tmp_path, *orders, AccessionNumber="A17")
    assert "ReferencedRequestSequence" not in report


@needs_dciodvfy
@pytest.mark.parametrize("number", ["R1", "123456789 1234567"])
def test_dciodvfy_finds_no_error(number: str, tmp_path: Path) -> None:
    code = order(CodeValue="RPID1", CodingSchemeDesignator="99X", CodeMeaning="Thorax")
    report_of(
        tmp_path,
        order(RequestedProcedureID=number[:16], RequestedProcedureCodeSequence=[code]),
        order(AccessionNumber="A18"),
    )
    assert errors_of(tmp_path / "report.dcm") == []
