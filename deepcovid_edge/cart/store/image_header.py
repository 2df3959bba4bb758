"""What the ledger notes of a DICOM image: which instance it is, of whom, from which device."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from deepcovid_edge.errors import DeepCovidEdgeError, NotAssessedError, require
from deepcovid_edge.imaging.dicom.elements import BoundedStream, Elements, read_elements
from deepcovid_edge.imaging.dicom.syntaxes import DataSet, find_data_set

_CHARACTER_SET = 0x00080005
_SOP_CLASS, _SOP_UID, _STUDY_UID = 0x00080016, 0x00080018, 0x0020000D
_ACQUISITION_DATE, _ACQUISITION_TIME = (
    (0x00080022, 0x00080023, 0x00080020),
    (0x00080032, 0x00080033),
)
_ACCESSION, _NAME, _PATIENT_ID, _BIRTH_DATE = 0x00080050, 0x00100010, 0x00100020, 0x00100030
_MAKER, _MODEL, _STATION = 0x00080070, 0x00081090, 0x00081010
_TAGS = (
    *(_CHARACTER_SET, _SOP_CLASS, _SOP_UID, _STUDY_UID, *_ACQUISITION_DATE, *_ACQUISITION_TIME),
    *(_ACCESSION, _NAME, _PATIENT_ID, _BIRTH_DATE, _MAKER, _MODEL, _STATION),
)
_BEHIND_LAST, _PIXELS = 0x0020000E, 0x7FE00000


class NotTakenError(DeepCovidEdgeError):
    """Raised when what arrived is not an image that can be stored.

    Attributes:
        kind: `uid`: the SOP instance UID is missing or contradicts the data set; `parse`: it is
            not DICOM, or not an image file.
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(detail)


@dataclass(frozen=True)
class Who:
    """The patient of an image, as its header says; for the table `who` alone.

    Attributes:
        patient_id: Patient ID.
        name: Patient's name, decoded by the image's character sets.
        birth_date: As stated, `YYYYMMDD`.
        accession: Accession number.
        acquired: Date and time of the acquisition, as stated.
    """

    patient_id: str = ""
    name: str = ""
    birth_date: str = ""
    accession: str = ""
    acquired: str = ""


@dataclass(frozen=True)
class ImageHeader:
    """What is noted of an image; all is empty for a picture.

    Attributes:
        sop_class: SOP class UID.
        sop_uid: SOP instance UID.
        study_uid: Study instance UID.
        syntax: Transfer syntax UID.
        device: Manufacturer, model and station of what took it.
        who: Its patient.
    """

    sop_class: str = ""
    sop_uid: str = ""
    study_uid: str = ""
    syntax: str = ""
    device: str = ""
    who: Who = field(default_factory=Who)


def read_image_header(data: bytes) -> ImageHeader:
    """Read what is noted of a DICOM file.

    Raises:
        NotTakenError: It cannot be read as DICOM, or has no SOP instance UID before its pixels.
    """
    require("pydicom", extra="cart")
    try:
        found = find_data_set(data)
        elements = _elements(found)
    except NotAssessedError as error:
        raise NotTakenError("parse", str(error)) from error
    except Exception as error:  # pydicom raises nearly anything on a broken header
        raise NotTakenError("parse", "the data set cannot be read") from error
    return _header(elements, found.media_class, found.syntax)


def _elements(found: DataSet) -> Elements:
    """The elements that are noted.

    Where a header is damaged behind the place of the last of them, these alone are read.
    """
    with suppress(Exception):  # pydicom raises nearly anything on a broken header
        return _elements_before(_PIXELS, found)
    return _elements_before(_BEHIND_LAST, found)


def _elements_before(end: int, found: DataSet) -> Elements:
    stream = BoundedStream.over(found)
    return read_elements(stream, lambda tag, _kind, _length: tag >= end, _TAGS, found.encoding)


def _header(elements: Elements, media_class: str, syntax: str) -> ImageHeader:
    sop_uid = elements.text(_SOP_UID)
    if not sop_uid:
        raise NotTakenError("uid", "no SOP instance UID stands before the pixels")
    return ImageHeader(
        sop_class=elements.text(_SOP_CLASS) or media_class,
        sop_uid=sop_uid,
        study_uid=elements.text(_STUDY_UID),
        syntax=syntax,
        device=" ".join(filter(None, (elements.text(tag) for tag in (_MAKER, _MODEL, _STATION)))),
        who=Who(
            patient_id=elements.decoded(_PATIENT_ID),
            name=elements.decoded(_NAME),
            birth_date=elements.text(_BIRTH_DATE),
            accession=elements.decoded(_ACCESSION),
            acquired=" ".join(
                next(filter(None, map(elements.text, tags)), "")
                for tags in (_ACQUISITION_DATE, _ACQUISITION_TIME)
            ).strip(),
        ),
    )
