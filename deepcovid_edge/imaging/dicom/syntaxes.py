"""Transfer syntaxes: what is read, by which kind of decoder (DICOM PS3.5, annex A; PS3.6, A-1).

The syntax that a file states is a promise. Elements say by themselves in which encoding they stand,
so a data set is read in its own, whatever is stated or left out.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
ENCAPSULATED = "1.2.840.10008.1.2.1.98"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
MAX_INFLATED = 1 << 28
"""Most bytes that a deflated file may become: 100 megapixels of 16 bits, and a header."""

_PREFIX, _PREAMBLE = b"DICM", 128
_MEDIA_CLASS, _TRANSFER_SYNTAX = 0x00020002, 0x00020010
_META = 2
_META_ELEMENTS = 1000
"""Most elements of file meta information; the standard has 16."""
_CHAIN = 8
"""Elements in a row by which an encoding is known."""
_CHAIN_OF_BARE_FILE = 3
_ZEROS = 64
_UNDEFINED = 0xFFFFFFFF
_PIXELS, _LAST = 0x7FE00000, 0x7FE0FFFF
"""Group of the pixels, behind which an image has no more than padding."""
_LAST_PIXELS, _STRAY = 0x7FE00010, 1
_MOST_ZEROS = 512
"""Zeros behind pixels that end in as many: where there are more, they may be rows that damage moved
there."""
_LONGEST = 128
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_KINDS = re.compile(
    b"A[EST]|C[S]|D[AST]|F[DL]|I[S]|L[OT]|O[BDFLVW]|P[N]|S[HLQSTV]|T[M]|U[CILNRSTV]"
)
"""Value representations (PS3.5, 6.2)."""
_LONG_KINDS = re.compile(b"O.|S[QV]|U[CNRTV]")
"""Those whose length takes 4 bytes behind 2 that are reserved (PS3.5, 7.1.2)."""


class Family(Enum):
    """A kind of decoder."""

    NATIVE = "none"
    RLE = "RLE"
    JPEG = "JPEG"
    JPEG_LOSSLESS = "JPEG lossless"
    JPEG_LS = "JPEG-LS"
    JPEG_2000 = "JPEG 2000"
    HTJ2K = "High-Throughput JPEG 2000"


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax.

    Attributes:
        name: Name for people.
        family: What decodes it.
        lossy: Whether it may lose something.
    """

    name: str
    family: Family
    lossy: bool = False


SYNTAXES = {
    IMPLICIT: Syntax("Implicit VR Little Endian", Family.NATIVE),
    EXPLICIT: Syntax("Explicit VR Little Endian", Family.NATIVE),
    BIG_ENDIAN: Syntax("Explicit VR Big Endian", Family.NATIVE),
    ENCAPSULATED: Syntax("Encapsulated Uncompressed Explicit VR Little Endian", Family.NATIVE),
    DEFLATED: Syntax("Deflated Explicit VR Little Endian", Family.NATIVE),
    RLE: Syntax("RLE Lossless", Family.RLE),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline", Family.JPEG, lossy=True),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended", Family.JPEG, lossy=True),
    **{
        f"1.2.840.10008.1.2.4.{number}": Syntax(f"JPEG {name}, retired", Family.JPEG, lossy=True)
        for number, name in {
            52: "Extended (Process 3 and 5)",
            53: "Spectral Selection (Process 6 and 8)",
            54: "Spectral Selection (Process 7 and 9)",
            55: "Full Progression (Process 10 and 12)",
            56: "Full Progression (Process 11 and 13)",
        }.items()
    },
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless", Family.JPEG_LOSSLESS),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless SV1", Family.JPEG_LOSSLESS),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", Family.JPEG_LS),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-Lossless", Family.JPEG_LS, lossy=True),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless", Family.JPEG_2000),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", Family.JPEG_2000, lossy=True),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K Lossless", Family.HTJ2K),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K Lossless RPCL", Family.HTJ2K),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", Family.HTJ2K, lossy=True),
}

JPEG_SYNTAX = {
    "baseline": "1.2.840.10008.1.2.4.50",
    "extended": "1.2.840.10008.1.2.4.51",
    "lossless": "1.2.840.10008.1.2.4.57",
    "sv1": "1.2.840.10008.1.2.4.70",
    "ls": "1.2.840.10008.1.2.4.80",
    "near": "1.2.840.10008.1.2.4.81",
    "2000": "1.2.840.10008.1.2.4.90",
    "2000-lossy": "1.2.840.10008.1.2.4.91",
    "ht": "1.2.840.10008.1.2.4.201",
    "ht-lossy": "1.2.840.10008.1.2.4.203",
}
"""The transfer syntax of each kind of codestream."""


