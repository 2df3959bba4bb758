"""What functional groups state of a secondary capture of one frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import EXPLICIT, SECONDARY_CAPTURE, dataset, reason_of, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from stated_headers import code
from test_dicom_refusals import image, lut

from deepcovid_edge.imaging.dicom.elements import MAX_VALUE
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT

Decode = Callable[..., Radiograph]

PER_FRAME, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1500}
RESCALE = {"RescaleSlope": "-2", "RescaleIntercept": "4000"}


def item(**elements: Any) -> Sequence:
    one = Dataset()
    for keyword, value in elements.items():
        setattr(one, keyword, value)
    return Sequence([one])


def capture(**elements: Any) -> Dataset:
    """A multi-frame grayscale word secondary capture of one frame."""
    return dataset(
        image(12), stored=12, SOPClassUID=SECONDARY_CAPTURE + ".3", NumberOfFrames=1, **elements
    )


def in_groups(where: str, **macros: Sequence) -> Dataset:
    return capture(**{where: item(**macros)})


def outcome(decode: Decode, one: Dataset, syntax: str = EXPLICIT) -> tuple[Any, ...]:
    read = decode(written(one, syntax))
    return read.pixels.tolist(), read.white, read.warnings


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("where", [PER_FRAME, SHARED])
@pytest.mark.parametrize(
    ("macro", "stated"),
    [
        ("FrameVOILUTSequence", WINDOW),
        ("FrameVOILUTSequence", {**WINDOW, "VOILUTFunction": "SIGMOID"}),
        ("PixelMeasuresSequence", {"PixelSpacing": [0.2, 0.3]}),
        (
            "FrameDisplayShutterSequence",
            {
                "ShutterShape": "RECTANGULAR",
                "ShutterLeftVerticalEdge": "9",
                "ShutterRightVerticalEdge": "150",
                "ShutterUpperHorizontalEdge": "5",
                "ShutterLowerHorizontalEdge": "120",
            },
        ),
    ],
)
def test_group_counts_as_the_same_elements_of_the_image(
    macro: str, stated: dict[str, Any], where: str, syntax: str, decode: Decode
) -> None:
    grouped = in_groups(where, **{macro: item(**stated)})
    if syntax != BIG_ENDIAN:
        grouped[where].is_undefined_length = True
    found = outcome(decode, grouped, syntax)
    assert found == outcome(decode, capture(**stated), syntax)
    assert found != outcome(decode, capture(), syntax)


def test_tables_and_rescale_of_a_group_count(decode: Decode) -> None:
    table = lut(range(4095, -1, -1))
    both = in_groups(
        SHARED,
        FrameVOILUTSequence=item(WindowCenter=0, WindowWidth=4000),
        PixelValueTransformationSequence=item(**RESCALE),
    )
    root = capture(WindowCenter=0, WindowWidth=4000, **RESCALE)
    assert outcome(decode, both) == outcome(decode, root)
    grouped = in_groups(PER_FRAME, FrameVOILUTSequence=item(VOILUTSequence=table))
    assert outcome(decode, grouped) == outcome(decode, capture(VOILUTSequence=table))


def test_image_comes_before_its_frame_and_the_frame_before_all_frames(decode: Decode) -> None:
    other = item(FrameVOILUTSequence=item(WindowCenter=100, WindowWidth=50))
    mine = item(FrameVOILUTSequence=item(**WINDOW))
    expected = outcome(decode, capture(**WINDOW))
    assert outcome(decode, capture(**WINDOW, **{PER_FRAME: other, SHARED: other})) == expected
    assert outcome(decode, capture(**{PER_FRAME: mine, SHARED: other})) == expected
    nothing = item(FrameVOILUTSequence=Sequence())
    assert outcome(decode, capture(**{PER_FRAME: nothing, SHARED: mine})) == expected
    assert outcome(decode, capture(**{PER_FRAME: Sequence(), SHARED: nothing})) == outcome(
        decode, capture()
    )


def test_reasons_are_those_of_the_same_elements_of_the_image(decode: Decode) -> None:
    half = in_groups(
        PER_FRAME,
        FrameVOILUTSequence=item(**WINDOW),
        PixelValueTransformationSequence=item(RescaleSlope="2"),
    )
    assert reason_of(decode, written(half)) is Reason.DECODE
    hand = item(AnatomicRegionSequence=Sequence([code("85562004", meaning="Hand")]))
    assert reason_of(decode, written(in_groups(SHARED, FrameAnatomySequence=hand))) is Reason.BODY
    none = in_groups(SHARED, FrameVOILUTSequence=item(WindowCenter=2000, WindowWidth=0))
    assert WarningCode.WINDOW in decode(written(none)).warnings


def test_groups_of_many_frames_are_no_header_that_is_too_long(decode: Decode) -> None:
    long = item(TextValue="x" * (MAX_VALUE + 2))
    two = capture(**{PER_FRAME: long})
    assert reason_of(decode, written(two)) is Reason.DECODE
    two.NumberOfFrames = 2
    assert reason_of(decode, written(two)) is Reason.FRAMES
    two.SOPClassUID, two.Modality = "1.2.840.10008.5.1.4.1.1.2.1", "CT"
    assert reason_of(decode, written(two)) is Reason.MODALITY


def test_other_images_are_read_as_they_were(decode: Decode) -> None:
    assert np.array_equal(decode(written(capture())).pixels, image(12))
