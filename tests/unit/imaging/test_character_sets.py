"""Texts of a header under escape sequences, and under sets that are stated rightly."""

from __future__ import annotations

import pytest

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from stated_headers import NO_VIEW, UNCLEAR, Decode, file, outcome, raw

from deepcovid_edge.imaging.dicom.elements import decodings
from deepcovid_edge.reasons import Reason

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written

JAPANESE = "\\ISO 2022 IR 87"


@pytest.mark.parametrize("text", ["肩", "指", "顎", "腰", "膝", "胸部 P→A", "山田^太郎"])
def test_escape_sequences_name_the_set_whatever_is_stated(text: str) -> None:
    for sets in ("", JAPANESE, "ISO_IR 100", "ISO_IR 192"):
        assert [*decodings(text.encode("iso2022_jp"), sets)] == [text]


def test_an_escape_sequence_of_no_set_leaves_a_sign() -> None:
    (text,) = decodings(b"\x1b$)ZABC", "")
    assert text.startswith("\ufffd")


@pytest.mark.parametrize("text", ["AP 立位", "брюшная", "بطن", "Göğüs"])
def test_what_is_utf_8_is_read_as_nothing_but_that_and_what_is_stated(text: str) -> None:
    assert [*decodings(text.encode(), "ISO_IR 192")] == [text]
    assert [*decodings(text.encode(), "UNKNOWN")] == [text]
    assert [*decodings(text.encode(), "ISO_IR 100")] == [text.encode().decode("latin_1"), text]


@pytest.mark.parametrize("text", ["肩", "指", "顎", "腰"])
def test_another_part_in_iso_2022_is_not_taken_for_none(text: str, decode: Decode) -> None:
    data = raw("BodyPartExamined", text.encode("iso2022_jp"), SpecificCharacterSet=JAPANESE)
    assert outcome(decode, data) is Reason.BODY


@pytest.mark.parametrize("text", ["PA 立位", "PA 臥位", "PA 站立", "PA 기립"])
def test_how_a_patient_stands_or_lies_changes_no_view(text: str, decode: Decode) -> None:
    data = raw("ViewPosition", text.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) == ()


def test_a_word_that_is_not_known_is_said_and_not_guessed_into_another(decode: Decode) -> None:
    data = raw("ViewPosition", "PA 立射".encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) == (UNCLEAR,)


@pytest.mark.parametrize("age", ["CHILD", "Infant", "NEWBORN", "小児"])
def test_an_age_in_words_that_is_a_childs_counts(age: str, decode: Decode) -> None:
    data = raw("PatientAge", age.encode(), SpecificCharacterSet="ISO_IR 192")
    assert outcome(decode, data) is Reason.AGE


@pytest.mark.parametrize("kind", ["SOFT_TISSUE", "SOFT TISSUE", "SOFTTISSUE", "SOFT-TISSUE"])
def test_an_image_of_one_energy_is_known_however_it_is_spelled(kind: str, decode: Decode) -> None:
    image_type = ["DERIVED", "PRIMARY", "", kind]
    assert outcome(decode, file(ImageType=image_type)) is Reason.MODALITY
    assert outcome(decode, file(ViewPosition=None)) == (NO_VIEW,)
