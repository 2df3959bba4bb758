"""A short run of `witnesses`, with a fixed seed; the long one is `make witnesses`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from witnesses import run, tools
from witnesses.comparison import AGREED, DISAGREED, REASON, UNWRITTEN, outcome_of
from witnesses.encoding import image_file
from witnesses.explained import DCMTK, EXPLAINED_IMAGES, PYDICOM
from witnesses.picture_comparison import EXPLAINED_PICTURES
from witnesses.pictures import KINDS
from witnesses.readers import Reading, by_dcmtk, by_pydicom, header_of, ours
from witnesses.specs import DRAWN, drawn

from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES

SEED = 20_240_607
IMAGES, PICTURES = 200, 2 * len(KINDS)
needs_dicom_programs = pytest.mark.skipif(
    bool(tools.missing(tools.DICOM_PROGRAMS)), reason=str(tools.missing(tools.DICOM_PROGRAMS))
)
needs_picture_programs = pytest.mark.skipif(
    bool(tools.missing(tools.PICTURE_PROGRAMS)), reason=str(tools.missing(tools.PICTURE_PROGRAMS))
)


def kinds(found: run.Found) -> Counter[str]:
    return Counter(outcome.kind for _, outcome in found)


def lines(found: run.Found, kind: str) -> list[str]:
    return [f"{number}: {one.details}" for number, one in found if one.kind == kind]


@needs_dicom_programs
@pytest.mark.timeout(900)  # hundreds of processes, on a machine that may be busy
@pytest.mark.filterwarnings("ignore")  # of pydicom, about headers that are odd on purpose
def test_dicom_images_are_read_as_dcmtk_and_pydicom_read_them_or_it_is_explained() -> None:
    found = run.images(SEED, IMAGES, workers=2)
    assert lines(found, DISAGREED) == []
    assert lines(found, UNWRITTEN) == []
    assert kinds(found)[AGREED] > 0.5 * IMAGES
    assert kinds(found)[REASON] < 0.05 * IMAGES
    others = sum(outcome.writer not in run.OWN_WRITERS for _, outcome in found)
    assert others > 0.5 * IMAGES


@needs_picture_programs
@pytest.mark.filterwarnings("ignore")
def test_pictures_are_read_as_three_other_readers_read_them_or_it_is_explained() -> None:
    found = run.pictures(SEED, PICTURES, workers=2)
    assert lines(found, DISAGREED) == []
    assert lines(found, UNWRITTEN) == []
    assert kinds(found)[AGREED] > 0.5 * PICTURES


def test_a_spec_is_the_same_every_time_and_every_syntax_is_drawn() -> None:
    specs = [drawn(3, number) for number in range(64)]
    assert specs == [drawn(3, number) for number in range(64)]
    assert {spec.packing.syntax for spec in specs} == set(DRAWN)


@needs_dicom_programs
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "fault",
    [
        lambda grey: np.clip(grey + 3.0, 0, 255),
        lambda grey: 255.0 - grey,
        lambda grey: np.roll(grey, 1, axis=1),
        lambda grey: np.rint(grey / 2),
    ],
    ids=["brighter by 3 levels", "inverted", "moved by a pixel", "half as bright"],
)
def test_a_reader_of_ours_with_a_fault_would_be_found(
    fault: Callable[..., np.ndarray[tuple[int, ...], np.dtype[np.float64]]], tmp_path: Path
) -> None:
    number = next(n for n in range(0, 999) if _is_plain(n))
    spec = drawn(SEED, number)
    data = image_file(spec, tmp_path)
    header, right = header_of(data), ours(data)
    others = {
        DCMTK: by_dcmtk(data, header, tmp_path),
        PYDICOM: by_pydicom(data, header, tmp_path),
    }
    assert outcome_of(spec, header, right, others).kind == AGREED
    wrong = Reading(fault(right.grey), stored=right.stored)
    assert outcome_of(spec, header, wrong, others).kind == DISAGREED


def _is_plain(number: int) -> bool:
    """An image without what we show in another way on purpose."""
    spec = drawn(SEED, number)
    greys, layout, lossy = spec.greys, spec.layout, SYNTAXES[spec.packing.syntax].lossy
    plain = (greys.padding, greys.overlay, greys.modality, greys.shutter, greys.presentation)
    return plain == ("none", "none", "none", (), "") and (
        greys.voi == "window" and layout.aspect == (1, 1) and not lossy
    )


def test_every_explanation_names_its_reader_and_the_standard() -> None:
    for one in (*EXPLAINED_IMAGES, *EXPLAINED_PICTURES):
        assert one.readers, one.name
        standards = ("PS3", "ITU-T", "PNG", "TIFF 6.0", "Windows GDI", "WebP")
        assert any(standard in one.why for standard in standards), one.name
