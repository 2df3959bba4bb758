"""What a header states of body part, view and age: in words, in codes and in dates.

Words are read in any script and under any character set, because consoles write what their users
speak. Of a code its value counts and never its meaning, which is for people (PS3.3, 8.3). What is
stated and not understood is `Term.UNKNOWN`, never the same as not stated. Where statements
contradict each other, all of them count.

Not read: descriptions, procedures and protocols (of a study, not of this image, and worded by the
site), laterality, angles of the positioner and private elements.
"""

from __future__ import annotations

import configparser
import datetime
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.elements import Elements, decodings

ADULT_YEARS = 18
OLDEST = 120.0
"""Ages above that are not believed, years."""
_FIRST_YEAR = 1980
"""No digital film is older (computed radiography came in 1983): a date before it stands for none,
such as 19000101."""


class Term(Enum):
    """What a word or a code means."""

    CHEST = auto()
    OTHER_PART = auto()
    PA = auto()
    AP = auto()
    FRONTAL = auto()
    NOT_FRONTAL = auto()
    CHILD = auto()
    UNKNOWN = auto()


FRONTAL = frozenset({Term.PA, Term.AP, Term.FRONTAL})
_REFUSED = frozenset({Term.OTHER_PART, Term.NOT_FRONTAL, Term.CHILD})
_WORST = _REFUSED | {Term.UNKNOWN}


@dataclass(frozen=True)
class Statement:
    """What a header states of one thing.

    Attributes:
        shown: For people: as stated, in capitals, or empty.
        terms: What was understood; empty where nothing is stated.
    """

    shown: str
    terms: frozenset[Term]


# --- tables ------------------------------------------------------------------------------------

_SETS, _BODY_PART, _VIEW = 0x00080005, 0x00180015, 0x00185101
_CODE_VALUES = (0x00080100, 0x00080119, 0x00080120)
"""Code value, long code value, URN code value (PS3.3, 8.1: one of the three)."""
_SCHEME, _MEANING, _EQUIVALENTS = 0x00080102, 0x00080104, 0x00080121
_PART_CODES = (0x00082218, 0x00082228)
"""Anatomic region and primary anatomic structure (PS3.3, C.8.11.2 and 10.5)."""
_VIEW_CODES, _VIEW_MODIFIERS, _PROJECTION_NAMES = 0x00540220, 0x00540222, 0x00185104
_POSITION, _LYING, _LYING_MODIFIERS = 0x00185100, 0x00540410, 0x00540412
_AGE, _BIRTH_DATE = 0x00101010, 0x00100030
_EXAMINED = (0x00080020, 0x00080022, 0x0008002A, 0x00080023, 0x00080021, 0x00400244)
"""Dates of study, acquisition (date, then date and time), content, series, procedure step."""
_COPIED = (0x00080012, 0x00181012)
"""Dates of the file and of a secondary capture: perhaps years after the examination."""

TAGS = (
    *(_SETS, _BODY_PART, _VIEW, *_PART_CODES, _VIEW_CODES, _PROJECTION_NAMES, _POSITION, _LYING),
    *(_AGE, _BIRTH_DATE, *_EXAMINED, *_COPIED),
)
"""The elements that are read here."""

_LONGEST = 1024
"""Bytes of a text that are read. PS3.5, 6.2: a code or a name has at most 64 characters; searches
take up to the square of the length."""

_TABLES = configparser.ConfigParser(delimiters="=", interpolation=None)
_TABLES.read_string(Path(__file__).with_suffix(".ini").read_text("utf-8"))


def _table(section: str) -> dict[str, Term]:
    return {
        entry: Term[meaning.upper()]
        for meaning, entries in _TABLES[section].items()
        if meaning.upper() in Term.__members__
        for entry in entries.split()
    }


