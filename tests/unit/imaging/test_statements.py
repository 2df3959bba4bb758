"""What a DICOM header states of body part, view and age is understood, or said not to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import CR, EXPLICIT, SECONDARY_CAPTURE, dataset, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written

Decode = Callable[..., Radiograph]

PIXELS = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
NO_VIEW, AP, UNCLEAR = WarningCode.NO_VIEW, WarningCode.AP, WarningCode.NOT_UNDERSTOOD
CHEST = ("816094009", "SCT", "Chest")
PA = ("272479007", "SCT", "postero-anterior")


def code(value: str, scheme: str = "SCT", meaning: str = "?", **elements: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for keyword, content in elements.items():
        setattr(item, keyword, content)
    return item


def long_code(keyword: str, value: str) -> Dataset:
    item = Dataset()
    item.CodeMeaning = "?"
    setattr(item, keyword, value)
    return item


def file(syntax: str = EXPLICIT, **elements: Any) -> bytes:
    return written(dataset(PIXELS, **elements), syntax)


def raw(keyword: str, value: bytes, **elements: Any) -> bytes:
    """A file with these bytes as a value, whatever its kind allows."""
    value += b" " * (len(value) % 2)
    place = b"Q" * len(value)
    kind = "LO" if len(place) > 16 else None
    image = dataset(PIXELS, **elements)
    if kind:
        image.add_new(keyword, kind, place.decode())
    else:
        setattr(image, keyword, place.decode())
    return written(image).replace(place, value)


PLACE = "Q" * 16


def placed(template: bytes, value: str) -> bytes:
    """A file with this text where another has `PLACE`."""
    return template.replace(PLACE.encode(), value.encode().ljust(16))


def outcome(decode: Decode, data: bytes) -> Reason | tuple[WarningCode, ...]:
    try:
        return decode(data).warnings
    except NotAssessedError as error:
        return error.reason


def context(group: int) -> Iterator[tuple[str, str]]:
    """Code values of a context group of PS3.16, as pydicom has it, and their retired twins."""
    retired = {new: old for old, new in mapping["SRT"].items()}
    for scheme, names in cid_concepts[group].items():
        for name in names:
            coded: Any = concepts[scheme][name]
            for value, (_, groups) in coded.items():
                if group in groups:
                    yield value, name
                    if value in retired:
                        yield retired[value], name


# --- body part ---------------------------------------------------------------------------------

CHEST_NAMES = {"Chest", "IntraThoracic", "Mediastinum", "Thorax", "Lung"}


@pytest.mark.parametrize("group", [4, 4009, 4031])
def test_every_coded_region_but_the_chest_is_another_part(group: int, decode: Decode) -> None:
    template = file(BodyPartExamined=None, AnatomicRegionSequence=Sequence([code(PLACE)]))
    for value, name in context(group):
        found = outcome(decode, placed(template, value))
        assert found == (() if name in CHEST_NAMES else Reason.BODY), (value, name)


@pytest.mark.parametrize("scheme", ["SCT", "SRT", "SNM3", "99SDM", "", "sct"])
@pytest.mark.parametrize("value", ["43799004", "51185008", "T-D3000", "T-28000", "39607008"])
def test_earlier_codes_of_the_chest_under_any_name_of_snomed(
    value: str, scheme: str, decode: Decode
) -> None:
    region = Sequence([code(value, scheme, "El pecho")])
    assert outcome(decode, file(BodyPartExamined=None, AnatomicRegionSequence=region)) == ()


HAND, ABDOMEN = code("85562004"), code("818981001")
REGIONS: dict[str, tuple[Reason | tuple[WarningCode, ...], dict[str, Any]]] = {
    "none": ((NO_VIEW,), {"AnatomicRegionSequence": Sequence([])}),
    "an-empty-item": ((NO_VIEW,), {"AnatomicRegionSequence": Sequence([Dataset()])}),
    "chest-and-hand": (Reason.BODY, {"AnatomicRegionSequence": Sequence([code(*CHEST), HAND])}),
    "hand-whose-meaning-is-chest": (
        Reason.BODY,
        {"AnatomicRegionSequence": Sequence([code("85562004", "SCT", "Chest")])},
    ),
    "hand-though-the-body-part-is-chest": (
        Reason.BODY,
        {"BodyPartExamined": "CHEST", "AnatomicRegionSequence": Sequence([HAND])},
    ),
    "chest-though-the-body-part-is-hand": (
        Reason.BODY,
        {"BodyPartExamined": "HAND", "AnatomicRegionSequence": Sequence([code(*CHEST)])},
    ),
    "structure": (Reason.BODY, {"PrimaryAnatomicStructureSequence": Sequence([ABDOMEN])}),
    "lung-structure": ((), {"PrimaryAnatomicStructureSequence": Sequence([code("T-28000")])}),
    "long-code": (
        Reason.BODY,
        {"AnatomicRegionSequence": Sequence([long_code("LongCodeValue", "85562004")])},
    ),
    "urn": (
        Reason.BODY,
        {
            "AnatomicRegionSequence": Sequence(
                [long_code("URNCodeValue", "http://snomed.info/id/85562004")]
            )
        },
    ),
    "chest-as-urn": (
        (),
        {
            "AnatomicRegionSequence": Sequence(
                [long_code("URNCodeValue", "http://snomed.info/id/816094009")]
            )
        },
    ),
    "thorax-of-radlex": (
        (),
        {"AnatomicRegionSequence": Sequence([code("RID1243", "RADLEX", "thorax")])},
    ),
    "thorax-of-fma": ((), {"AnatomicRegionSequence": Sequence([code("9576", "FMA")])}),
    "hand-of-fma": (Reason.BODY, {"AnatomicRegionSequence": Sequence([code("9712", "FMA")])}),
    "private": (Reason.BODY, {"AnatomicRegionSequence": Sequence([code("17", "99ACME", "CHEST")])}),
    "private-beside-the-word": (
        (UNCLEAR,),
        {
            "BodyPartExamined": "CHEST",
            "AnatomicRegionSequence": Sequence([code("17", "99ACME", "Thx")]),
        },
    ),
    "private-whose-meaning-is-another-part": (
        Reason.BODY,
        {
            "BodyPartExamined": "CHEST",
            "AnatomicRegionSequence": Sequence([code("17", "99ACME", "Knee")]),
        },
    ),
    "private-with-an-equivalent": (
        (),
        {
            "AnatomicRegionSequence": Sequence(
                [code("17", "99ACME", "Thx", EquivalentCodeSequence=Sequence([code(*CHEST)]))]
            )
        },
    ),
    "word-for-a-code": ((), {"AnatomicRegionSequence": Sequence([code("CHEST", "99ACME")])}),
    "only-a-meaning": (
        Reason.BODY,
        {"AnatomicRegionSequence": Sequence([long_code("CodeMeaning", "Chest")])},
    ),
}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("name", REGIONS)
def test_region_by_code(name: str, syntax: str, decode: Decode) -> None:
    expected, elements = REGIONS[name]
    data = file(syntax, **{"BodyPartExamined": None, **elements})
    assert outcome(decode, data) == expected


def test_something_else_than_a_sequence_is_not_understood(decode: Decode) -> None:
    image = dataset(PIXELS, BodyPartExamined=None)
    image.add_new(0x00082218, "LO", "HAND")
    assert outcome(decode, written(image)) is Reason.BODY


def test_sequence_of_unknown_representation_is_read(decode: Decode) -> None:
    """PS3.5, 6.2.2: what an archive did not know is written as UN, its inside implicit."""
    explicit = file(BodyPartExamined=None)
    at = explicit.index(b"\x10\x00\x10\x00PN")
    for region, expected in ((HAND, Reason.BODY), (code(*CHEST), ())):
        implicit = file(IMPLICIT, AnatomicRegionSequence=Sequence([region]))
        start = implicit.index(b"\x08\x00\x18\x22") + 4
        content = implicit[start : implicit.index(b"\x10\x00\x10\x00")]  # length and items
        element = b"\x08\x00\x18\x22UN\0\0" + content
        assert outcome(decode, explicit[:at] + element + explicit[at:]) == expected
    assert outcome(decode, explicit) == (NO_VIEW,)


CHEST_TEXTS = [
    *("CHEST", "chest", " Chest ", "THORAX", "TÓRAX", "tórax", "TORACE", "BRUSTKORB", "POITRINE"),
    *("LUNGS", "CHEST_PA", "CHEST, PA", "CHEST^1 VIEW", "PORT CHEST", "Göğüs", "Klatka piersiowa"),
    *("Hrudník", "ГРУДНАЯ КЛЕТКА", "Органы грудной клетки", "ОГК", "грудна клітка", "Θώρακας"),
    *(
        "ΘΩΡΑΚΑΣ",
        "胸部",
        "胸部X線",
        "胸部正面",
        "肺",
        "흉부",
        "قفسه سینه",
        "ریه",
        "صدر",
        "בית החזה",
    ),
    *("छाती", "ทรวงอก", "ngực", "phổi", "płuca"),
]


@pytest.mark.parametrize("text", CHEST_TEXTS)
def test_words_for_the_chest_in_many_languages(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) == ()


OTHER_TEXTS = [
    *(
        "HAND",
        "KNEE",
        "TSPINE",
        "RIBS",
        "HEART",
        "CHEST ABDOMEN",
        "CHESTABDOMEN",
        "КОЛЕНО",
        "колено",
    ),
    *(
        "ΓΟΝΑΤΟ",
        "膝",
        "膝関節",
        "무릎",
        "زانو",
        "ركبة",
        "ברך",
        "घुटना",
        "เข่า",
        "GENOU",
        "胸椎",
        "胸骨",
    ),
    *("грудной отдел позвоночника", "胸腹部", "胸部腹部", "đầu gối", "XYZ", "OTHER", "CHEST\\HAND"),
]


@pytest.mark.parametrize("text", OTHER_TEXTS)
def test_words_for_other_parts_and_words_that_are_not_understood(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) is Reason.BODY


ENCODED = [
    *(("TÓRAX", "latin_1"), ("Грудная клетка", "cp1251"), ("грудная клетка", "iso8859_5")),
    *(("ОГК", "koi8_r"), ("Θώρακας", "iso8859_7"), ("胸部", "gb18030"), ("胸部", "shift_jis")),
    *(("胸部", "iso2022_jp"), ("흉부", "euc_kr"), ("صدر", "iso8859_6"), ("صدر", "cp1256")),
    *(("חזה", "iso8859_8"), ("ทรวงอก", "tis_620"), ("Göğüs", "cp1254"), ("Hrudník", "cp1250")),
]
KNEES = [
    *(("КОЛЕНО", "cp1251"), ("колено", "iso8859_5"), ("Колено", "koi8_r"), ("ΓΟΝΑΤΟ", "iso8859_7")),
    *(("膝关节", "gb18030"), ("膝", "shift_jis"), ("膝", "iso2022_jp"), ("무릎", "cp949")),
    *(("ركبة", "iso8859_6"), ("ברך", "iso8859_8"), ("Genoux à", "latin_1"), ("Dizüstü", "cp1254")),
]


@pytest.mark.parametrize("stated", [None, "", "ISO_IR 100", "ISO_IR 192", "\\ISO 2022 IR 87", "X"])
def test_bytes_are_understood_whatever_character_set_is_stated(
    stated: str | None, decode: Decode
) -> None:
    elements = {} if stated is None else {"SpecificCharacterSet": "ISO_IR 6"}
    for texts, expected in ((ENCODED, ()), (KNEES, Reason.BODY)):
        for text, codec in texts:
            data = raw("BodyPartExamined", text.encode(codec), **elements)
            if stated is not None:
                data = raw("BodyPartExamined", text.encode(codec), **elements).replace(
                    b"ISO_IR 6", stated.encode().ljust(8)[:8]
                )
            assert outcome(decode, data) == expected, (text, codec)


def test_designations_of_iso_2022_do_not_hide_a_word(decode: Decode) -> None:
    for text, codec, escape in (
        ("흉부", "euc_kr", b"\x1b$)C"),
        ("胸部", "gb2312", b"\x1b$)A"),
        ("ОГК", "iso8859_5", b"\x1b-L"),
    ):
        assert outcome(decode, raw("BodyPartExamined", escape + text.encode(codec))) == (), text


@pytest.mark.parametrize("text", ["", " ", "-", "?", "UNKNOWN", "Undefined", "\0"])
def test_body_part_that_states_nothing_is_not_stated(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode()) if text else file(BodyPartExamined="")
    assert outcome(decode, data) == (NO_VIEW,)


def test_part_of_the_body_part_that_is_not_understood_is_said(decode: Decode) -> None:
    assert outcome(decode, file(BodyPartExamined="CHEST ZONOGRAM")) == (UNCLEAR,)
    assert outcome(decode, raw("BodyPartExamined", b"CHEST " + b"X" * 70 + b" ZEN")) == (UNCLEAR,)


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
        *("LL", "RL", "ll", "LLAT", "RLAT", "XTLAT", "XTABLE LAT", "LATERAL", "Lateral", "lat."),
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
        *("PA" + " " * 80 + "LATERAL", "LATERALGRAM"),
    ],
    (): [
        *("PA", "pa", "P.A.", "P/A", "P-A", "P A", "PA ERECT", "PA_UPRIGHT", "PAERECT", "CHEST PA"),
        *("POSTEROANTERIOR", "POSTERO-ANTERIOR", "Postero anterior", "POSTÉRO-ANTÉRIEUR"),
        *("POSTERIOR-ANTERIOR", "FRONTAL", "FACE", "DE FRENTE", "прямая", "задне-передняя"),
        *("正面", "後前位", "정면", "PA BILATERAL", "PA FLAT PLATE", "CHESTPA"),
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
        *("ANTERO-POSTERIOR", "ANTÉRO-POSTÉRIEUR", "передне-задняя", "前后位", "PA\\AP", "AP/PA"),
    ],
    (NO_VIEW,): ["UPRIGHT", "SUPINE", "-", "UNKNOWN", "CHEST"],
    (UNCLEAR,): ["XYZ", "PA XYZ", "1. AUFNAHME", "ابپ", "PA LIEGEND", "VD", "DV", "P", "PÀXYZ"],
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


# --- age ---------------------------------------------------------------------------------------

STUDY = "20200326"
CHILDREN = [
    *("009Y", "9Y", "9 Y", "009y", "9", "09", " 9Y ", "9Yr", "9 years", "108M", "108 M", "52W"),
    *(
        "300D",
        "0009Y",
        "9.5Y",
        "9,5 Y",
        "9Y.",
        "017Y",
        "17.9Y",
        "001D",
        "٩Y",
        "\uff19Y",
        "9歳",
        "9 лет",
    ),
    *("062Y\\009Y", "000Y", "9ans"),
]
ADULTS = ["062Y", "62Y", "62", "62 Y", "062y", "62 years", "900M", "18Y", "018Y", "62歳", "6600D"]
NOT_AGES = ["Y", "999Y", "130Y", "121Y", "-1Y", "?", "062X", "Y062", "SIXTY", "1e1Y", "12345", "9J"]


@pytest.mark.parametrize("birth", [None, "", "19570402"])
def test_age_of_a_child_however_it_is_spelled(birth: str | None, decode: Decode) -> None:
    for text in CHILDREN:
        data = raw("PatientAge", text.encode(), PatientBirthDate=birth)
        assert outcome(decode, data) is Reason.AGE, text


def test_age_of_an_adult_however_it_is_spelled(decode: Decode) -> None:
    for text in ADULTS:
        assert outcome(decode, raw("PatientAge", text.encode(), PatientBirthDate=None)) == (), text


def test_age_that_is_none_is_not_known(decode: Decode) -> None:
    for text in NOT_AGES:
        data = raw("PatientAge", text.encode(), PatientBirthDate=None)
        assert outcome(decode, data) == (WarningCode.AGE,), text


BORN_2012 = [
    *(
        "20120101",
        "2012.01.01",
        "2012-01-01",
        "2012/01/01",
        "2012-1-1",
        "201201",
        "2012",
        "2012-01",
    ),
    *("01.02.2012", "1/2/2012", "20120101120000", "20120001", "20120100", "20121399", "20120230"),
    *("\uff12\uff10\uff11\uff120101", "2012-01-01T00:00:00", " 20120101"),
]
BORN_1957 = ["19570402", "1957.04.02", "1957-04-02", "195704", "1957", "02.04.1957", "19570231"]
NOT_BORN = ["20250101", "2025", "18950101", "00010101", "0000", "00000000", "?", "57", "570402"]


def dated(born: str, **elements: Any) -> bytes:
    return raw("PatientBirthDate", born.encode(), PatientAge=None, **elements)


def test_date_of_birth_however_it_is_written(decode: Decode) -> None:
    for texts, expected in (
        (BORN_2012, Reason.AGE),
        (BORN_1957, ()),
        (NOT_BORN, (WarningCode.AGE,)),
    ):
        for text in texts:
            assert outcome(decode, dated(text)) == expected, text


EXAMINED = ["AcquisitionDate", "ContentDate", "SeriesDate", "PerformedProcedureStepStartDate"]


@pytest.mark.parametrize("study", [None, "", "?"])
def test_without_a_study_date_other_dates_of_the_examination_count(
    study: str | None, decode: Decode
) -> None:
    for keyword, taken in (
        *((keyword, "20210315") for keyword in EXAMINED),
        ("AcquisitionDateTime", "20210315101112.000+0100"),
    ):
        for born, expected in (("20120101", Reason.AGE), ("19570402", ())):
            data = dated(born, StudyDate="" if study == "?" else study, **{keyword: taken})
            assert outcome(decode, data) == expected, (keyword, born)


def test_date_of_a_copy_shows_a_child_but_no_adult(decode: Decode) -> None:
    for keyword in ("InstanceCreationDate", "DateOfSecondaryCapture"):
        for born, expected in (("20120101", Reason.AGE), ("20020101", (WarningCode.AGE,))):
            assert outcome(decode, dated(born, StudyDate="", **{keyword: "20210315"})) == expected


def test_of_two_ages_the_younger_counts(decode: Decode) -> None:
    for age, born in (("062Y", "20120101"), ("008Y", "19570402")):
        assert outcome(decode, file(PatientAge=age, PatientBirthDate=born)) is Reason.AGE


def test_age_is_kept_of_one_that_can_be(decode: Decode) -> None:
    for age, born in (("062Y", "20250101"), ("062Y", "17000101"), ("999Y", "19570402")):
        radiograph = decode(file(PatientAge=age, PatientBirthDate=born))
        assert radiograph.dicom is not None
        assert radiograph.dicom.age_years == pytest.approx(62, abs=1)


# --- kind of image -----------------------------------------------------------------------------

OTHER_KINDS: dict[str, tuple[Reason, dict[str, Any]]] = {
    "localizer": (Reason.MODALITY, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "tomosynthesis": (
        Reason.MODALITY,
        {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]},
    ),
    "bone-image": (Reason.MODALITY, {"ImageType": ["DERIVED", "PRIMARY", "", "DUAL_ENERGY_BONE"]}),
    "dog": (Reason.MODALITY, {"PatientSpeciesDescription": "CANINE"}),
    "dog-by-code": (
        Reason.MODALITY,
        {"PatientSpeciesCodeSequence": Sequence([code("448771007", "SCT", "Canis")])},
    ),
    "phantom": (Reason.MODALITY, {"QualityControlImage": "YES"}),
    "two-modalities": (Reason.MODALITY, {"Modality": ["DX", "CT"]}),
    "raw-in-small-letters": (Reason.RAW, {"PresentationIntentType": "For Processing"}),
    "raw-with-an-underscore": (Reason.RAW, {"PresentationIntentType": "FOR_PROCESSING"}),
    "frames-with-a-sign": (Reason.FRAMES, {"NumberOfFrames": "+2"}),
    "frames-in-a-second-value": (Reason.FRAMES, {"NumberOfFrames": ["1", "2"]}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_image_of_another_kind(name: str, decode: Decode) -> None:
    reason, elements = OTHER_KINDS[name]
    assert outcome(decode, file(**elements)) is reason


def test_person_and_usual_image_types_are_read(decode: Decode) -> None:
    for elements in (
        {"PatientSpeciesDescription": "Homo sapiens"},
        {"PatientSpeciesCodeSequence": Sequence([code("337915000", "SCT", "Mensch")])},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "", "RAD", "2IMAGE"]},
        {"QualityControlImage": "NO"},
    ):
        assert outcome(decode, file(**elements)) == ()


def test_anything_but_no_about_burned_in_text_is_said(decode: Decode) -> None:
    for text, expected in (("YES", True), ("yes", True), ("Y", True), ("JA", True), ("NO", False)):
        found = outcome(decode, file(BurnedInAnnotation=text))
        assert found == ((WarningCode.SECONDARY,) if expected else ())