@dataclass(frozen=True)
class Encoding:
    """How the elements of a data set stand (PS3.5, section 7).

    Attributes:
        syntax: UID of the native transfer syntax of this encoding.
        little: Whether the lowest byte comes first.
        implicit: Whether value representations are left out.
    """

    syntax: str
    little: bool
    implicit: bool


_ENCODINGS = (
    Encoding(EXPLICIT, little=True, implicit=False),
    Encoding(IMPLICIT, little=True, implicit=True),
    Encoding(BIG_ENDIAN, little=False, implicit=False),
    Encoding(BIG_ENDIAN, little=False, implicit=True),  # no syntax has it, but files do
)


@dataclass(frozen=True)
class DataSet:
    """Where a data set stands, and how.

    Attributes:
        data: The file's bytes, inflated where they were deflated.
        start: Offset of the first element behind the file meta information.
        encoding: How its elements stand.
        syntax: UID of its transfer syntax: as stated where that can be, else what it is.
        native: UID of what it is if its pixels are not compressed.
        media_class: SOP class by the file meta information, or empty.
    """

    data: bytes
    start: int
    encoding: Encoding
    syntax: str
    native: str
    media_class: str


def find_data_set(data: bytes) -> DataSet:
    """Find the data set of a DICOM file and its encoding.

    Raises:
        NotAssessedError: It is deflated, and damaged or too large.
    """
    start, meta = _file_meta(data, _start(data))
    stated = _uid(data, meta, _TRANSFER_SYNTAX)
    encoding, known = _encoding(data, start, stated)
    is_deflated = (stated == DEFLATED or not known) and _inflates(data, start)
    media_class = _uid(data, meta, _MEDIA_CLASS)
    if is_deflated or (stated == DEFLATED and known < _CHAIN_OF_BARE_FILE):
        data, start, is_deflated = _inflated(data, start), 0, True
        encoding, _ = _encoding(data, start, EXPLICIT)
    native = DEFLATED if is_deflated else encoding.syntax
    is_other = stated and (stated == ENCAPSULATED or not is_native(stated))
    return DataSet(data, start, encoding, stated if is_other else native, native, media_class)


def file_meta_end(data: bytes) -> int:
    """Offset of the data set of a DICOM file: what stands behind its file meta information."""
    return _file_meta(data, _start(data))[0]


def is_bare_data_set(data: bytes) -> bool:
    """Whether bytes without DICOM's prefix are elements of a file or of an image."""
    start = _start(data)
    if data[start : start + 2] not in (b"\2\0", b"\0\2", b"\x08\0", b"\0\x08"):
        return False
    start, meta = _file_meta(data, start)
    return len(meta) + _encoding(data, start, "")[1] >= _CHAIN_OF_BARE_FILE


def is_native(syntax: str) -> bool:
    """Whether a syntax is known and its pixels are not compressed."""
    return syntax in SYNTAXES and SYNTAXES[syntax].family is Family.NATIVE


def _start(data: bytes) -> int:
    """Offset of the first element (PS3.10, 7.1: a preamble and a prefix, which some leave out)."""
    if data[_PREAMBLE : _PREAMBLE + 4] == _PREFIX:
        return _PREAMBLE + 4
    if data.startswith(_PREFIX):
        return len(_PREFIX)
    return 0 if data[:_PREAMBLE].strip(b"\0") else _PREAMBLE


def _element(data: bytes, at: int, encoding: Encoding) -> tuple[int, int, int] | None:
    """Tag of an element, where its value starts, and its length; None where there is none."""
    head = data[at : at + 12]
    order: Literal["little", "big"] = "little" if encoding.little else "big"
    if len(head) < 8:
        return None
    start, field = at + 8, head[4:8]
    if not encoding.implicit:
        kind, field = head[4:6], head[6:8]
        if not _KINDS.fullmatch(kind):
            return None
        if _LONG_KINDS.fullmatch(kind):
            start, field = at + 12, head[8:12]
    return _tag(data, at, order), start, int.from_bytes(field, order)


def _tag(data: bytes | memoryview, at: int, order: Literal["little", "big"]) -> int:
    group, number = (int.from_bytes(data[at + i : at + i + 2], order) for i in (0, 2))
    return group << 16 | number


def _file_meta(data: bytes, at: int) -> tuple[int, dict[int, tuple[int, int]]]:
    """The end of the elements of group 2, each in its own encoding, and where values stand."""
    places: dict[int, tuple[int, int]] = {}
    for _ in range(_META_ELEMENTS):
        found = (_element(data, at, encoding) for encoding in _ENCODINGS)
        element = next((one for one in found if one and one[0] >> 16 == _META), None)
        if element is None:
            break
        tag, start, length = element
        at = start + length
        places[tag] = start, at
    return at, places


