"""What report and capture have in common: the image as highdicom wants it, equipment and times.

highdicom checks patient and study of the image that it copies from. It gets an image without a
patient here, and the image's own elements are put in place once the object is written: no header
can then keep a result from its PACS.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from deepcovid_edge.cart.objects.encoding import encode_file
from deepcovid_edge.cart.objects.facts import Facts, short
from deepcovid_edge.cart.objects.source import (
    PATIENT_AND_STUDY,
    SECONDARY_CAPTURE,
    SourceImage,
)
from deepcovid_edge.cart.objects.uids import IMPLEMENTATION_UID
from deepcovid_edge.errors import require

_ONE_AT_A_TIME = threading.Lock()
_LONGEST_NAME = 16
"""Longest value of SH (PS3.5, 6.2), characters."""
_PATIENT_AND_STUDY = tuple(tag for tags in PATIENT_AND_STUDY.values() for tag in tags)


@contextmanager
def unchecked_values() -> Iterator[None]:
    """Let pydicom take values as they are: UIDs of images are not always valid ones.

    pydicom's setting is one for the process, so objects are made one at a time.
    """
    config = require("pydicom.config", extra="cart")
    with _ONE_AT_A_TIME, config.disable_value_validation():
        yield


def stand_in(source: SourceImage) -> Any:
    """The image as evidence: its UIDs, and the attributes that highdicom asks for, empty.

    highdicom looks up its SOP class and knows no private or retired one, so it gets another here.
    """
    image = require("pydicom.dataset", extra="cart").Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID = source.study_uid, source.series_uid
    image.SOPInstanceUID, image.SOPClassUID = source.sop_uid, SECONDARY_CAPTURE
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID"):
        setattr(image, keyword, "")
    for keyword in ("AccessionNumber", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        setattr(image, keyword, "")
    return image


def equipment(facts: Facts) -> dict[str, str]:
    """The device that made an object, as arguments of highdicom (PS3.3, C.7.5.1)."""
    return {
        "manufacturer": short(facts.manufacturer),
        "manufacturer_model_name": short(facts.product),
        "device_serial_number": short(facts.serial),
        "software_versions": short(facts.version),
    }


def finish(made: Any, source: SourceImage, facts: Facts, further: tuple[int, ...]) -> bytes:
    """The file of an object.

    Args:
        made: As highdicom made it, in the present and with its own name in places.
        source: The image.
        facts: Of the cart.
        further: Tags that are copied from the image besides patient and study.
    """
    stamp_times(made, local_time(facts.made, source))
    if facts.station:
        made.StationName = short(facts.station)[:_LONGEST_NAME].strip()
    if "ContributingEquipmentSequence" in made:
        del made.ContributingEquipmentSequence
    made.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    made.file_meta.ImplementationVersionName = implementation_name(facts.version)
    return encode_file(made, source.copied, (*_PATIENT_AND_STUDY, *further))


def implementation_name(version: str) -> str:
    """Implementation Version Name of a version of this program (PS3.7, D.3.3.2.4)."""
    return f"DEEPCOVID_{version}"[:_LONGEST_NAME]


def local_time(made: datetime, source: SourceImage) -> datetime:
    """When an object was made, in the image's offset from UTC, where it states one.

    PS3.3, C.12.1.1: Timezone Offset From UTC counts for all dates and times of an object, and the
    study's are copied.
    """
    if source.offset is not None:
        return made.astimezone(source.offset)
    offset = made.utcoffset()
    whole = offset is not None and not offset.total_seconds() % 60
    return made if whole else made.astimezone(timezone.utc)


def stamp_times(made: Any, at: datetime) -> None:
    """Write one time into all places of an object that state when it was made."""
    date, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S.%f")
    made.InstanceCreationDate, made.InstanceCreationTime = date, time
    made.SeriesDate, made.SeriesTime = date, time
    made.ContentDate, made.ContentTime = date, time
    if "DateOfSecondaryCapture" in made:
        made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = date, time
    made.TimezoneOffsetFromUTC = at.strftime("%z")
