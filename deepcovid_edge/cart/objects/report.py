"""A result as a structured report: Comprehensive SR by TID 1500 (PS3.16), for machines to read.

One measurement group speaks of the whole image, and one of each region where the network looked.
The group's texts say the rest in words: verdict, score and limits, warnings, research use. An image
that was not assessed has a report without a number and without Presence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from deepcovid_edge.cart.objects import codes
from deepcovid_edge.cart.objects.common import equipment, finish, stand_in, unchecked_values
from deepcovid_edge.cart.objects.facts import (
    BURNED_LINE,
    RESULT_SERIES,
    Facts,
    not_assessed_text,
    number_text,
    object_uid,
    parameters,
    plain,
    score_text,
    series_description,
    verdict_text,
    warning_text,
)
from deepcovid_edge.cart.objects.request import REQUEST
from deepcovid_edge.cart.objects.source import SECONDARY_CAPTURE, SourceImage
from deepcovid_edge.cart.objects.uids import (
    REPORT,
    REPORT_3D,
    SERIES,
    TRACKING,
    belonging_uid,
    device_uid,
)
from deepcovid_edge.decision.record import INDETERMINATE, POSITIVE, Prediction
from deepcovid_edge.errors import require
from deepcovid_edge.reasons import NOTICE

ReportClass = Literal["comprehensive", "comprehensive3d"]
KINDS: Mapping[str, str] = {"comprehensive": REPORT, "comprehensive3d": REPORT_3D}
"""`sr_class` -> kind of the object."""
SERIES_NUMBER = 9001
_CLASSES = {"comprehensive": "ComprehensiveSR", "comprehensive3d": "Comprehensive3DSR"}
_PRESENCE = {POSITIVE: codes.PRESENT, INDETERMINATE: codes.INDETERMINATE}
"""Decision -> Presence. None for negative: `Absent` would be a claim."""


def build_report(
    source: SourceImage,
    prediction: Prediction,
    facts: Facts,
    *,
    sr_class: ReportClass = "comprehensive",
) -> bytes:
    """The structured report of an image, assessed or not.

    Args:
        source: The image.
        prediction: Its record.
        facts: Of the cart.
        sr_class: `comprehensive3d` for displays that follow IHE AIR; the content is the same.

    Returns:
        A whole DICOM file in Explicit VR Little Endian, the same for the same arguments.

    Raises:
        MissingDependencyError: highdicom is not installed.
    """
    sr = require("highdicom.sr", extra="cart")
    uid = object_uid(source.sop_uid, prediction, facts, KINDS[sr_class])
    assessed = prediction.decision is not None
    with unchecked_values():
        content = sr.MeasurementReport(
            observation_context=_observer(sr, facts),
            # An image that was not assessed may show anything.
            procedure_reported=(codes.CHEST_IMAGE if assessed else codes.IMAGING).concept(),
            imaging_measurements=[
                _image_group(sr, source, prediction, facts, uid),
                *_region_groups(sr, source, prediction, uid),
            ],
            title=codes.TITLE.concept(),
        )
        made = getattr(sr, _CLASSES[sr_class])(
            evidence=[stand_in(source)],
            content=content,
            series_instance_uid=belonging_uid(uid, SERIES),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid,
            instance_number=1,
            series_description=series_description(prediction, RESULT_SERIES),
            is_complete=True,
            is_final=False,
            is_verified=False,
            **equipment(facts),
        )
        _name_class(made, source)
        return finish(made, source, facts, (REQUEST,))


def _name_class(made: Any, source: SourceImage) -> None:
    """Write the image's own SOP class where its stand-in has another: all refer to the image."""
    for element in made.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = source.sop_class


def _observer(sr: Any, facts: Facts) -> Any:
    """The cart as the observer (TID 1001, 1002 and 1004)."""
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DEVICE.concept(),
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=device_uid(facts.serial),
                name=plain(facts.product),
                manufacturer_name=plain(facts.manufacturer),
                model_name=plain(facts.product),
                serial_number=plain(facts.serial),
            ),
        )
    )


def _image_group(
    sr: Any, source: SourceImage, prediction: Prediction, facts: Facts, uid: str
) -> Any:
    """What is said of the whole image (TID 1501)."""
    assessed = prediction.decision is not None
    finding = codes.finding_of(prediction.run.positive_class)
    identifier = f"{finding.meaning} classification" if assessed else "Image, not assessed"
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(belonging_uid(uid, TRACKING), identifier),
        finding_type=finding.concept() if prediction.decision in _PRESENCE else None,
        finding_sites=[sr.FindingSite(codes.LUNG.concept())] if assessed else None,
        algorithm_id=_algorithm(sr, prediction, facts),
        source_images=[sr.SourceImageForMeasurementGroup(SECONDARY_CAPTURE, source.sop_uid)],
        qualitative_evaluations=_evaluations(sr, prediction),
    )
    _comment(sr, group, _image_texts(prediction))
    return group


def _algorithm(sr: Any, prediction: Prediction, facts: Facts) -> Any:
    """TID 4019."""
    run = prediction.run
    return sr.AlgorithmIdentification(
        name=plain(run.model),
        version=plain(f"{facts.version}+sha256:{run.model_sha256}"),
        parameters=parameters(prediction, facts),
        manufacturer=plain(facts.manufacturer),
    )


def _evaluations(sr: Any, prediction: Prediction) -> list[Any] | None:
    if prediction.decision is None:
        pair = codes.CAD_SUMMARY, codes.NONE_SUCCEEDED
    elif prediction.decision in _PRESENCE:
        pair = codes.PRESENCE, _PRESENCE[prediction.decision]
    else:
        return None
    return [sr.QualitativeEvaluation(*(word.concept() for word in pair))]


def _image_texts(prediction: Prediction) -> list[str]:
    """What is said in words; the verdict or the reason comes first, research use last."""
    if prediction.decision is None:
        said = [not_assessed_text(prediction)]
    else:
        named = f"Assessed for {prediction.run.positive_class}."
        said = [verdict_text(prediction), score_text(prediction), named]
    warnings = [warning_text(code) for code in prediction.warnings]
    return [*said, *warnings, f"{BURNED_LINE}. {NOTICE}"]


def _comment(sr: Any, group: Any, texts: Sequence[str]) -> None:
    """Add texts to a group (TID 1501 is extensible)."""
    for text in texts:
        item = sr.TextContentItem(
            name=codes.COMMENT.concept(),
            value=plain(text),
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
        group[0].ContentSequence.append(item)


def _region_groups(sr: Any, source: SourceImage, prediction: Prediction, uid: str) -> list[Any]:
    """The regions where the network looked, each outlined on the image (TID 1410)."""
    if prediction.decision is None:
        return []
    groups = []
    for number, region in enumerate(prediction.regions or (), start=1):
        box = (region["x"], region["y"], region["width"], region["height"])
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                belonging_uid(uid, TRACKING, number), f"Region {number}"
            ),
            referenced_region=sr.ImageRegion(
                graphic_type="POLYLINE",
                graphic_data=np.array(source.outline(*box)),
                source_image=sr.SourceImageForRegion(
                    SECONDARY_CAPTURE, source.sop_uid, source.frame_numbers()
                ),
            ),
        )
        _comment(sr, group, [_region_text(number, region)])
        groups.append(group)
    return groups


def _region_text(number: int, region: Mapping[str, Any]) -> str:
    turns = {True: "yes", False: "no", None: "not known"}[region.get("turns")]
    return (
        f"Region {number} of the heat map, where the network looked; not an outline of disease. "
        f"Peak {number_text(region['peak'])}. Hiding it crosses the threshold: {turns}."
    )
