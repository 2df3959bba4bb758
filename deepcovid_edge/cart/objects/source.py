"""What a result's objects copy from their image: patient, study and orders, byte for byte.

Nothing here decodes a name. A value moves from one file to the other as it stands, with the image's
Specific Character Set beside it, so that a wrong or unknown character set stays as wrong as it was
and no letter is lost. Only what the encoding demands is changed: values of odd length get their
padding, numbers of a big-endian image are turned, and items of sequences are written explicitly.

PS3.3: Patient (C.7.1.1), Clinical Trial Subject (C.7.1.3), General Study (C.7.2.1), Patient Study
(C.7.2.2), Clinical Trial Study (C.7.2.3).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.cart.objects.encoding import LONGEST, encode_element, encode_value, value_of
from deepcovid_edge.cart.objects.request import REQUEST, REQUEST_ATTRIBUTES, referenced_request
from deepcovid_edge.cart.objects.uids import stand_in_study_uid
from deepcovid_edge.errors import DataError, NotAssessedError, require
from deepcovid_edge.files import read_regular
from deepcovid_edge.imaging.dicom.elements import BoundedStream, Elements, each_element
from deepcovid_edge.imaging.dicom.orientation import upright
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES, DataSet, Family, find_data_set

_STUDY_UID, _SERIES_UID, _SOP_CLASS, _SOP_UID = 0x0020000D, 0x0020000E, 0x00080016, 0x00080018
_OFFSET = 0x00080201
_ROWS, _COLUMNS, _ORIENTATION = 0x00280010, 0x00280011, 0x00200020
_LOSSY = 0x00282110
_PIXELS = 0x7FE00000
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Stands in for a SOP class that is not stated."""
_MULTI_FRAME = frozenset(f"{SECONDARY_CAPTURE}.{number}" for number in (1, 2, 3, 4))
"""The multi-frame classes among those that are assessed (PS3.3, A.8.2 to A.8.5). Another class has
no frames, whatever its Number of Frames says."""
LOSSY_TAGS = (_LOSSY, 0x00282112, 0x00282114)
"""Whether, how much and how a picture was lossily compressed: so it stays (PS3.3, C.7.6.1.1.5)."""
PATIENT_AND_STUDY: Mapping[str, tuple[int, ...]] = {
    "CS": (
        *(0x00080005, 0x00100022, 0x00100035, 0x00100040, 0x00100200, 0x001021A0, 0x00102203),
        *(0x00102298, 0x00120062),
    ),
    "SH": (0x00080050, _OFFSET, 0x00200010, 0x00102160, 0x00102180),
    "LO": (
        *(0x00081030, 0x00100020, 0x00100021, 0x00100033, 0x00100034, 0x00101000, 0x001021F0),
        *(0x00102000, 0x00102110, 0x00102201, 0x00102292, 0x00102299, 0x00120010, 0x00120020),
        *(0x00120021, 0x00120030, 0x00120031, 0x00120040, 0x00120042, 0x00120050, 0x00120063),
        0x00380010,
    ),
    "LT": (0x001021B0, 0x00104000),
    "ST": (0x00120051,),
    "DA": (0x00080020, 0x00100030, 0x001021D0),
    "TM": (0x00080030, 0x00100032),
    "PN": (0x00080090, 0x0008009C, 0x00081048, 0x00081060, 0x00100010, 0x00101001, 0x00102297),
    "UI": (_STUDY_UID,),
    "AS": (0x00101010,),
    "DS": (0x00101020, 0x00101030),
    "US": (0x001021C0,),
    "SQ": (
        *(0x00080051, 0x00080096, 0x0008009D, 0x00081032, 0x00081049, 0x00081062, 0x00081110),
        *(0x00100024, 0x00100026, 0x00100027, 0x00101002, 0x00102202, 0x00102293, 0x00120064),
        0x00380014,
    ),
}
"""Value representation -> attributes that are copied (PS3.6, table 6-1)."""
_FURTHER = {
    REQUEST_ATTRIBUTES: "SQ",
    LOSSY_TAGS[0]: "CS",
    LOSSY_TAGS[1]: "DS",
    LOSSY_TAGS[2]: "CS",
}
_KINDS = {tag: kind for kind, tags in PATIENT_AND_STUDY.items() for tag in tags} | _FURTHER
_OWN = (_SOP_CLASS, _SOP_UID, _SERIES_UID, _ROWS, _COLUMNS, _ORIENTATION)
_MAY_BE_EMPTY_SEQUENCE = 0x00102293  # Patient Breed Code Sequence, of type 2C
_NEVER_EMPTY = frozenset(
    {
        *(_STUDY_UID, 0x00100035, 0x00102201, 0x00102298, 0x00120010, 0x00120020, 0x00120040),
        *(0x00120042, 0x00120063),
        *(tag for tag, kind in _KINDS.items() if kind == "SQ" and tag != _MAY_BE_EMPTY_SEQUENCE),
    }
)
"""Of type 1 and 1C, and sequences of one item or more (PS3.5, 7.4): with nothing in it such an
element is left out. An empty character set is kept: it says how names were meant."""
_FORMATS = {
    "AS": re.compile(rb"\d{3}[DWMY]"),
    "DS": re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"),
    "US": re.compile(rb"..", re.DOTALL),
}
"""Of age, size, weight and pregnancy (PS3.5, 6.2). They name nobody and may be left out, so a
malformed one is. Names, numbers and dates are copied whatever they hold."""
_TIME_ZONE = re.compile(r"([+-])(\d\d)([0-5]\d)")
_FARTHEST = timedelta(hours=14)
_TURNS = {0: 0, 1: 1, 3: 2, 2: 3}
"""Corner of the file that lies in the upper left -> quarter turns counter-clockwise."""