_CODES = _table("codes")
_STANDARD_CODE = re.compile(r"\d{6,18}|[A-Z]{1,2}-[0-9A-F]{4,5}|FMA\d+|RID\d+")
"""SNOMED CT and RT, FMA, RadLex: a code of theirs that is not the chest's is another part's."""
_COMPOUNDS = (
    (re.compile(r"(POSTER|ЗАДН)\w*\W*(ANTERI|ПЕРЕДН)\w*"), " PA "),
    (re.compile(r"(ANTER|ПЕРЕДН)\w*\W*(POSTERI|ЗАДН)\w*"), " AP "),
    (re.compile(r"NOUVEAUX?\W*NES?\b"), " NOUVEAUNE "),
    (re.compile(r"\b(X|CROSS)\W*TABLE\b"), " XTABLE "),
    (re.compile(r"\b(LUNGS?|CHEST|THORAX|PA|AP)[\W_]+BILAT\b"), r"\1 BILATERAL "),
    (re.compile(r"\bBILAT[\W_]+(LUNGS?|CHEST|THORAX|PA|AP)\b"), r"BILATERAL \1 "),
    (re.compile(r"(?<![^\W\d_])BED[ _-]?SIDE(?![^\W\d_])"), " BEDSIDE "),
)
_UNSPACED = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u3040-\u9fff]")
"""Thai and Lao, Hangul letters, kana and Chinese: words stand without spaces between them."""

_AGE_PART = re.compile(r"\s*(\d{1,4}(?:[.,]\d+)?)\s*([^\W\d_]*)[.,]?\s*")
_AGE_SHARE = re.compile(r"\s*(\d{1,3})\s*/\s*(12|52)\s*")
"""Months or weeks of a year: 6/12."""
_DATES = tuple(
    re.compile(form)
    for form in (
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2}).*",
        r"(?P<y>\d{4})[./ -](?P<m>\d{1,2})[./ -](?P<d>\d{1,2})(?!\d).*",
        r"(?P<y>\d{4})[./ -]?(?P<m>\d{2})?(?P<d>)[./ -]?\d?",
        r"(?P<m>)(?P<d>)\d{1,2}[./ -]\d{1,2}[./ -](?P<y>\d{4})",  # which is the day is not known
    )
)


# --- words -------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """In capitals, without accents, marks and invisible letters."""
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper())
    return "".join(one for one in letters if unicodedata.category(one) not in ("Mn", "Mc", "Cf"))


_WORDS: dict[str, Term | None] = {
    **{_plain(word): None for word in _TABLES["words"]["qualifier"].split()},
    **{_plain(word): term for word, term in _table("words").items()},
}
_NOT_FRONTAL_INSIDE = _plain(_TABLES["words"]["not_frontal_inside"]).split()
_NO_VIEW_INSIDE = re.compile(
    "(" + "|".join(_plain(_TABLES["words"]["no_view_inside"]).split()) + ")(?![位面臥卧])"
)
"""The lookahead: behind both sides a view of both sides may be named."""
_CHILD_INSIDE = _plain(_TABLES["words"]["child_inside"]).split()
_YEARS = {"": 1.0} | {
    _plain(unit): float(years) for years, units in _TABLES["ages"].items() for unit in units.split()
}
_SHORT = ("PA", "AP")
_CHEST_INSIDE = [
    word
    for word, term in _WORDS.items()
    if term is Term.CHEST and (len(word) > 4 or _UNSPACED.search(word))
]
_LONGEST_FIRST = sorted((word for word in _WORDS if _UNSPACED.search(word)), key=len, reverse=True)


def word_terms(text: str) -> frozenset[Term]:
    """What a text means, word by word."""
    plain = _plain(text)
    for compound, short in _COMPOUNDS:
        plain = compound.sub(short, plain)
    # A.P., L/L: letters that stand alone belong together.
    plain = re.sub(r"(?<![^\W\d_])([^\W\d_])[\W_]+(?=[^\W\d_](?![^\W\d_]))", r"\1", plain)
    return frozenset(
        term for token in re.findall(r"[^\W\d_]+", plain) for term in _token_terms(token) if term
    )


