"""What the page says, in six languages: one JSON file each, English from the lists of the code.

Digits and dates are the same in every language, as in the objects that the PACS gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.objects.facts import VERDICTS
from deepcovid_edge.reasons import NOTICE, Reason, WarningCode

LANGUAGES = ("en", "es", "ro", "fa", "zh", "ko")
_FOLDER = Path(__file__).with_name("words")


@dataclass(frozen=True)
class Catalogue:
    """The words of a language.

    Attributes:
        language: Its code (BCP 47).
        name: What it calls itself.
        direction: `ltr` or `rtl`.
        is_reviewed: Whether a radiographer has read these words.
        words: Key -> text, with `{name}` for values.
    """

    language: str
    name: str
    direction: str
    is_reviewed: bool
    words: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """A text with its values; a key that is not known stays as it is."""
        text = self.words.get(key, key)
        return text.format(**values) if values else text

    def coded(self, key: str, otherwise: str) -> str:
        """The text of a code; `otherwise` where the code is another version's."""
        return self.words.get(key, otherwise)

    def verdict(self, decision: str | None) -> str:
        """The word for a decision."""
        return self(f"verdict.{decision or 'none'}")


def coded_words() -> dict[str, str]:
    """The English of everything that has a code: the same sentence wherever it is said."""
    words = {f"reason.{one.code}": one.sentence for one in Reason}
    words |= {f"warning.{one.code}": one.sentence for one in WarningCode}
    words |= {f"verdict.{name or 'none'}": word for name, word in VERDICTS.items()}
    for alert in AlertCode:
        words |= {f"alert.{alert.code}": alert.sentence, f"fix.{alert.code}": alert.fix}
    return {**words, "notice": NOTICE}


@cache
def catalogue(language: str) -> Catalogue:
    """The words of a language of `LANGUAGES`."""
    values = json.loads((_FOLDER / f"{language}.json").read_text("utf-8"))
    words = values["words"]
    return Catalogue(
        language,
        values["name"],
        values["direction"],
        values["read_by_a_radiographer"],
        {**coded_words(), **words} if language == "en" else words,
    )