@dataclass(frozen=True)
class SourceImage:
    """The image that a result is about.

    Attributes:
        sop_uid: SOP Instance UID, as stated.
        sop_class: UID of the SOP class; Secondary Capture where none is stated.
        series_uid: Series Instance UID, or a stand-in.
        study_uid: Study Instance UID, or a stand-in that follows from `sop_uid`: a PACS shows the
            objects as a study of their own then.
        rows: Rows of the pixels as they stand in the file; 0 where not stated.
        columns: Columns, likewise.
        turns: Quarter turns counter-clockwise that bring the image upright.
        offset: Offset from UTC of its times; None where it is not stated.
        is_lossy: Whether it was lossily compressed, as it states or by its transfer syntax.
        copied: Tag -> the element as it stands in an object, in Explicit VR Little Endian.
    """

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    rows: int
    columns: int
    turns: int
    offset: timezone | None
    is_lossy: bool
    copied: Mapping[int, bytes] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> SourceImage:
        """Read the header of an image, as far as it can be read; the pixels are left alone.

        Raises:
            DataError: The file cannot be opened, or has no SOP Instance UID: it is no DICOM image.
            MissingDependencyError: pydicom is not installed.
        """
        try:
            data = read_regular(path)
            found = find_data_set(bytes(data))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        except NotAssessedError as error:
            raise DataError(f"{path}: {error}") from error
        values = _values(found)
        elements = Elements(values, little=found.encoding.little, implicit=found.encoding.implicit)
        sop_uid = _uid(elements, _SOP_UID)
        if not sop_uid:
            raise DataError(f"{path}: no SOP Instance UID, expected a DICOM image")
        study_uid = _uid(elements, _STUDY_UID) or stand_in_study_uid(sop_uid)
        copied = _copied(values, found)
        if request := referenced_request(copied, study_uid):
            copied[REQUEST] = request
        stated = elements.word(_LOSSY)
        is_lossy = stated == "01" or _loses(found.syntax, says_lossless=stated == "00")
        if is_lossy:  # not every console states what its syntax does
            copied[_LOSSY] = encode_value(_LOSSY, "CS", b"01")
        return cls(
            sop_uid=sop_uid,
            sop_class=_uid(elements, _SOP_CLASS) or found.media_class or SECONDARY_CAPTURE,
            series_uid=_uid(elements, _SERIES_UID) or stand_in_study_uid(sop_uid + "series"),
            study_uid=study_uid,
            rows=elements.number(_ROWS) or 0,
            columns=elements.number(_COLUMNS) or 0,
            turns=_turns(elements),
            offset=_time_zone(elements.raw(_OFFSET)),
            is_lossy=is_lossy,
            copied=copied,
        )

    def plainer(self) -> SourceImage:
        """The same image, without what an object can do without."""
        return replace(self, sop_class=SECONDARY_CAPTURE)

    def frame_numbers(self) -> list[int] | None:
        """The frame that a region lies on; None for an image of a class without frames."""
        return [1] if self.sop_class in _MULTI_FRAME else None

    def outline(self, x: int, y: int, width: int, height: int) -> list[tuple[float, float]]:
        """The outline of a box as it lies in the file.

        Args:
            x: First column of the box on the upright image, in pixels of the file, as `Region`.
            y: First row.
            width: Columns.
            height: Rows.

        Returns:
            Five points (column, row), the last as the first. PS3.3, C.18.6.1.2: (0, 0) is the
            upper left corner of the upper left pixel, so that (columns, rows) is the end.
        """
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        return [self._in_file(*corner) for corner in corners]

    def _in_file(self, across: float, down: float) -> tuple[float, float]:
        """Where in the file a point of the upright image lies."""
        rows, columns = float(self.rows), float(self.columns)
        if self.turns == 1:
            return columns - down, float(across)
        if self.turns == 2:
            return columns - across, rows - down
        if self.turns == 3:
            return float(down), rows - across
        return float(across), float(down)


