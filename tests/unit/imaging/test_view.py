"""The view that a DICOM header states, by code and spelling."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import CR, EXPLICIT, SECONDARY_CAPTURE
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT
from deepcovid_edge.reasons import Reason, WarningCode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written

from stated_headers import (
    AP,
    CHEST,
    NO_VIEW,
    PA,
    PLACE,
    UNCLEAR,
    Decode,
    code,
    context,
    file,
    outcome,
    placed,
    raw,
)

# --- view --------------------------------------------------------------------------------------

FRONTAL_CODES = {"PosteroAnterior": (), "AnteroPosterior": (AP,), "Frontal": ()}


def test_every_view_code_counts_and_its_meaning_does_not(decode: Decode) -> None:
    for meaning in ("PA", "seitlich", "Knie"):
        view = Sequence([code(PLACE, "SCT", meaning)])
        template = file(ViewPosition=None, ViewCodeSequence=view)
        for value, name in context(4010):
            found = outcome(decode, placed(template, value))
            assert found == FRONTAL_CODES.get(name, Reason.VIEW), (value, name, meaning)


def test_view_codes_of_earlier_editions(decode: Decode) -> None:
    for value, expected in (("R-10214", ()), ("R-10218", Reason.VIEW), ("R-10222", Reason.VIEW)):
        for scheme in ("SRT", "SNM3", "99SDM"):
            view = Sequence([code(value, scheme)])
            assert outcome(decode, file(ViewPosition="", ViewCodeSequence=view)) == expected


def test_coded_chest_and_coded_view_leave_nothing_unstated(decode: Decode) -> None:
    data = file(
        BodyPartExamined=None,
        ViewPosition=None,
        AnatomicRegionSequence=Sequence([code(*CHEST)]),
        ViewCodeSequence=Sequence([code(*PA)]),
    )
    assert outcome(decode, data) == ()


def modified(*modifiers: Dataset) -> Dataset:
    return code(*PA, ViewModifierCodeSequence=Sequence(modifiers))


LEFT = ("399067008", "SCT", "lateral")
ASIDE = code("102536004", "SCT", "left lateral decubitus")
VIEWS: dict[str, tuple[Reason | tuple[WarningCode, ...], dict[str, Any]]] = {
    "two-views": (Reason.VIEW, {"ViewCodeSequence": Sequence([code(*PA), code(*LEFT)])}),
    "lateral-though-the-word-is-pa": (
        Reason.VIEW,
        {"ViewPosition": "PA", "ViewCodeSequence": Sequence([code(*LEFT)])},
    ),
    "pa-though-the-word-is-lateral": (
        Reason.VIEW,
        {"ViewPosition": "LL", "ViewCodeSequence": Sequence([code(*PA)])},
    ),
    "ap-though-the-word-is-pa": (
        (AP,),
        {"ViewPosition": "PA", "ViewCodeSequence": Sequence([code("399348003")])},
    ),
    "no-view": ((NO_VIEW,), {"ViewCodeSequence": Sequence([])}),
    "empty-view": ((NO_VIEW,), {"ViewCodeSequence": Sequence([Dataset()])}),
    "unknown-code": ((UNCLEAR,), {"ViewCodeSequence": Sequence([code("123456789")])}),
    "private": ((UNCLEAR,), {"ViewCodeSequence": Sequence([code("7", "99ACME", "PA")])}),
    "private-lateral": (
        Reason.VIEW,
        {"ViewCodeSequence": Sequence([code("7", "99ACME", "Thorax seitlich")])},
    ),
    "word-for-a-code": (Reason.VIEW, {"ViewCodeSequence": Sequence([code("LAT", "99ACME")])}),
    "cross-table": (
        Reason.VIEW,
        {"ViewCodeSequence": Sequence([modified(code("111069", "DCM", "Crosstable"))])},
    ),
    "unknown-modifier": ((UNCLEAR,), {"ViewCodeSequence": Sequence([modified(code("5", "99X"))])}),
    "no-modifier": ((), {"ViewCodeSequence": Sequence([modified()])}),
    "projection-with-a-name": (
        Reason.VIEW,
        {
            "ViewPosition": "AP",
            "ProjectionEponymousNameCodeSequence": Sequence([code("399002000", "SCT", "Lawrence")]),
        },
    ),
    "decubitus": (
        Reason.VIEW,
        {
            "ViewPosition": "AP",
            "PatientOrientationCodeSequence": Sequence(
                [code("102538003", PatientOrientationModifierCodeSequence=Sequence([ASIDE]))]
            ),
        },
    ),
    "standing": (
        (),
        {
            "ViewPosition": "PA",
            "PatientOrientationCodeSequence": Sequence([code("C86043", "NCIt", "erect")]),
        },
    ),
    "lies-on-the-right": (Reason.VIEW, {"ViewPosition": "AP", "PatientPosition": "HFDR"}),
    "lies-on-the-back": ((AP,), {"ViewPosition": "AP", "PatientPosition": "HFS"}),
}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("name", VIEWS)
def test_view_by_code(name: str, syntax: str, decode: Decode) -> None:
    expected, elements = VIEWS[name]
    assert outcome(decode, file(syntax, **{"ViewPosition": None, **elements})) == expected


SPELLINGS: dict[Reason | tuple[WarningCode, ...], list[str]] = {
    Reason.VIEW: [
        *(
            "LL",
            "RL",
            "ll",
            "LLAT",
            "RLAT",
            "XTLAT",
            "XTABLE LAT",
            "X-TABLE",
            "X TABLE",
            "CROSS-TABLE",
            "LATERAL",
            "Lateral",
            "lat.",
        ),
        *(
            "L.L.",
            "L LAT",
            "LT LATERAL",
            "LATERALE",
            "LATERO-LATERAL",
            "SEITLICH",
            "PROFIL",
            "PERFIL",
        ),
        *("RAO", "LAO", "RPO", "LPO", "OBLIQUE", "OBL", "PA OBLIQUE", "LLD", "RLD", "AP DECUBITUS"),
        *("POSTEROLATERAL", "LORDOTIC", "AP AXIAL", "боковая", "Правый боковой", "ПРОФИЛЬ"),
        *("ΠΛΑΓΙΑ", "側面", "侧位", "胸部側面", "측면", "جانبی", "CHEST_LAT", "PA\\LL", "MLO"),
        *("PA" + " " * 80 + "LATERAL", "LATERALGRAM", "SAGITTAL", "sagittale", "SAGITTALER"),
        *("TRANSVERSAL", "сагиттальная", "Οβελιαία", "矢状", "시상면", "boční", "skośna", "ferde"),
        *("LATL", "LTLAT", "BILAT", "APLAT", "APLATERAL", "CHESTLATVIEW", "LATCHEST", "LATERAAL"),
        *("RLATINSP", "LLATEXP", "CHESTLATADULT", "PLATUPRIGHT", "CHESTOBLERECT", "BED, SIDE"),
        *("LOBL", "RTOBL", "LTOBLQ", "OBLIQUA", "LAOOBLIQUE", "SIDE", "LEFT SIDE", "BEDSIDE SIDE"),
        *("BILATERAL LAT", "KLATKA LAT", "LATVENTILATED", "VENTILATOR LAT", "PLATTE SEITLICH"),
        *("BILATERALLAT", "KLATKALAT", "ПРОФИЛЬПРОФИЛАКТИКА", "両側位", "双侧卧位", "両側側面"),
        *("LAT PLATTHORAX", "PROFILAXIAL", "PA BILAT LAT"),
        *("viisto", "nghiêng", "צדדי", "مائل", "पार्श्व", "ด้านข้าง", "측와위"),
    ],
    (): [
        *("PA", "pa", "P.A.", "P/A", "P-A", "P A", "PA ERECT", "PA_UPRIGHT", "PAERECT", "CHEST PA"),
        *("POSTEROANTERIOR", "POSTERO-ANTERIOR", "Postero anterior", "POSTÉRO-ANTÉRIEUR"),
        *("POSTERIOR-ANTERIOR", "FRONTAL", "FACE", "DE FRENTE", "прямая", "задне-передняя"),
        *("正面", "後前位", "정면", "PA BILATERAL", "PA FLAT PLATE", "CHESTPA"),
        *("PA BILAT", "PA LATITUDE", "PA PLATTE", "正位両側"),
        *("PA INHALATION", "PA FLATPANEL", "PA PLATFORM", "KLATKI PIERSIOWEJ PA"),
    ],
    (AP,): [
        *(
            "AP",
            "ap",
            "A.P.",
            "AP SUPINE",
            "AP PORTABLE",
            "APSUPINE",
            "ANTEROPOSTERIOR",
            "AP PLATE",
        ),
        *("AP BED SIDE", "AP_BED_SIDE", "AP BED-SIDE", "AP VENTILATED", "AP ISOLATION"),
        *("ANTERO-POSTERIOR", "ANTÉRO-POSTÉRIEUR", "передне-задняя", "前后位", "PA\\AP", "AP/PA"),
    ],
    (NO_VIEW,): ["UPRIGHT", "SUPINE", "-", "UNKNOWN", "CHEST"],
    (UNCLEAR,): [
        *("XYZ", "PA XYZ", "1. AUFNAHME", "ابپ", "PA LIEGEND", "VD", "DV", "P", "PÀXYZ"),
        *("PA PROBLEM", "PA EXHALATION", "PA WIDE LATITUDE", "PA VENTILATORS", "PA PROFILAXIS"),
    ],
    Reason.BODY: ["SKULL PA", "AP ABDOMEN"],
}


@pytest.mark.parametrize(
    ("expected", "text"),
    [(expected, text) for expected, texts in SPELLINGS.items() for text in texts],
)
def test_view_as_it_is_spelled(
    expected: Reason | tuple[WarningCode, ...], text: str, decode: Decode
) -> None:
    found = outcome(decode, raw("ViewPosition", text.encode()))
    if expected == (UNCLEAR,):
        assert isinstance(found, tuple)
        assert UNCLEAR in found
    else:
        assert found == expected


@pytest.mark.parametrize("turn", [["A", "F"], ["P", "F"], ["AL", "FP"], ["L", "P"], ["a", "f"]])
def test_rows_or_columns_from_front_to_back_are_a_lateral(turn: list[str], decode: Decode) -> None:
    for view in ("PA", None):
        data = file(PatientOrientation=[part.upper() for part in turn], ViewPosition=view)
        assert outcome(decode, data) is Reason.VIEW


def test_of_what_an_image_shows_the_header_of_a_copy_is_asked_too(decode: Decode) -> None:
    for kind, modality in ((CR, "CR"), (SECONDARY_CAPTURE, "OT")):
        for elements in ({"BodyPartExamined": "HAND"}, {"ViewPosition": "LLAT"}):
            found = outcome(decode, file(SOPClassUID=kind, Modality=modality, **elements))
            assert found in (Reason.BODY, Reason.VIEW)