def _token_terms(token: str) -> Iterator[Term | None]:
    if token in _WORDS:
        yield _WORDS[token]
    elif inside := set(_inside_terms(token)):
        yield from inside
        if any(word in token for word in _CHEST_INSIDE):
            yield Term.CHEST
    elif token[:2] in _SHORT and _WORDS.get(token[2:], Term.UNKNOWN) in (None, Term.CHEST):
        yield from (_WORDS[token[:2]], _WORDS[token[2:]])  # PAERECT
    elif token[-2:] in _SHORT and _WORDS.get(token[:-2]) is Term.CHEST:
        yield from (_WORDS[token[-2:]], Term.CHEST)
    else:
        yield from _unspaced_terms(token)


def _inside_terms(token: str) -> Iterator[Term]:
    """What parts of a word mean that stand in many words of their kind."""
    searched = _NO_VIEW_INSIDE.sub(" ", token)
    if any(part in searched for part in _NOT_FRONTAL_INSIDE):
        yield Term.NOT_FRONTAL
    if any(part in token for part in _CHILD_INSIDE):
        yield Term.CHILD


def _unspaced_terms(token: str) -> Iterator[Term | None]:
    found = []
    for word in _LONGEST_FIRST:
        if word in token:
            token = token.replace(word, " ")
            found.append(_WORDS[word])
    # DR, X: letters of another script beside them.
    found += [_WORDS.get(rest, Term.UNKNOWN) for rest in token.split()]
    yield from [Term.UNKNOWN] if Term.UNKNOWN in found else found


def _read_words(elements: Elements, tag: int) -> Statement:
    """What a text element says, all of its values; of one that is too long, what is refused."""
    raw = elements.raw(tag).strip(b" \0")
    readings = [
        Statement(_shown(text), _terms_of(text))
        for text in decodings(raw[:_LONGEST], elements.raw(_SETS).decode("latin-1").strip(" \0"))
    ]
    found = min(readings, key=lambda reading: _doubt(reading.terms))
    if len(raw) > _LONGEST:
        return Statement(found.shown, found.terms & _REFUSED | {Term.UNKNOWN})
    return found


def _terms_of(text: str) -> frozenset[Term]:
    """What a text means; nothing only where it has no letter beyond ASCII's, and no symbol."""
    terms = word_terms(text)
    odd = any(unicodedata.category(one)[0] in "SC" for one in _plain(text) if not one.isascii())
    return terms | {Term.UNKNOWN} if odd or not (terms or text.isascii()) else terms


def _doubt(terms: frozenset[Term]) -> int:
    return (Term.UNKNOWN in terms) + (terms == {Term.UNKNOWN})


def _texts(elements: Elements, tag: int) -> list[str]:
    """The values of a text that are not empty, at their full length; `?` for one too long."""
    raw = elements.raw(tag).strip(b" \0")
    parts = raw.decode("latin-1").split("\\") if len(raw) <= _LONGEST else ["?"]
    return [part.strip(" \0") for part in parts if part.strip(" \0")]


def _shown(text: str) -> str:
    line = "".join(one if one.isprintable() else "?" for one in text.strip(" \0"))
    return line[:64].upper()


# --- codes -------------------------------------------------------------------------------------


def _items(elements: Elements, tag: int) -> list[Elements] | None:
    """The items of a sequence; None where something stands there that is no sequence."""
    try:
        return elements.items(tag) or ([] if not elements.raw(tag).strip(b" \0") else None)
    except NotAssessedError:
        raise
    except Exception:  # pydicom raises nearly anything
        return None