def _values(found: DataSet) -> dict[int, Any]:
    """The elements that objects need, up to where a header is damaged."""
    require("pydicom", extra="cart")
    values: dict[int, Any] = {}
    elements = each_element(
        BoundedStream.over(found),
        lambda tag, _kind, _length: tag >= _PIXELS,
        [*_KINDS, *_OWN],
        found.encoding,
        longest=LONGEST,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of character sets that pydicom does not know
        try:
            for element in elements:
                values.setdefault(int(element.tag), element)
        except Exception:  # pydicom raises nearly anything on a broken header
            pass
    return values


def _uid(elements: Elements, tag: int) -> str:
    """A UID as it stands, however long it is."""
    return elements.raw(tag).decode("latin-1").partition("\\")[0].strip(" \0")


def _loses(uid: str, *, says_lossless: bool) -> bool:
    """Whether an image lost something by its transfer syntax.

    Only the cosine transform of JPEG always loses something; the others can do without.
    """
    syntax = SYNTAXES.get(uid)
    if syntax is None or not syntax.lossy:
        return False
    return syntax.family is Family.JPEG or not says_lossless


def _copied(values: dict[int, Any], found: DataSet) -> dict[int, bytes]:
    copied = {}
    for tag, kind in _KINDS.items():
        if tag in values and _is_wanted(tag, kind, values[tag].value):
            encoded = encode_element(tag, kind, values[tag], found.encoding)
            if encoded and not (tag in _NEVER_EMPTY and _is_empty(encoded, kind)):
                copied[tag] = encoded
    return copied


def _is_empty(encoded: bytes, kind: str) -> bool:
    """Whether an element has no value, or none but padding; of UIDs the first counts."""
    value = value_of(encoded)
    return not (value.partition(b"\\")[0] if kind == "UI" else value).strip(b" \0")


def _is_wanted(tag: int, kind: str, value: Any) -> bool:
    if not isinstance(value, bytes) or not value:
        return True
    if tag == _OFFSET:
        return _time_zone(value) is not None
    if kind not in _FORMATS:
        return True
    parts = [value] if kind == "US" else [part.strip(b" \0") for part in value.split(b"\\")]
    return all(_FORMATS[kind].fullmatch(part) for part in parts)


def _time_zone(value: bytes) -> timezone | None:
    """PS3.3, C.12.1.1: `&ZZXX`, a sign, hours and minutes."""
    match = _TIME_ZONE.fullmatch(value.decode("latin-1").strip(" \0"))
    if match is None:
        return None
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if sign == "-" else offset) if offset <= _FARTHEST else None


def _turns(elements: Elements) -> int:
    """How `upright` turns an image: by what it makes of four pixels."""
    orientation = tuple(part.upper() for part in elements.texts(_ORIENTATION) if part)
    corners, _ = upright(np.arange(4, dtype=np.uint8).reshape(2, 2), orientation)
    return _TURNS[int(corners[0, 0])]
