"""Situations of public bug reports: each file gets its right result, its reason or its warning.

`../shared/cases/make_cases.py` writes them; the docstring of each case there says what is right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge import Model, Prediction, read_radiograph
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.manifest import InputSpec

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
SCRIPT = XRAY.parent / "cases" / "make_cases.py"
pytestmark = [
    pytest.mark.int8,
    pytest.mark.skipif(
        not (SCRIPT.is_file() and (XRAY / "manifest.csv").is_file()),
        reason="no cases: ../shared/cases or ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
    ),
]
pytest.importorskip("pydicom", reason="most cases are DICOM files (extra dicom)")
pytest.importorskip("imagecodecs", reason="some cases are compressed DICOM files (extra dicom)")


@dataclass(frozen=True)
class Right:
    """What is right for a file.

    Attributes:
        like: The file whose pixels it has; empty for none.
        within: Mean difference of the model's input from that file's, grey levels of 256.
        codes: Where it may have a reason or a warning instead: one of these; `*` for any that the
            other file has not.
        must: Whether one of the codes must be there, whatever the decision.
    """

    like: str = ""
    within: float = 0.0
    codes: tuple[str, ...] = ()
    must: bool = False


SAME = 0.01
"""The same grey levels, but rounded in another place."""
GREY_LEVEL = 0.6
"""Each pixel is off by hardly more than one grey level."""
RESAMPLED = 0.2
"""The same image, interpolated to two thirds of its rows and back."""
COARSE = 8.0
"""Pixels of 8 bits without the last 2 or 4 of them: at most 15 levels."""
READ: Mapping[str, Right] = {
    **{f"01_point_transform/pt{n}.dcm": Right("ref.dcm", GREY_LEVEL) for n in (1, 2, 4)},
    "01_point_transform/pt1_8bit.dcm": Right("ref.dcm", GREY_LEVEL),
    **{f"01_point_transform/pt{n}_8bit.dcm": Right("ref.dcm", COARSE) for n in (2, 4)},
    "02_restart_intervals/restart_32_rows.dcm": Right("ref.dcm", SAME),
    "02_restart_intervals/se_63.dcm": Right("ref.dcm", SAME),
    "03_ybr_full_in_jpeg/ybr_full.dcm": Right("ref.dcm", GREY_LEVEL),
    "03_ybr_full_in_jpeg/j2k_mct_ybr_full.dcm": Right("ref.dcm", GREY_LEVEL),
    "05_voi_first_value_signed/intercept_-1024.dcm": Right("ref.dcm", GREY_LEVEL),
    "05_voi_first_value_signed/signed_pixels_modality_lut.dcm": Right("ref.dcm", GREY_LEVEL),
    **{
        f"07_pixel_aspect_ratio/{name}": Right(f"ref{Path(name).suffix}", RESAMPLED, ("*",))
        for name in ("aspect_3_2.dcm", "imager_spacing.dcm")
    },
    **{
        f"07_pixel_aspect_ratio/{name}": Right("ref.png", RESAMPLED, ("*",))
        for name in ("resolution_150x100.tif", "phys.png")
    },
    "08_shutter/shutter.dcm": Right("ref.dcm", GREY_LEVEL),
    **{f"09_excess_padding/plus_{n}.dcm": Right("ref.dcm", SAME) for n in (2, 12, 512)},
    **{
        f"12_explicit_under_implicit/{name}.dcm": Right("ref.dcm", SAME, ("E_DECODE",))
        for name in ("says_implicit_is_explicit", "says_explicit_is_implicit")
    },
    "14_signed_16_without_window/signed.dcm": Right(
        "ref_unsigned.dcm", GREY_LEVEL, ("W_DEPTH",), must=True
    ),
    "15_coded_anatomy/hand.dcm": Right(codes=("E_BODY",)),
    "15_coded_anatomy/abdomen.dcm": Right(codes=("E_BODY",)),
    "15_coded_anatomy/chest_pa.dcm": Right("ref.dcm", SAME),
    **{f"16_coded_lateral/{name}.dcm": Right(codes=("E_VIEW",)) for name in ("english", "german")},
    **{
        f"17_view_position_spelling/{name}.dcm": Right(codes=("E_VIEW",))
        for name in ("LATERAL", "LL", "LLAT")
    },
    "18_body_part_not_ascii/knee_cyrillic.dcm": Right(codes=("E_BODY", "W_NO_VIEW")),
    "18_body_part_not_ascii/torax_accent.dcm": Right("../15_coded_anatomy/ref.dcm", SAME),
    "19_child_without_study_date/ref_with_study_date.dcm": Right(codes=("E_AGE",)),
    "19_child_without_study_date/AcquisitionDate.dcm": Right(codes=("E_AGE",)),
    **{
        f"20_harmless_jpeg_warnings/{name}.jpg": Right("ref.jpg", SAME)
        for name in ("jfif_2.01", "jfif_0.02", "sos_zeros")
    },
    **{
        f"21_large_png_text/{name}.png": Right("ref.png", SAME)
        for name in ("ztxt", "xmp", "icc", "chrm_short")
    },
    "22_marker_above_a_12_bit_film/marker.png": Right("ref.png", GREY_LEVEL),
    "22_marker_above_a_12_bit_film/marker.dcm": Right("ref.png", GREY_LEVEL),
    "23_zero_filled_tail/quarter_missing.dcm": Right("ref.dcm", codes=("*",), must=True),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    command = [sys.executable, str(SCRIPT), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def records(cases: Path) -> dict[str, Prediction]:
    """Name of a case and its file -> its record."""
    paths = sorted(p for p in cases.glob("[012]*/*") if p.is_file())
    with Model() as model:
        found = zip(paths, model.predict(paths), strict=True)
        return {str(path.relative_to(cases)): record for path, record in found}


def model_input(path: str) -> NDArray[np.int16]:
    return prepare(read_radiograph(path), InputSpec()).astype(np.int16)


def test_every_file_of_the_cases_has_its_right_value_here(records: dict[str, Prediction]) -> None:
    files = {name for name in records if not Path(name).name.startswith("ref.")}
    assert files - {"14_signed_16_without_window/ref_unsigned.dcm"} == set(READ)


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_rightly_or_its_record_says_why_not(
    records: dict[str, Prediction], name: str
) -> None:
    right, record = READ[name], records[name]
    codes = {*record.warnings, *filter(None, [record.reason])}
    expected = set(right.codes)
    if right.like:
        ref = records[os.path.normpath(Path(name).parent / right.like)]
        assert ref.probability is not None, f"the reference itself is not assessed: {ref}"
        if "*" in expected:
            expected = codes - set(ref.warnings)
        if not (right.must or record.probability is None):
            apart = np.abs(model_input(record.path) - model_input(ref.path)).mean()
            assert apart <= right.within or codes & expected, (record, ref)
    if right.must or record.probability is None or not right.like:
        assert codes & expected, record


def test_a_coded_chest_needs_no_other_words_for_its_view(records: dict[str, Prediction]) -> None:
    assert "W_NO_VIEW" not in records["15_coded_anatomy/chest_pa.dcm"].warnings


def run(cases: Path, number: int, limit_s: float = 60) -> str:
    """What the script of a case prints."""
    (script,) = cases.glob(f"{number}_*/run.sh")
    environment = {
        **os.environ,
        "DEEPCOVID": f"{sys.executable} -m deepcovid_edge",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "export"))),
    }
    done = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, timeout=limit_s, env=environment
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def test_30_images_in_folders_named_like_files_have_records(cases: Path) -> None:
    printed = run(cases, 30)
    assert printed.count('"path"') == 3
    assert "3 are right; exit 0" in printed


def test_31_folders_that_link_to_each_other_give_each_image_once(cases: Path) -> None:
    printed = run(cases, 31, limit_s=30)
    assert "exit 0" in printed
    assert re.search(r"^7 web\.jsonl", printed, re.MULTILINE), printed


def test_32_closed_streams_cost_no_record(cases: Path) -> None:
    assert run(cases, 32).splitlines() == [
        "stderr closed: exit 0, 1 records",
        "stdout closed: exit 0, 1 records",
    ]


def test_33_a_stream_that_is_not_utf_8_gets_every_row(cases: Path) -> None:
    printed = run(cases, 33)
    assert "exit 0" in printed
    assert re.search(r"^4 o\.csv", printed, re.MULTILINE), printed  # a header and three rows


def test_34_the_runtime_keeps_nothing_and_calls_nobody(cases: Path) -> None:
    if not (shutil.which("strace") and shutil.which("unshare")):
        pytest.skip("strace and unshare (util-linux) show who is called; one is not installed")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace (unshare -rn)")
    assert run(cases, 34, limit_s=120) == ""


def test_35_thumbnails_and_deleted_images_of_a_nas_have_no_record(cases: Path) -> None:
    assert run(cases, 35).splitlines() == ['"path": "nas/film.png"']


def test_36_an_image_sent_again_under_its_name_is_classified_again(cases: Path) -> None:
    assert "exit 0" in run(cases, 36)
    (output,) = cases.glob("36_*/r.jsonl")
    record = [json.loads(line) for line in output.read_text().splitlines()][-1]
    assert (record["status"], record["reason"]) == ("assessed", None)
