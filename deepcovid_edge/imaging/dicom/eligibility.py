"""Eligibility: only frontal chest radiographs of adults are decoded; the header decides."""

from __future__ import annotations

import math
import re

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.elements import Elements
from deepcovid_edge.imaging.dicom.header import DicomHeader, PixelLayout
from deepcovid_edge.imaging.dicom.statements import ADULT_YEARS, FRONTAL, Statement, Term
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.pictures import PICTURE_SUFFIXES
from deepcovid_edge.imaging.radiograph import LOSSY_RATIO, SYNTHETIC_MARK
from deepcovid_edge.reasons import Reason, WarningCode

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
_MODALITIES = {"CR", "DX", "RG", "OT", "SC", "DR", "XR", ""}
"""OT and SC stand in copies; RG in images that were digitised; DR and XR are no defined terms, but
vendors write them for DX."""
_IMAGE_TYPE, _QUALITY_CONTROL = 0x00080008, 0x00280300
_WINDOW_CENTRE, _INTERCEPT, _SLOPE = 0x00281050, 0x00281052, 0x00281053
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_SPECIES, _SPECIES_CODES, _CODE_VALUE = 0x00102201, 0x00102202, 0x00080100
_OF_ANIMALS = (0x00102203, 0x00102292)
"""Whether a patient is neutered, and its breed: animals alone have them (PS3.3, C.7.1.1)."""
_DERIVATION, _LONGEST_DERIVATION = 0x00082111, 1024
"""The latter by PS3.5, 6.2: ST, bytes."""
_OTHER_PICTURES = re.compile(
    r"LOCALI[SZ]ER|TOMO(?!DE)|SUBTRACT|DUAL ?ENERGY|(?<!BACK)BONE|\bRIBS?\b|\bRIB ?SUPP"
    r"|SOFT ?TISSUE(?! ?WINDOW)"
)
"""What a device made of the exposure, in image type from its third value on (PS3.3,
C.8.11.3.1.4 and what vendors add) and in the derivation. AUTOMODE is no tomosynthesis."""
_PEOPLE = {"337915000", "L-85003"}
"""Species: codes of PS3.16, CID 7454."""
_PERSON = re.compile(r"(?<!NON)(?<!NON\W)\b(HUMAN|HOMO|MENSCH|HUMAIN|HUMANO|UMANO)\b")
_NO_SPECIES = re.compile(r"\W*|N\W?A|NONE|UNKNOWN|UNSPECIFIED|NOT (STATED|SPECIFIED)")
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
    if header.place is None or header.place.length == 0:
        raise NotAssessedError(Reason.TRUNCATED, "no pixels in the file")
    _check_layout(header.layout)
    _check_rescale(header.elements)
    _check_patient(header)


def _check_kind(header: DicomHeader) -> None:
    kind, modality = header.facts.sop_class_uid, header.facts.modality
    if kind == _DICOMDIR:
        raise NotAssessedError(Reason.NOT_IMAGE, "this is a DICOMDIR, a list of images")
    if kind == _DX_RAW or "PROCESSING" in header.intent:
        raise NotAssessedError(Reason.RAW)
    if not kind and header.place is None:
        raise NotAssessedError(Reason.TRUNCATED, "the header ends early")
    is_other = not _MODALITIES.issuperset(modality.split("\\"))
    if kind not in {_CR, _DX, *_COPIES}:
        name = _OTHER_CLASSES.get(kind) or (modality if is_other else "")
        name = name or f"SOP class {kind or 'not stated'}"
        raise NotAssessedError(Reason.MODALITY, f"this is {name}")
    if is_other:
        raise NotAssessedError(Reason.MODALITY, f"this is {modality}")
    if other := _other_picture(header.elements):
        raise NotAssessedError(Reason.MODALITY, f"this is {other}")


def _other_picture(elements: Elements) -> str:
    """What an X-ray image shows that is no radiograph of a person, or nothing."""
    for value in elements.texts(_IMAGE_TYPE)[2:]:
        if _OTHER_PICTURES.search(text := _spaced(value)) or "ENERGY" in text:
            return f"an image of type {value}"
    derivation = elements.raw(_DERIVATION)[:_LONGEST_DERIVATION].decode("latin-1")
    if _OTHER_PICTURES.search(_spaced(derivation)):
        return f"an image derived by {elements.word(_DERIVATION)}"
    if elements.word(_QUALITY_CONTROL) == "YES":
        return "an image for quality control"
    codes = {code.word(_CODE_VALUE) for code in elements.items(_SPECIES_CODES)} - {""}
    words = {word for word in (elements.word(_SPECIES),) if not _NO_SPECIES.fullmatch(word)}
    is_person = not codes.isdisjoint(_PEOPLE) or any(map(_PERSON.search, words))
    if is_person:
        return ""
    if animals := sorted(codes | words):
        return f"an image of the species {animals[0]}"
    traits = (elements.word(tag) for tag in _OF_ANIMALS)
    animal = next((trait for trait in traits if not _NO_SPECIES.fullmatch(trait)), None)
    return "" if animal is None else f"an image of an animal: {animal}"