def _uid(data: bytes, places: dict[int, tuple[int, int]], tag: int) -> str:
    """A UID that stands in file meta information, or nothing where that is none."""
    start, end = places.get(tag, (0, 0))
    text = data[start:end][:_LONGEST].decode("latin-1").strip(" \0\t\r\n")
    return text if _UID.fullmatch(text) else ""


def other_end(data: bytes | memoryview, at: int, expected: int, *, little: bool) -> int | None:
    """Where an explicit element of a value representation that is not known ends.

    PS3.5, 7.1.2, gives representations to come a length of 4 bytes. Those that are none (`??`,
    zeros) have one of 2 bytes. Which it is shows in what follows.

    Args:
        data: The data set.
        at: Offset of the element.
        expected: Its end as it was read.
        little: Byte order.

    Returns:
        None where an element follows at the expected end, or at no other either.
    """
    order: Literal["little", "big"] = "little" if little else "big"
    ends = [expected]
    ends += [at + 8 + int.from_bytes(data[at + 6 : at + 8], order)]
    ends += [at + 12 + int.from_bytes(data[at + 8 : at + 12], order)]
    encoding = next(one for one in _ENCODINGS if one.little == little and not one.implicit)
    tag = _tag(data, at, order)
    for end in ends:
        following = _element(bytes(data[end : end + 12]), 0, encoding)
        if end == len(data) or (following and following[0] > tag):
            return None if end == expected else end
    return None


def _chain(data: bytes, at: int, encoding: Encoding) -> int:
    """Elements in a row from an offset, at most `_CHAIN`, that can stand so."""
    last = 0
    for count in range(_CHAIN):
        if count and at == len(data):
            return _CHAIN
        element = _element(data, at, encoding)
        if element is None or (element[0] <= last and element[0] >> 16 != _META):
            return count
        tag, start, length = element
        last, at = max(last, tag), start + length
        if last > _LAST:
            return count
        if last >= _PIXELS or (length == _UNDEFINED and (count or not encoding.implicit)):
            return _CHAIN  # far enough
        if at > len(data):
            return count
    return _CHAIN


def is_end_of_data_set(data: bytes, at: int, encoding: Encoding) -> bool:
    """Whether nothing but padding or elements stands from an offset on, the last maybe cut off.

    Padding is zeros, or one byte of anything, as makes a length even.

    Args:
        data: The data set.
        at: Offset behind the pixels.
        encoding: How its elements stand.
    """
    last, zeros = _LAST_PIXELS, at + len(data[at:].rstrip(b"\0"))
    may_be_rows = not data[max(0, at - _MOST_ZEROS) : at].strip(b"\0")
    most = _MOST_ZEROS if may_be_rows else len(data)
    while len(data) - at > (_STRAY if at < zeros else most):
        element = _element(data, at, encoding)
        if element is None or element[0] <= last:
            return False
        last, start, length = element
        if length == _UNDEFINED:  # a sequence
            return True
        at = start + length
    return True


def _encoding(data: bytes, at: int, stated: str) -> tuple[Encoding, int]:
    """The encoding in which most elements follow on one another, and how many; see `_chain`."""
    native = stated if stated in (IMPLICIT, BIG_ENDIAN) else EXPLICIT
    best, most = _ENCODINGS[0], -1
    for encoding in sorted(_ENCODINGS, key=lambda one: one.syntax != native):
        known = _chain(data, at, encoding)
        if known > most:
            best, most = encoding, known
        if known == _CHAIN:
            break
    return best, most


def _inflates(data: bytes, start: int) -> bool:
    """Whether what stands there is a deflated data set."""
    try:
        head = _inflater(data, start).decompress(memoryview(data)[start:], 1 << 12)
    except zlib.error:
        return False
    return _encoding(head, 0, EXPLICIT)[1] > 0


def _inflater(data: bytes, start: int) -> zlib._Decompress:
    # PS3.5, A.5: RFC 1951. Some write the header of zlib (RFC 1950) or of gzip before it.
    try:
        zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(memoryview(data)[start:], 64)
    except zlib.error:
        return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS)


def _inflated(data: bytes, start: int) -> bytes:
    """The data set of a deflated file, as far as it goes."""
    inflater = _inflater(data, start)
    try:
        inflated = inflater.decompress(memoryview(data)[start:], MAX_INFLATED)
    except zlib.error as error:
        raise NotAssessedError(Reason.DECODE, f"deflated data: {error}") from error
    if len(inflated) >= MAX_INFLATED:
        raise NotAssessedError(Reason.TOO_BIG, f"more than {MAX_INFLATED} bytes once inflated")
    if not inflater.eof and data.endswith(bytes(_ZEROS)):  # zeros inflate to pixels of their own
        raise NotAssessedError(Reason.TRUNCATED, "its data end in zeros")
    return inflated
