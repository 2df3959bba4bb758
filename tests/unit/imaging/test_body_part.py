"""The body part that a DICOM header states, by code, word and script."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import EXPLICIT, dataset, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT
from deepcovid_edge.reasons import Reason, WarningCode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written

from stated_headers import (
    CHEST,
    NO_VIEW,
    PIXELS,
    PLACE,
    UNCLEAR,
    Decode,
    code,
    context,
    file,
    long_code,
    outcome,
    placed,
    raw,
)

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
        *("胸部DR", "DR胸部正位", "胸部平片", "胸片", "胸", "흉부촬영"),
        "肺",
        "흉부",
        "قفسه سینه",
        "ریه",
        "صدر",
        "בית החזה",
    ),
    *("छाती", "ทรวงอก", "ngực", "phổi", "płuca", "RTG klatki piersiowej"),
    *("LUNGS BILAT", "LUNGS_BILAT", "BILAT. LUNGS", "CHEST, BILAT", "POLMONI BILATERALI"),
    *("両側肺", "双侧肺", "胸部(両側)", "两侧肺部", "양측 폐", "KLATKAPIERSIOWA", "KLAT. PIERS."),
    *("CHEST VENTILATOR", "CHEST VENTILATION", "THORAX PLATTE", "CHEST LATITUDE"),
    *("ОГК ПРОФИЛАКТИКА", "TORAX PROFILACTICO", "PROFILAKTYKA KLATKI"),
    *("CHEST INHALATION", "CHEST VENTILATED", "CHEST ISOLATION", "CHEST BED SIDE"),
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
    *(
        "грудной отдел позвоночника",
        "胸腹部",
        "胸部腹部",
        "胸椎",
        "胸骨DR",
        "đầu gối",
        "XYZ",
        "OTHER",
        "CHEST\\HAND",
    ),
]


@pytest.mark.parametrize("text", OTHER_TEXTS)
def test_words_for_other_parts_and_words_that_are_not_understood(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) is Reason.BODY


@pytest.mark.parametrize(
    "text", ["ОГК ПРОФИЛАКТИЧЕСКАЯ", "CHEST PROFILAXIS", "LUNGS BILATERALES?!"]
)
def test_words_that_only_look_like_views_refuse_no_chest(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) in ((), (UNCLEAR,))


CHILDREN = [
    *("PEDIATRIC CHEST", "CHEST INFANT", "CHEST NEONATE", "CHEST PED", "CHEST_PEDS", "BABYGRAM"),
    *("Paediatric", "NEWBORN CHEST", "NEW BORN", "CHESTINFANT", "CHILD'S CHEST", "CHEST NICU"),
    *("PREMATURE", "ADOLESCENT CHEST", "Kinderthorax", "Thorax Kind", "Thorax Säugling"),
    *("Frühgeborenes", "Thorax Neugeborene", "Pädiatrie", "thorax enfant", "nouveau-né", "BÉBÉ"),
    *("nourrisson", "tórax niño", "TORAX PEDIATRICO", "recién nacido", "tórax criança", "bebê"),
    *("torace bambino", "neonato", "pasgeborene", "lungor barn", "nyfødt", "keuhkot lapsi"),
    *("klatka dziecko", "noworodek", "hrudník dítě", "gyermek", "çocuk göğüs", "copil", "anak"),
    *("phổi nhi", "sơ sinh", "ребёнок", "Грудная клетка детская", "новорожденный", "дитина"),
    *("παιδί", "ΝΕΟΓΝΟ", "صدر طفل", "أطفال", "نوزاد", "ילד", "शिशु", "ทรวงอกเด็ก", "ทารก"),
    *("小児胸部", "新生児", "儿童胸部", "婴儿", "소아흉부", "신생아", "CHEST\\PED"),
]


@pytest.mark.parametrize("text", CHILDREN)
def test_words_for_a_child_in_many_languages(text: str, decode: Decode) -> None:
    """Whatever the age: it may be that of the mother."""
    for age in ({}, {"PatientAge": None, "PatientBirthDate": None}):
        data = raw("BodyPartExamined", text.encode(), SpecificCharacterSet="ISO_IR 192", **age)
        assert outcome(decode, data) is Reason.AGE


def test_child_by_view_or_by_the_meaning_of_a_private_code(decode: Decode) -> None:
    assert outcome(decode, raw("ViewPosition", b"PA INFANT")) is Reason.AGE
    region = Sequence([code("17", "99ACME", "Pediatric chest")])
    assert outcome(decode, file(AnatomicRegionSequence=region)) is Reason.AGE


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


TOO_LONG = b" " * 2000 + b"?"


def test_a_text_that_is_too_long_is_not_understood(decode: Decode) -> None:
    """And never not stated; what is refused in its beginning is refused."""
    assert outcome(decode, raw("BodyPartExamined", b"CHEST" + TOO_LONG)) == Reason.BODY
    assert outcome(decode, raw("BodyPartExamined", b"HAND" + TOO_LONG)) == Reason.BODY
    assert outcome(decode, raw("ViewPosition", b"PA" + TOO_LONG)) == (UNCLEAR,)
    assert outcome(decode, raw("ViewPosition", b"LL" + TOO_LONG)) == Reason.VIEW
    assert outcome(decode, raw("PatientAge", b"009Y\\" + TOO_LONG)) == Reason.AGE
    long = "T-D3000" + " " * 2000 + "\\T-D3000"
    region = Sequence([long_code("LongCodeValue", long)])
    assert (
        outcome(decode, file(BodyPartExamined=None, AnatomicRegionSequence=region)) == Reason.BODY
    )
    assert outcome(decode, raw("BodyPartExamined", b"CHEST" + b" " * 3000)) == ()


@pytest.mark.parametrize("keyword", ["BodyPartExamined", "ViewPosition", "PatientAge"])
@pytest.mark.parametrize(
    "text", [b"?" + b" " * 32_000 + b"?", b"POSTER" * 10_000, b"ANTER_" * 10_000]
)
def test_a_long_text_is_read_in_little_time(keyword: str, text: bytes, decode: Decode) -> None:
    start = time.monotonic()
    outcome(decode, raw(keyword, text))
    assert time.monotonic() - start < 5


def test_part_of_the_body_part_that_is_not_understood_is_said(decode: Decode) -> None:
    assert outcome(decode, file(BodyPartExamined="CHEST ZONOGRAM")) == (UNCLEAR,)
    assert outcome(decode, raw("BodyPartExamined", b"CHEST " + b"X" * 70 + b" ZEN")) == (UNCLEAR,)
