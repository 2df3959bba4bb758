"""The elements of a DICOM header as they stand in the file, and their values as plain types.

pydicom finds the elements. Values are taken from their bytes here: pydicom's conversions check,
warn and raise, and an image is not to be lost for a stray letter in a field that nobody reads.

The character set that a header states is often missing or wrong. Two things tell which one it was:
escape sequences name their sets themselves (PS3.5, 6.1.2.5), and what was not written in UTF-8
hardly ever decodes as such.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.syntaxes import DataSet, Encoding, other_end
from deepcovid_edge.reasons import Reason

MAX_READS = 200_000
"""Reads of a header before it is given up; an image's header takes some hundreds."""
MAX_VALUE = 1 << 22
"""Longest value of a header that is looked at, bytes. A LUT of 65,536 entries takes 131,072."""

FUNCTIONAL_GROUPS = (0x52009230, 0x52009229)
"""Per-frame and shared ones: those of many frames are longer than `MAX_VALUE`, and skipped."""

_UNDEFINED, _SEQUENCE_END = 0xFFFFFFFF, 0xFFFEE0DD
_LONGEST_TEXT = 64
"""Longest value that is read of a text (PS3.5, 6.2: UI and LO), characters."""

_LONGEST_NAME = 200
"""Letters that are read of a name: three groups of 64 characters (PS3.5, 6.2: PN)."""
_CHARACTER_SET = 0x00080005
_GUESSES = (
    *("euc_kr", "gb18030", "shift_jis", "big5", "cp1251", "iso8859_5", "koi8_r", "iso8859_7"),
    *("cp1256", "iso8859_6", "iso8859_8", "tis_620", "cp1254", "cp1250", "latin_1"),
)
"""Tried after the sets that are stated, where the text is not in UTF-8."""
_ESCAPE = "\x1b"
_CHINESE = "\x1b$)A"
"""Python's GB 2312 leaves the sequence that designates it in the text."""
_DELIMITERS = frozenset(b"\\\t\n\f\r")
"""Behind these the first set holds again (PS3.5, 6.1.2.5.3)."""


class Elements:
    """Elements of a data set or of an item of a sequence, by their tags."""

    def __init__(self, found: dict[int, Any], *, little: bool, implicit: bool) -> None:
        self._found = found
        self._little = little
        self._implicit = implicit

    def raw(self, tag: int) -> bytes:
        """The bytes of a value, empty where it is absent or a sequence."""
        element = self._found.get(tag)
        value = None if element is None else element.value
        return value if isinstance(value, bytes) else b""

    def texts(self, tag: int) -> list[str]:
        """The values of a text, without padding (PS3.5, 6.2), fit for one line of a record."""
        parts = self.raw(tag).decode("latin-1").split("\\")
        return [_in_one_line(part.strip(" \0")[:_LONGEST_TEXT]) for part in parts]

    def text(self, tag: int) -> str:
        """The first value of a text, without padding, or empty."""
        return self.texts(tag)[0]

    def decoded(self, tag: int) -> str:
        """A text or a name in the character sets that the data set states (PS3.5, 6.1.2).

        A set that is not known is read as Latin-1. The text is fit for one line.
        """
        from pydicom.charset import convert_encodings, decode_bytes
        from pydicom.valuerep import PN_DELIMS

        raw = self.raw(tag)
        try:
            text = decode_bytes(raw, convert_encodings(self.texts(_CHARACTER_SET)), PN_DELIMS)
        except (LookupError, ValueError):
            text = raw.decode("latin-1")
        return _in_one_line(text.strip(" \0")[:_LONGEST_NAME])

    def word(self, tag: int) -> str:
        """The first value of a text in capitals: codes are sometimes written small."""
        return self.text(tag).upper()

    def number(self, tag: int) -> int | None:
        """A binary whole number (US, SS), unsigned, or None."""
        value = self.raw(tag)
        return int.from_bytes(value[:2], self._order) if len(value) >= 2 else None

    def numbers(self, tag: int) -> list[int]:
        """Binary whole numbers of 16 bits, unsigned."""
        value = self.raw(tag)
        return [
            int.from_bytes(value[at : at + 2], self._order) for at in range(0, len(value) - 1, 2)
        ]

    def decimal(self, tag: int) -> float | None:
        """The first value of a decimal string (PS3.5, 6.2: DS), or None."""
        value = self.decimals(tag)[0]
        return None if math.isnan(value) else value

    def decimals(self, tag: int) -> list[float]:
        """The values of a decimal string; NaN for one that is no number."""
        return [_decimal(text) for text in self.texts(tag)]

    def states(self, tag: int) -> bool:
        """Whether an element has a value or an item."""
        value = getattr(self._found.get(tag), "value", None)
        return bool(value.strip(b" \0") if isinstance(value, bytes) else value)

    def with_those_of(self, other: Elements, tags: Iterable[int]) -> Elements:
        """These elements, but some as another data set of the same encoding has them."""
        found = {tag: other._found[tag] for tag in tags if tag in other._found}
        return Elements(self._found | found, little=self._little, implicit=self._implicit)

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence, none where it is absent.

        Raises:
            NotAssessedError: It was skipped, as it is longer than `MAX_VALUE`.
        """
        from pydicom.filereader import read_sequence

        element = self._found.get(tag)
        value = None if element is None else element.value
        length = getattr(element, "length", None)
        if value is None and length:
            raise _too_long(length)
        if isinstance(value, bytes):
            stream = BoundedStream(value)
            value = read_sequence(stream, self._implicit, self._little, len(value), "latin-1")
        return [
            Elements(
                {int(inner): item.get_item(inner) for inner in item.keys()},  # noqa: SIM118
                little=self._little,
                implicit=self._implicit,
            )
            for item in value or ()
        ]

    @property
    def little(self) -> bool:
        """Whether numbers stand with their lowest byte first."""
        return self._little

    @property
    def _order(self) -> Any:
        return "little" if self._little else "big"


def _in_one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class BoundedStream(io.BytesIO):
    """Bytes that can be read `MAX_READS` times: a header of millions of items ends early."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS

    @classmethod
    def over(cls, found: DataSet) -> BoundedStream:
        """A data set, from its first element on."""
        stream = cls(found.data)
        stream.seek(found.start)
        return stream

    def read(self, size: int | None = -1, /) -> bytes:
        """As `io.BytesIO.read`.

        Raises:
            NotAssessedError: The header has more parts than any image's has.
        """
        self._left -= 1
        if self._left < 0:
            raise NotAssessedError(Reason.DECODE, f"header of more than {MAX_READS} parts")
        return super().read(size)