def _spaced(text: str) -> str:
    """The words of a text in capitals, also those of `BoneSuppressed` and BONE_SUPPRESSED."""
    apart = re.sub("(?<=[a-z])(?=[A-Z])", " ", text)
    return re.sub("[^A-Z]+", " ", apart.upper())


def _check_layout(layout: PixelLayout) -> None:
    if layout.frames > 1:
        raise NotAssessedError(Reason.FRAMES, f"{layout.frames} pictures")
    if not layout.allocated:
        raise NotAssessedError(Reason.DECODE, "no Bits Allocated (0028,0100) before the pixels")
    bits = f"{layout.stored} of {number_of(layout.allocated, 'bit')}"
    if layout.allocated not in (8, 16):
        raise NotAssessedError(Reason.MODE, bits)
    if layout.stored < 2 or not layout.stored <= layout.high_bit + 1 <= layout.allocated:
        raise NotAssessedError(Reason.BITS, f"{bits}, the highest {layout.high_bit}")
    if layout.is_grey:
        return
    if layout.samples != 3 or layout.photometric not in _COLOURS or layout.stored != 8:
        colours = layout.photometric or "no photometric interpretation"
        detail = f"{number_of(layout.samples, 'channel')}, {colours}, {bits}"
        raise NotAssessedError(Reason.MODE, detail)


def _check_rescale(elements: Elements) -> None:
    """Reject half a rescale under a window, or a slope of 0: what the window means is not known.

    PS3.3, C.11.1: slope and intercept are both there, or a modality LUT, or none of them.
    """
    stated = {tag: elements.text(tag) for tag in (_SLOPE, _INTERCEPT)}
    numbers = [elements.decimal(tag) for tag in stated]
    is_whole = all(number is not None and math.isfinite(number) for number in numbers)
    is_whole = is_whole and numbers[0] != 0
    if is_whole or not any(stated.values()) or elements.items(_MODALITY_LUT):
        return
    if elements.raw(_WINDOW_CENTRE) or elements.items(_VOI_LUT):
        values = (value or "none" for value in stated.values())
        detail = "rescale slope {}, intercept {}".format(*values)
        raise NotAssessedError(Reason.DECODE, detail)


def _check_patient(header: DicomHeader) -> None:
    facts, stated = header.facts, header.part.terms | header.view.terms
    if Term.OTHER_PART in stated:
        shown = _worst(header.part, header.view, Term.OTHER_PART)
        raise NotAssessedError(Reason.BODY, f"marked as {shown}")
    if Term.CHILD in stated:
        shown = _worst(header.part, header.view, Term.CHILD)
        raise NotAssessedError(Reason.AGE, f"marked as {shown}")
    if Term.UNKNOWN in header.part.terms and Term.CHEST not in stated:
        raise NotAssessedError(Reason.BODY, f"marked as {facts.body_part}, which is not understood")
    if Term.NOT_FRONTAL in stated:
        shown = _worst(header.view, header.part, Term.NOT_FRONTAL)
        raise NotAssessedError(Reason.VIEW, f"marked as {shown}")
    if any(part[0] in "AP" for part in header.orientation):
        # PS3.3, C.7.6.1.1.1: rows or columns that run from front to back.
        detail = "patient orientation " + "\\".join(header.orientation)
        raise NotAssessedError(Reason.VIEW, detail)
    if facts.age_years is not None and facts.age_years < ADULT_YEARS:
        raise NotAssessedError(Reason.AGE, f"{facts.age_years:g} years")


def _worst(first: Statement, second: Statement, term: Term) -> str:
    return (first if term in first.terms else second).shown


def header_warnings(header: DicomHeader, file: FileBytes) -> list[WarningCode]:
    """What the header of an accepted image gives to know."""
    facts, stated = header.facts, header.part.terms | header.view.terms
    no_view = not stated & FRONTAL and Term.UNKNOWN not in header.view.terms
    noted = {
        WarningCode.SUFFIX: file.path.suffix.lower() in PICTURE_SUFFIXES,
        WarningCode.NO_VIEW: no_view or Term.CHEST not in stated,
        WarningCode.NOT_UNDERSTOOD: Term.UNKNOWN in stated,
        WarningCode.AP: Term.AP in stated,
        WarningCode.AGE: facts.age_years is None,
        WarningCode.SECONDARY: facts.sop_class_uid in _COPIES or header.burned_in,
        WarningCode.LOSSY: header.lossy_ratio > LOSSY_RATIO,
        WarningCode.SYNTHETIC: SYNTHETIC_MARK in header.data[: header.place.start]
        if header.place
        else False,
    }
    return [warning for warning, found in noted.items() if found]
