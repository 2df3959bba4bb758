"""Every catalogue says everything, and its values fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.objects.facts import VERDICTS
from deepcovid_edge.cart.page import languages
from deepcovid_edge.cart.page.languages import LANGUAGES, catalogue, coded_words
from deepcovid_edge.reasons import Reason, WarningCode

ENGLISH = catalogue("en").words
PAGE = Path(languages.__file__).parent


def places(text: str) -> list[str]:
    return sorted(re.findall(r"{(\w+)}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_has_every_key_and_no_other(language: str) -> None:
    assert set(catalogue(language).words) == set(ENGLISH)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_says_something_and_has_its_values(language: str) -> None:
    words = catalogue(language).words
    assert all(text.strip() for text in words.values())
    assert {key: places(text) for key, text in words.items()} == {
        key: places(text) for key, text in ENGLISH.items()
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_how_many_files_go_together_is_said_as_a_number(language: str) -> None:
    t = catalogue(language)
    assert "16" in t("upload.hint", files=16, most=64)
    assert "16" in t("error.files", files=16)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_speaks_of_a_percentage_or_breaks_out_of_the_page(language: str) -> None:
    for text in catalogue(language).words.values():
        assert "%" not in text
        assert not re.search(r"[<>&]", text)


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_a_translation_differs_from_english(language: str) -> None:
    words = catalogue(language).words
    same = {key for key, text in ENGLISH.items() if words[key] == text}
    assert len(same) < 8, same


def test_every_code_is_said() -> None:
    words = coded_words()
    for one in (*Reason, *WarningCode):
        kind = "reason" if one.code.startswith("E_") else "warning"
        assert words[f"{kind}.{one.code}"] == one.sentence
    for alert in AlertCode:
        assert (words[f"alert.{alert.code}"], words[f"fix.{alert.code}"]) == (
            alert.sentence,
            alert.fix,
        )
    assert [words[f"verdict.{name or 'none'}"] for name in VERDICTS] == [*VERDICTS.values()]


def test_every_word_of_a_template_is_in_the_catalogue_and_the_other_way_round() -> None:
    sources = [*PAGE.glob("templates/*.html"), *PAGE.glob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    asked = set(re.findall(r"\bt\(\s*[\"']([a-z_.A-Z]+)[\"']\s*[,)]", text))
    assert not {key for key in asked if key not in ENGLISH}
    own = set(json.loads((PAGE / "words/en.json").read_text("utf-8"))["words"])
    made = r"(nav|part|light|delivery|who|step|latency|drift|error)\."
    unused = {key for key in own - asked if not re.match(made, key) and f'"{key}"' not in text}
    assert not unused


def test_only_persian_runs_from_right_to_left() -> None:
    assert [name for name in LANGUAGES if catalogue(name).direction == "rtl"] == ["fa"]


def test_no_catalogue_claims_a_radiographer_that_it_has_not_seen() -> None:
    """Whoever has a catalogue read changes this line with it."""
    assert [name for name in LANGUAGES if catalogue(name).is_reviewed] == []