def _codes(item: Elements) -> Iterator[str]:
    """The values of a code and of its equivalents, a private scheme's with `99:` before them."""
    scheme = item.word(_SCHEME)
    private = scheme.startswith("99") and scheme != "99SDM"  # SNOMED's before 1998 (PS3.16, 8.1)
    for tag in _CODE_VALUES:
        for text in _texts(item, tag):
            code = re.split(r"[/:#=]", text.upper())[-1].strip()
            yield f"FMA{code}" if scheme == "FMA" and code.isdigit() else code
            if private and code not in _CODES:
                yield f"99:{code}"
    for other in _items(item, _EQUIVALENTS) or ():
        yield from _codes(other)


def _code_terms(item: Elements, meaning_of: Callable[[str], Term]) -> set[Term]:
    """What a code means; nothing where the item is empty."""
    codes, meaning = list(_codes(item)), " ".join(_texts(item, _MEANING))
    found = {meaning_of(code) for code in codes} - {Term.UNKNOWN}
    if found or not (codes or meaning):
        return found
    spelled = {term for code in codes for term in word_terms(code)}
    if spelled and Term.UNKNOWN not in spelled:  # private schemes have words for codes
        return spelled
    # A meaning lets nothing in: it is there for people, and may be anything.
    return {Term.UNKNOWN} | (word_terms(meaning) & _REFUSED)


def _read_codes(items: list[Elements] | None, meaning_of: Callable[[str], Term]) -> Statement:
    if items is None:
        return Statement("?", frozenset({Term.UNKNOWN}))
    terms = [_code_terms(item, meaning_of) for item in items]
    shown = next((_code_shown(item) for item, found in zip(items, terms, strict=True) if found), "")
    return Statement(shown, frozenset().union(*terms))


def _code_shown(item: Elements) -> str:
    code, meaning = next(_codes(item), ""), item.word(_MEANING)
    if (found := _CODES.get(code)) in FRONTAL:
        return found.name
    return f"{meaning} ({code})" if meaning and code else meaning or code


def _part_of(code: str) -> Term:
    if _CODES.get(code) is Term.CHEST:
        return Term.CHEST
    return Term.OTHER_PART if _STANDARD_CODE.fullmatch(code) else Term.UNKNOWN


def _view_of(code: str) -> Term:
    found = _CODES.get(code, Term.UNKNOWN)
    return found if found in FRONTAL | {Term.NOT_FRONTAL} else Term.UNKNOWN


def _special(_code: str) -> Term:
    """A projection that has a name of its own (PS3.16, CID 4012) is no plain frontal one."""
    return Term.NOT_FRONTAL


# --- statements --------------------------------------------------------------------------------


def read_part(elements: Elements) -> Statement:
    """The body part, of all elements that state it."""
    codes = [_read_codes(_items(elements, tag), _part_of) for tag in _PART_CODES]
    return _together(_read_words(elements, _BODY_PART), *codes, _age_in_words(elements))


def _age_in_words(elements: Elements) -> Statement:
    """An age such as INFANT, which says of whom the part is."""
    stated = _read_words(elements, _AGE)
    is_child = Term.CHILD in stated.terms
    return Statement(stated.shown if is_child else "", frozenset({Term.CHILD} if is_child else ()))


def read_view(elements: Elements) -> Statement:
    """The view, of all elements that state it."""
    views = _items(elements, _VIEW_CODES)
    modifiers = [_items(view, _VIEW_MODIFIERS) for view in views or ()]
    lying = [_items(item, _LYING_MODIFIERS) or [] for item in _items(elements, _LYING) or ()]
    return _together(
        _read_words(elements, _VIEW),
        _read_codes(views, _view_of),
        *(_read_codes(found, _view_of) for found in modifiers),
        *(_understood(_read_codes(found, _view_of)) for found in lying),
        _read_codes(_items(elements, _PROJECTION_NAMES), _special),
        _position(elements),
    )


def _position(elements: Elements) -> Statement:
    """Patient position (PS3.3, C.7.3.1.1.2): HFDL, HFDR and their like lie on a side."""
    stated = elements.word(_POSITION)
    aside = stated.endswith(("DL", "DR"))
    return Statement(stated if aside else "", frozenset({Term.NOT_FRONTAL} if aside else ()))


