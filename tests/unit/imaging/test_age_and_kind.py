"""Age and kind of image that a DICOM header states."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from pydicom.sequence import Sequence

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason, WarningCode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written

from stated_headers import PLACE, Decode, code, file, outcome, placed, raw

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
    *(
        "062Y\\009Y",
        "000Y",
        "9ans",
        "9J",
        "9A",
        "9 Años",
        "17Jahre",
        "8 mois",
        "7个月",
        "9살",
    ),
    *("1Y6M", "17Y11M", "1Y 6M", "17Y 11M 3D", "6/12", "50/52"),
]
ADULTS = [
    "062Y",
    "62Y",
    "62",
    "62 Y",
    "062y",
    "62 years",
    "900M",
    "18Y",
    "018Y",
    "62歳",
    "6600D",
    "17Y13M",
    "62J",
]
NOT_AGES = [
    "Y",
    "999Y",
    "130Y",
    "121Y",
    "-1Y",
    "?",
    "062X",
    "Y062",
    "SIXTY",
    "1e1Y",
    "12345",
    "9X",
    "9Y8",
    "9/7",
]


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


def test_eighteenth_birthday_makes_an_adult_and_the_day_before_does_not(decode: Decode) -> None:
    template = raw("PatientBirthDate", PLACE.encode(), PatientAge=None, StudyDate=STUDY)
    for year in range(1990, 2002):
        for day in ("0101", "0228", "0301", "0326", "1231"):
            before = datetime.date(year + 18, int(day[:2]), int(day[2:])) - datetime.timedelta(1)
            for taken, expected in ((f"{year + 18}{day}", ()), (f"{before:%Y%m%d}", Reason.AGE)):
                data = placed(template, f"{year}{day}").replace(STUDY.encode(), taken.encode())
                assert outcome(decode, data) == expected, (year, day, taken)


def test_of_two_ages_the_younger_counts(decode: Decode) -> None:
    for age, born in (("062Y", "20120101"), ("008Y", "19570402")):
        assert outcome(decode, file(PatientAge=age, PatientBirthDate=born)) is Reason.AGE


NO_DATES = ["19000101", "18000101", "00010101", "19010101", "19700101", "19791231"]


@pytest.mark.parametrize("taken", NO_DATES)
def test_a_date_before_digital_films_makes_no_adult_a_child(taken: str, decode: Decode) -> None:
    for born in (taken, "18000101"):
        for age, expected in (("055Y", ()), ("009Y", Reason.AGE), (None, (WarningCode.AGE,))):
            data = raw("PatientBirthDate", born.encode(), PatientAge=age, StudyDate=taken)
            assert outcome(decode, data) == expected, (born, age)


def test_behind_a_date_before_digital_films_another_one_counts(decode: Decode) -> None:
    for keyword in ("ContentDate", "InstanceCreationDate"):
        for study in ("19000101", "00010101"):
            data = dated("20120101", StudyDate=study, **{keyword: "20210315"})
            assert outcome(decode, data) is Reason.AGE, (keyword, study)
    assert outcome(decode, dated("19700101", StudyDate="19800101")) is Reason.AGE


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
    "without-ribs": (
        Reason.MODALITY,
        {"DerivationDescription": "Bone suppression; rib removal"},
    ),
    **{
        f"derived by {text}": (Reason.MODALITY, {"DerivationDescription": text})
        for text in (
            *("BONE SUPPRESSED", "BONE_SUPPRESSED", "BoneSuppression", "NOBONE", "RibSuppression"),
            *("SOFT TISSUE", "SoftTissue", "TOMO", "TOMO SLICE", "DUAL_ENERGY", "x" * 99 + " bone"),
        )
    },
    **{
        f"of type {text}": (Reason.MODALITY, {"ImageType": ["DERIVED", "PRIMARY", "", text]})
        for text in ("TOMO_PROJ", "LINEARTOMO", "SOFT_TISSUE", "BONE", "SUBTRACTED", "RIB_SUPP")
    },
    "phantom-in-words": (Reason.BODY, {"BodyPartExamined": "CHEST PHANTOM"}),
    "dog-in-words": (Reason.BODY, {"BodyPartExamined": "DOG CHEST"}),
    "dog": (Reason.MODALITY, {"PatientSpeciesDescription": "CANINE"}),
    "breed": (Reason.MODALITY, {"PatientBreedDescription": "Beagle"}),
    "neutered": (Reason.MODALITY, {"PatientSexNeutered": "ALTERED"}),
    "ape": (Reason.MODALITY, {"PatientSpeciesDescription": "NON-HUMAN PRIMATE"}),
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


@pytest.mark.parametrize("text", ["Lossy JPEG, ratio 10", "Use of ribbon", "Auto-mode", ""])
def test_other_derivations_are_no_other_kind(text: str, decode: Decode) -> None:
    assert outcome(decode, file(DerivationDescription=text)) == outcome(decode, file())


PEOPLE = [
    "Homo sapiens",
    "HUMAN BEING",
    "Homo sapiens (organism)",
    "N/A",
    "UNKNOWN",
    "Human, adult",
]


READ: list[dict[str, Any]] = [
    *({"PatientSpeciesDescription": text} for text in PEOPLE),
    *({"Modality": kind} for kind in ("DR", "XR", ["CR", "DX"])),
    {"PatientSpeciesCodeSequence": Sequence([code("337915000", "SCT", "Mensch")])},
    {"ImageType": ["DERIVED", "PRIMARY"]},
    {"ImageType": ["ORIGINAL", "PRIMARY", "", "RAD", "2IMAGE"]},
    *({"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("AUTO_MODE", "AUTOMODE")),
    *(
        {"DerivationDescription": text}
        for text in ("Energy 120 kVp", "Soft tissue window applied", "Automode")
    ),
    {"QualityControlImage": "NO"},
    {"PatientSexNeutered": "", "PatientBreedDescription": "N/A"},
    {"PatientSpeciesDescription": "HUMAN", "PatientSexNeutered": "UNALTERED"},
]


def test_person_and_usual_image_types_are_read(decode: Decode) -> None:
    for elements in READ:
        assert outcome(decode, file(**elements)) == (), elements


def test_anything_but_no_about_burned_in_text_is_said(decode: Decode) -> None:
    for text, expected in (("YES", True), ("yes", True), ("Y", True), ("JA", True), ("NO", False)):
        found = outcome(decode, file(BurnedInAnnotation=text))
        assert found == ((WarningCode.SECONDARY,) if expected else ())


def test_what_lacks_its_sop_class_is_not_named_after_its_modality(decode: Decode) -> None:
    image = file(SOPClassUID="1.2.3.4", Modality="DX")
    with pytest.raises(NotAssessedError) as caught:
        decode(image)
    assert caught.value.reason is Reason.MODALITY
    assert caught.value.detail == "this is SOP class 1.2.3.4"