def read_elements(
    stream: BoundedStream,
    stop_when: Callable[[int, str | None, int], bool],
    tags: Iterable[int],
    encoding: Encoding,
) -> Elements:
    """Read elements from where a stream stands, whole ones alone.

    Args:
        stream: Left at the first byte of the element that stopped the reading, or at the end.
        stop_when: Told tag, value representation and length of each; true at the first not wanted.
        tags: The elements to keep; others are skipped.
        encoding: How they stand.

    Raises:
        NotAssessedError: The header has too many parts, or a value longer than `MAX_VALUE`.
    """
    wanted = [*tags]

    def stop(tag: int, kind: str | None, length: int) -> bool:
        is_long = length > MAX_VALUE and length != _UNDEFINED
        if is_long and tag in wanted and tag not in FUNCTIONAL_GROUPS:
            raise _too_long(length)
        return stop_when(tag, kind, length)

    found = each_element(stream, stop, wanted, encoding)
    whole = {int(element.tag): element for element in found if not _is_cut_off(element)}
    return Elements(whole, little=encoding.little, implicit=encoding.implicit)


def each_element(
    stream: BoundedStream,
    stop_when: Callable[[int, str | None, int], bool],
    tags: Iterable[int],
    encoding: Encoding,
    *,
    longest: int = MAX_VALUE,
) -> Iterator[Any]:
    """Elements of these tags in the order of the file, as pydicom reads them.

    Args:
        stream: As for `read_elements`.
        stop_when: As for `read_elements`.
        tags: As for `read_elements`.
        encoding: As for `read_elements`.
        longest: Length above which an element has no value, bytes.
    """
    from pydicom.filereader import data_element_generator
    from pydicom.tag import BaseTag

    little, implicit = encoding.little, encoding.implicit
    wanted: list[BaseTag | int] = [BaseTag(tag) for tag in tags]
    passed_over = list[int]()

    def stop(tag: int, kind: str | None, length: int) -> bool:
        if end := None if implicit else _odd_end(stream, tag, kind, length, little=little):
            passed_over.append(end)
            return True
        return stop_when(tag, kind, length)

    while True:
        yield from data_element_generator(
            *(stream, implicit, little),
            stop_when=stop,
            defer_size=longest,
            specific_tags=wanted,
        )
        if not passed_over:
            return
        stream.seek(passed_over.pop())


def _odd_end(
    stream: BoundedStream, tag: int, kind: str | None, length: int, *, little: bool
) -> int | None:
    """End of an element that pydicom does not pass over as it must; it stands behind its head."""
    from pydicom.valuerep import VR

    at = stream.tell()
    if tag == _SEQUENCE_END:  # without a sequence
        return at
    if kind in VR.__members__ or length == _UNDEFINED:
        return None
    return other_end(stream.getbuffer(), at - 8, at + length, little=little)


def _decimal(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)  # Python alone takes 2_048
    except ValueError:
        return math.nan


def _too_long(length: int) -> NotAssessedError:
    return NotAssessedError(Reason.DECODE, f"header value of {length} bytes")


def _is_cut_off(element: Any) -> bool:
    """Whether a file ends within a value."""
    value = element.value
    stated = getattr(element, "length", 0)
    return isinstance(value, bytes) and stated != _UNDEFINED and len(value) < stated


def decodings(value: bytes, sets: str) -> Iterator[str]:
    """A text under every character set that it can have been written in.

    Args:
        value: The text as it is stored.
        sets: Specific Character Set (0008,0005), its values separated by backslashes.
    """
    if value.isascii() and _ESCAPE.encode() not in value:
        yield value.decode("ascii")
        return
    from pydicom.charset import python_encoding

    stated = [python_encoding[name] for name in sets.split("\\") if name in python_encoding]
    if _ESCAPE.encode() in value:
        yield _by_escapes(value, stated[0] if stated else "iso8859")
        return
    own = ["utf-8" if name.lower() == "utf8" else name for name in stated]
    for encoding in dict.fromkeys((*own, "utf-8", *_GUESSES)):
        with suppress(UnicodeDecodeError, LookupError):
            yield value.decode(encoding)
            if encoding == "utf-8":
                return


def _by_escapes(value: bytes, first: str) -> str:
    """A text whose escape sequences say in which sets its parts are.

    Args:
        value: The text.
        first: The set before the first of them, a Python encoding.

    Returns:
        The text; U+FFFD stands for an escape sequence that is none of the standard's.
    """
    from pydicom.charset import CODES_TO_ENCODINGS, decode_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = [first, *CODES_TO_ENCODINGS.values()]
        text = decode_bytes(value, known, set(_DELIMITERS))
    return text.replace(_CHINESE, "").replace(_ESCAPE, "\ufffd")