def _understood(found: Statement) -> Statement:
    """How a patient lies or stands matters only where it is known to make the view another."""
    aside = found.terms & {Term.NOT_FRONTAL}
    return Statement(found.shown if aside else "", aside)


def _together(*statements: Statement) -> Statement:
    """All of them; what is worst is shown."""
    worst = max(statements, key=lambda one: (bool(one.terms & _WORST), bool(one.shown)))
    return Statement(worst.shown, frozenset().union(*(one.terms for one in statements)))


def read_age(elements: Elements) -> float | None:
    """Years at the examination, the least of all that is stated and can be; None where it is not.

    From the stated age (PS3.5, 6.2: AS) and from the date of birth. Of a date without its day the
    youngest age counts; an examination before digital films counts for nothing. A date of copying
    can show that a patient was a child, not that one was grown up: the examination was before.
    """
    ages = [age for text in _decoded(elements, _AGE) for age in _stated_ages(text)]
    by_birth = (_age_by(elements, tag) for tag in _EXAMINED)
    if (age := next((age for age in by_birth if age is not None), None)) is not None:
        ages.append(age)
    else:
        by_copy = (_age_by(elements, tag) for tag in _COPIED)
        ages += [age for age in by_copy if age is not None and age < ADULT_YEARS]
    return round(min(ages), 2) if ages else None


def _decoded(elements: Elements, tag: int) -> Iterator[str]:
    for text in decodings(elements.raw(tag).strip(b" \0")[:_LONGEST], ""):
        yield unicodedata.normalize("NFKC", text).strip(" \0").upper()


def _stated_ages(text: str) -> Iterator[float]:
    for part in text.split("\\"):
        age = _stated_age(_plain(part))
        if age is not None and age <= OLDEST:
            yield age


def _stated_age(text: str) -> float | None:
    """Years that a text states, in one unit or in several: 1Y6M."""
    if share := _AGE_SHARE.fullmatch(text):
        return float(share[1]) / float(share[2])
    parts = list(_AGE_PART.finditer(text))
    is_whole = "".join(part[0] for part in parts) == text
    units = [part[2] for part in parts]
    if not parts or not is_whole or not _YEARS.keys() >= set(units):
        return None
    if "" in units and len(units) > 1:
        return None
    return sum(float(part[1].replace(",", ".")) * _YEARS[part[2]] for part in parts)


def _age_by(elements: Elements, tag: int) -> float | None:
    born, taken = (
        next((span for text in _decoded(elements, date) if (span := _span(text))), None)
        for date in (_BIRTH_DATE, tag)
    )
    if born is None or taken is None or taken[1] < born[0] or taken[1].year < _FIRST_YEAR:
        return None
    age = _years(born[1], max(born[1], taken[0]))
    return age if age <= OLDEST else None


def _years(born: datetime.date, taken: datetime.date) -> float:
    """Whole years up to the last birthday, and the share of a year since, always below 1."""
    years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    days = (taken - born).days - years * 365.25
    return years + min(max(days, 0.0) / 365.25, 0.99)


def _span(text: str) -> tuple[datetime.date, datetime.date] | None:
    """First and last day that a date can mean (PS3.5, 6.2: DA and DT; ACR-NEMA: 2020.03.26)."""
    found = next((match for form in _DATES if (match := form.fullmatch(text))), None)
    if not found:
        return None
    year, month, day = (int(found[name] or 0) for name in ("y", "m", "d"))
    for first, last in (
        ((month, day), (month, day)),
        ((month, 1), (month, 31)),
        ((1, 1), (12, 31)),
    ):
        with suppress(ValueError):
            return datetime.date(year, *first), _last_day(year, *last)
    return None


def _last_day(year: int, month: int, day: int) -> datetime.date:
    for earlier in range(4 if day == 31 else 1):
        with suppress(ValueError):
            return datetime.date(year, month, day - earlier)
    raise ValueError(month)
