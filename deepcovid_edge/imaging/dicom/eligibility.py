"""Eligibility: only frontal chest radiographs of adults are decoded; the header decides."""

from __future__ import annotations

import re

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.pictures import PICTURE_SUFFIXES
from deepcovid_edge.imaging.radiograph import LOSSY_RATIO, SYNTHETIC_MARK
from deepcovid_edge.reasons import Reason, WarningCode

ADULT_YEARS = 18

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# PS3.4, B.5: the storage classes that can hold a chest radiograph as it is displayed.
_CR, _DX, _DX_RAW = _STORAGE + "1", _STORAGE + "1.1", _STORAGE + "1.1.1"
_COPIES = {_STORAGE + number for number in ("7", "7.2", "7.3", "7.4")}
_DICOMDIR = "1.2.840.10008.1.3.10"
_OTHER_CLASSES = {
    _STORAGE + "1.2": "a mammogram",
    _STORAGE + "1.3": "a dental image",
    _STORAGE + "2": "CT",
    _STORAGE + "2.1": "CT",
    _STORAGE + "3.1": "ultrasound",
    _STORAGE + "4": "MR",
    _STORAGE + "4.1": "MR",
    _STORAGE + "6.1": "ultrasound",
    _STORAGE + "12.1": "an angiogram",
    _STORAGE + "12.2": "fluoroscopy",
    _STORAGE + "20": "nuclear medicine",
    _STORAGE + "88.11": "a structured report",
    _STORAGE + "88.22": "a structured report",
    _STORAGE + "88.33": "a structured report",
    _STORAGE + "104.1": "a PDF document",
    _STORAGE + "128": "PET",
}
_MODALITIES = {"CR", "DX", "RG", "OT", "SC", ""}
"""OT and SC stand in copies; RG in images that were digitised."""
_CHEST = {"CHEST", "THORAX", "LUNG", "LUNGS", "TORAX"}
_NOT_CHEST = {"ABDOMEN", "PELVIS", "SPINE", "RIB", "RIBS", "STERNUM", "SHOULDER"}
_FRONTAL = {"AP", "PA", "FRONTAL"}
_NOT_FRONTAL = re.compile(r"(?<![A-Z])(LAT|OBL|DECUB)")
_NOT_FRONTAL_TERMS = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "RAO", "LAO", "RPO", "LPO"}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}


def check_header(header: DicomHeader) -> None:
    """Refuse a file by its header.

    Raises:
        NotAssessedError: It is not an image of this kind, or not whole.
    """
    _check_kind(header)
    if header.facts.transfer_syntax_uid not in SYNTAXES:
        stated = header.facts.transfer_syntax_uid or "none stated"
        raise NotAssessedError(Reason.SYNTAX, f"transfer syntax {stated} is not read")
    if header.place is None:
        raise NotAssessedError(Reason.TRUNCATED, "no pixels in the file")
    _check_layout(header.layout)
    _check_patient(header)


def _check_kind(header: DicomHeader) -> None:
    kind, modality = header.facts.sop_class_uid, header.facts.modality
    if kind == _DICOMDIR:
        raise NotAssessedError(Reason.NOT_IMAGE, "this is a DICOMDIR, a list of images")
    if kind == _DX_RAW or header.intent == "FOR PROCESSING":
        raise NotAssessedError(Reason.RAW)
    if not kind and header.place is None:
        raise NotAssessedError(Reason.TRUNCATED, "the header ends early")
    if kind not in {_CR, _DX, *_COPIES}:
        name = _OTHER_CLASSES.get(kind) or modality or f"SOP class {kind or 'not stated'}"
        raise NotAssessedError(Reason.MODALITY, f"this is {name}")
    if modality not in _MODALITIES:
        raise NotAssessedError(Reason.MODALITY, f"this is {modality}")


def _check_layout(layout: PixelLayout) -> None:
    if layout.frames > 1:
        raise NotAssessedError(Reason.FRAMES, f"{layout.frames} pictures")
    bits = f"{layout.stored} of {layout.allocated} bits"
    if layout.allocated not in (8, 16):
        raise NotAssessedError(Reason.MODE, bits)
    if not 2 <= layout.stored <= layout.allocated or layout.high_bit != layout.stored - 1:
        raise NotAssessedError(Reason.BITS, f"{bits}, the highest {layout.high_bit}")
    if layout.samples == 1 and layout.photometric in _GREY:
        return
    if layout.samples != 3 or layout.photometric not in _COLOURS or layout.stored != 8:
        kind = f"{layout.samples} channels, {layout.photometric or 'no photometric interpretation'}"
        raise NotAssessedError(Reason.MODE, f"{kind}, {bits}")


def _check_patient(header: DicomHeader) -> None:
    facts = header.facts
    part = set(re.split(r"[^A-Z]+", facts.body_part)) - {""}
    if part and (part & _NOT_CHEST or not part & _CHEST):
        raise NotAssessedError(Reason.BODY, f"marked as {facts.body_part}")
    if _is_not_frontal(facts.view):
        raise NotAssessedError(Reason.VIEW, f"marked as {facts.view}")
    if any(part[0] in "AP" for part in header.orientation):
        # PS3.3, C.7.6.1.1.1: rows or columns that run from front to back.
        detail = "patient orientation " + "\\".join(header.orientation)
        raise NotAssessedError(Reason.VIEW, detail)
    if facts.age_years is not None and facts.age_years < ADULT_YEARS:
        raise NotAssessedError(Reason.AGE, f"{facts.age_years:g} years")


def _terms(view: str) -> set[str]:
    return set(re.split(r"[^A-Z]+", view))


def _is_not_frontal(view: str) -> bool:
    return bool(_NOT_FRONTAL.search(view) or _terms(view) & _NOT_FRONTAL_TERMS)


def header_warnings(header: DicomHeader, file: FileBytes) -> list[WarningCode]:
    """What the header of an accepted image gives to know."""
    facts = header.facts
    terms = _terms(facts.view)
    noted = {
        WarningCode.SUFFIX: file.path.suffix.lower() in PICTURE_SUFFIXES,
        WarningCode.NO_VIEW: not terms & _FRONTAL or not facts.body_part,
        WarningCode.AP: "AP" in terms,
        WarningCode.AGE: facts.age_years is None,
        WarningCode.SECONDARY: facts.sop_class_uid in _COPIES or header.burned_in,
        WarningCode.LOSSY: header.lossy_ratio > LOSSY_RATIO,
        WarningCode.SYNTHETIC: SYNTHETIC_MARK in header.data[: header.place.start]
        if header.place
        else False,
    }
    return [warning for warning, found in noted.items() if found]
