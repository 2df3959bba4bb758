"""The objects of a result where a library fails: less in them, or none; the result stays."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="the cart needs extra cart")

from cart_page import write_config
from dicom_files import EXPLICIT
from pydicom import Dataset, dcmread
from whole_cart import phantom_image

from deepcovid_edge.cart.checks import _model
from deepcovid_edge.cart.objects import capture, report
from deepcovid_edge.cart.work.assessment import AssessmentRequest, Assessor
from deepcovid_edge.cart.work.assessor_child import loaded_assessor
from deepcovid_edge.cart.work.self_test import check_assessor
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.heatmaps.occlusion import BudgetError, Occluder

MADE = "2026-12-01T10:00:00.000+00:00"
PRIVATE = "1.3.6.1.4.1.99999.1.2"


@pytest.fixture(scope="module")
def assessor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assessor]:
    config = write_config(tmp_path_factory.mktemp("cart"), 8080)
    with loaded_assessor(config.cart, config.cart.model, None) as loaded:
        yield loaded


def fail(*_: object, **__: object) -> None:
    raise KeyError("Kanarienvogel^Anna")


def assessed(assessor: Assessor, folder: Path, **elements: Any) -> dict[str, Any]:
    path = folder / "image.dcm"
    path.write_bytes(phantom_image(1, EXPLICIT, opacities=9, **elements))
    return assessor.assess(AssessmentRequest(path, f"{1:064x}", is_dicom=True, made=MADE))


def objects(answer: dict[str, Any]) -> dict[str, Dataset]:
    return {
        one["kind"]: dcmread(io.BytesIO(Path(one["path"]).read_bytes()))
        for one in answer["objects"]
    }


def texts(report: Dataset) -> list[str]:
    """The comments of a report, in their order."""
    return [item.value for item in report.iterall() if item.keyword == "TextValue"]


def test_an_image_of_a_private_class_is_answered_with_its_reason(
    assessor: Assessor, tmp_path: Path
) -> None:
    answer = assessed(assessor, tmp_path, SOPClassUID=PRIVATE)
    assert answer["record"]["reason"] == "E_MODALITY"
    assert answer["faults"] == []
    assert any("NOT ASSESSED: E_MODALITY" in text for text in texts(objects(answer)["sr"]))


def test_what_cannot_be_built_whole_is_built_with_less_in_it(
    assessor: Assessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = objects(assessed(assessor, tmp_path))
    groups = report._region_groups

    def of_regions(sr: Any, source: Any, prediction: Any, uid: str) -> list[Any]:
        if prediction.regions:
            fail()
        return groups(sr, source, prediction, uid)

    monkeypatch.setattr(report, "_region_groups", of_regions)
    monkeypatch.setattr(capture, "burned", fail)
    answer = assessed(assessor, tmp_path)
    assert (answer["record"]["decision"], answer["missing"]) == ("positive", [])
    assert answer["faults"] == ["sr: KeyError", "sc: KeyError"]
    less = objects(answer)
    for kind, one in less.items():
        assert one.SOPInstanceUID != whole[kind].SOPInstanceUID
        assert one.PatientName == whole[kind].PatientName
    outside = [text for text in texts(whole["sr"]) if not text.startswith("Region")]
    assert texts(less["sr"]) == outside != texts(whole["sr"])
    assert less["sc"].Columns == 1024
    said = capfd.readouterr()
    assert "Kanarienvogel" not in said.out + said.err
    with pytest.raises(ModelFileError, match="objects cannot be built"):
        check_assessor(assessor)


def test_a_budget_that_holds_no_heat_map_leaves_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The test at the start passes, and `check-config` says what is lost."""

    def late(*_: object) -> None:
        raise BudgetError(1234.0)

    monkeypatch.setattr(Occluder, "explain", late)
    config = write_config(tmp_path, 8080)
    config = replace(config, cart=replace(config.cart, heatmap="occlusion"))
    with loaded_assessor(config.cart, config.cart.model, None) as loaded:
        answer = assessed(loaded, tmp_path)
    assert [one["kind"] for one in answer["objects"]] == ["sr"]
    assert "W_NO_HEATMAP" in answer["record"]["warnings"]
    assert '"one_pass": 1.234' in capfd.readouterr().out
    (told,) = (one for one in _model(config) if one.what == "budget")
    assert told.mark == "warn"
    assert "got 1 s, one pass takes about 1.23 s here" in told.detail


def test_an_image_that_cannot_be_read_lacks_its_report(assessor: Assessor, tmp_path: Path) -> None:
    answer = assessor.assess(AssessmentRequest(tmp_path / "gone.dcm", f"{2:064x}", is_dicom=True))
    assert answer["record"]["reason"] == "E_UNREADABLE"
    assert (answer["objects"], answer["missing"]) == ([], ["sr"])
    picture = assessor.assess(AssessmentRequest(tmp_path / "gone.png", f"{3:064x}", is_dicom=False))
    assert (picture["objects"], picture["missing"]) == ([], [])


def test_objects_state_the_cart_by_its_own_number(assessor: Assessor, tmp_path: Path) -> None:
    made = objects(assessed(assessor, tmp_path))
    assert {one.DeviceSerialNumber for one in made.values()} == {assessor.spool.cart_id()}
    assert {one.StationName for one in made.values()} == {platform.node()[:16].strip()}


def test_the_moment_that_was_kept_gives_the_same_objects_and_another_one_others(
    assessor: Assessor, tmp_path: Path
) -> None:
    """One is lost with the ledger where there is no copy: the PACS has the first objects."""
    path = tmp_path / "image.dcm"
    path.write_bytes(phantom_image(1, EXPLICIT, opacities=9))
    first, again, later = (
        {one["sop_uid"]: one["sha256"] for one in assessor.assess(request)["objects"]}
        for request in (
            AssessmentRequest(path, f"{4:064x}", is_dicom=True, made=made)
            for made in (MADE, MADE, MADE.replace("T10", "T11"))
        )
    )
    assert len(first) == 2
    assert first == again
    assert first.keys().isdisjoint(later)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of the cart."""

    def move(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("stated", [{}, {"TimezoneOffsetFromUTC": "+0900"}])
def test_no_uid_stands_for_two_contents_after_the_time_zone_was_changed(
    assessor: Assessor, tmp_path: Path, zone: Callable[[str], None], stated: dict[str, str]
) -> None:
    """An image that states its own offset has the same objects in every zone."""
    found = []
    for name in ("UTC0", "XXX-5:30"):
        zone(name)
        answer = assessed(assessor, tmp_path, **stated)
        found.append({one["sop_uid"]: one["sha256"] for one in answer["objects"]})
    here, there = found
    assert (here == there) if stated else here.keys().isdisjoint(there)


@pytest.mark.parametrize("elements", [{}, {"SOPClassUID": PRIVATE}])
def test_a_result_of_which_nothing_can_be_built_is_kept(
    assessor: Assessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elements: dict[str, str],
) -> None:
    monkeypatch.setattr(report, "build_report", fail)
    answer = assessed(assessor, tmp_path, **elements)
    assert answer["record"]["reason"] == ("E_MODALITY" if elements else None)
    assert answer["missing"] == ["sr"]
    assert [one["kind"] for one in answer["objects"]] == ([] if elements else ["sc"])
