"""The header of a DICOM file: what eligibility, pixels and later parts need, no more."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from deepcovid_edge.errors import MissingDependencyError, NotAssessedError, require
from deepcovid_edge.imaging.aspect import PixelShape
from deepcovid_edge.imaging.dicom import geometry
from deepcovid_edge.imaging.dicom.elements import (
    FUNCTIONAL_GROUPS,
    BoundedStream,
    Elements,
    read_elements,
)
from deepcovid_edge.imaging.dicom.functional_groups import with_only_frame
from deepcovid_edge.imaging.dicom.statements import (
    TAGS,
    Statement,
    read_age,
    read_part,
    read_view,
)
from deepcovid_edge.imaging.dicom.syntaxes import Encoding, find_data_set
from deepcovid_edge.imaging.radiograph import DicomFacts
from deepcovid_edge.reasons import Reason

_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}
"""Float, double and whole pixels (PS3.3, C.7.6.3 and C.7.6.24)."""
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_MODALITY, _INTENT = 0x00080060, 0x00080068
_KIND_TAGS = (
    *(0x00080008, 0x00082111, 0x00280300),
    *(0x00102201, 0x00102202, 0x00102203, 0x00102292),
)
"""Image type, derivation, quality control; species in words and codes, neutered or not, breed:
eligibility reads them."""
_DEVICE = (0x00080070, 0x00081090, 0x00081010)
"""Manufacturer, model and station."""
_DATES = (0x00080022, 0x00080023, 0x00080020)
"""Dates of acquisition, content and study: the first that is stated counts."""
_MONTH = re.compile(r"(\d{4})\.?(0[1-9]|1[0-2])")
"""How a date begins (PS3.5, 6.2; before 1993 with dots)."""
_ORIENTATION = 0x00200020
_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _SIGN = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_OVERLAY_BITS = {group << 16 | 0x0100: group << 16 | 0x0102 for group in range(0x6000, 0x6020, 2)}
"""Overlay Bits Allocated and Overlay Bit Position of every group (PS3.3, C.9.2)."""
_BURNED_IN, _LOSSY_RATIO = 0x00280301, 0x00282112
OFFSETS = 0x7FE00001
"""Extended Offset Table: 8 bytes for each compressed frame (PS3.3, C.7.6.3.1.8)."""
_TONES = (
    *(0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056),
    *(0x00283000, 0x00283010),
)
_TAGS = (
    *(_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _INTENT, *_KIND_TAGS, *TAGS),
    *(*_DEVICE, *_DATES, _ORIENTATION),
    *(_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS, _ALLOCATED, _STORED, _HIGH_BIT),
    *(_SIGN, _BURNED_IN, _LOSSY_RATIO, *_TONES, *geometry.TAGS, OFFSETS),
    *(*FUNCTIONAL_GROUPS, *_OVERLAY_BITS, *_OVERLAY_BITS.values()),
)


_GREY = {"MONOCHROME1", "MONOCHROME2"}


@dataclass(frozen=True)
class PixelLayout:
    """How pixels stand in the file (PS3.5, section 8; PS3.3, C.7.6.3).

    Attributes:
        rows: Height, pixels.
        columns: Width, pixels.
        samples: Channels.
        frames: Pictures in the file.
        photometric: Photometric interpretation, such as `MONOCHROME2`.
        allocated: Bits a sample takes.
        stored: Bits of it that mean something.
        high_bit: The highest of those.
        signed: Whether samples are in two's complement.
        planar: Whether colours stand in planes instead of side by side.
        overlays: Mask of the other bits that overlays stand in.
    """

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    planar: bool
    overlays: int = 0

    @property
    def low_bit(self) -> int:
        """The lowest of the bits that mean something."""
        return self.high_bit + 1 - self.stored

    @property
    def is_grey(self) -> bool:
        """Whether the header says so, whatever a codestream holds."""
        return self.samples == 1 and self.photometric in _GREY


@dataclass(frozen=True)
class PixelPlace:
    """Where the pixels stand: offset of their first byte, their stated length and kind.

    Attributes:
        tag: Tag of the element.
        start: Offset of its value, bytes.
        length: As stated, bytes; None where it is undefined, as of compressed pixels.
        kind: Value representation, `OB` or `OW`; None where it is implicit.
    """

    tag: int
    start: int
    length: int | None
    kind: str | None


@dataclass(frozen=True)
class DicomHeader:
    """A header with the bytes that it belongs to.

    Attributes:
        data: The file's bytes, inflated where they were deflated.
        facts: What is kept.
        part: What is stated of the body part.
        view: What is stated of the view.
        layout: How the pixels stand.
        place: Where they stand; None where the file ends before them.
        elements: For the grey levels and the shutter.
        pixel_shape: How high the pixels are.
        intent: Presentation intent type, or empty.
        orientation: Patient orientation of rows and columns, or empty.
        burned_in: Whether it is stated that text stands in the pixels.
        lossy_ratio: Highest compression ratio that is stated, or 0.
        native_syntax: UID of the transfer syntax of its elements, were pixels not compressed.
        encoding: How its elements stand.
    """

    data: bytes
    facts: DicomFacts
    part: Statement
    view: Statement
    layout: PixelLayout
    place: PixelPlace | None
    elements: Elements
    pixel_shape: PixelShape
    intent: str
    orientation: tuple[str, ...]
    burned_in: bool
    lossy_ratio: float
    native_syntax: str
    encoding: Encoding


def read_header(data: bytes) -> DicomHeader:
    """Read a DICOM header up to the pixels.

    Raises:
        NotAssessedError: pydicom is not installed, or the header is not one.
    """
    try:
        require("pydicom", extra="dicom")
    except MissingDependencyError as error:
        raise NotAssessedError(Reason.DICOM, str(error)) from error
    found = find_data_set(data)
    stream = BoundedStream.over(found)
    place: list[PixelPlace] = []

    def at_pixels(tag: int, kind: str | None, length: int) -> bool:
        if tag not in _PIXEL_DATA:
            return tag > 0x7FE00010
        stated = None if length == 0xFFFFFFFF else length
        place.append(PixelPlace(tag, stream.tell(), stated, kind))
        return True

    elements = read_elements(stream, at_pixels, _TAGS, found.encoding)
    layout = _layout(elements)
    if layout.frames <= 1:
        elements = with_only_frame(elements)
    part, view = read_part(elements), read_view(elements)
    return DicomHeader(
        data=found.data,
        facts=_facts(elements, found.media_class, found.syntax, part.shown, view.shown),
        part=part,
        view=view,
        layout=layout,
        place=place[0] if place else None,
        elements=elements,
        pixel_shape=geometry.stated_shape(elements),
        intent=elements.word(_INTENT),
        orientation=tuple(part.upper() for part in elements.texts(_ORIENTATION) if part),
        burned_in=elements.word(_BURNED_IN) not in ("", "NO"),
        lossy_ratio=max(0.0, *elements.decimals(_LOSSY_RATIO)),  # NaN is not greater
        native_syntax=found.native,
        encoding=found.encoding,
    )


def stated_facts(data: bytes) -> DicomFacts | None:
    """What is kept of a header, also where the image cannot be assessed; None if it is not one."""
    with suppress(Exception):  # pydicom raises nearly anything on a broken header
        return read_header(data).facts
    return None


def _facts(elements: Elements, media_class: str, syntax: str, part: str, view: str) -> DicomFacts:
    return DicomFacts(
        sop_class_uid=elements.text(_SOP_CLASS) or media_class,
        sop_instance_uid=elements.text(_SOP_INSTANCE),
        transfer_syntax_uid=syntax,
        modality="\\".join(elements.texts(_MODALITY)).upper(),
        body_part=part,
        view=view,
        age_years=read_age(elements),
        device=" ".join(filter(None, map(elements.text, _DEVICE))),
        month=_month(next(filter(None, map(elements.text, _DATES)), "")),
    )


def _month(date: str) -> str:
    found = _MONTH.match(date)
    return "-".join(found.groups()) if found else ""


def _layout(elements: Elements) -> PixelLayout:
    stored, allocated = elements.number(_STORED) or 0, elements.number(_ALLOCATED) or 0
    high_bit = elements.number(_HIGH_BIT)
    frames = [int(text) for text in elements.texts(_FRAMES) if text.lstrip("+").isdecimal()]
    return PixelLayout(
        rows=elements.number(_ROWS) or 0,
        columns=elements.number(_COLUMNS) or 0,
        samples=elements.number(_SAMPLES) or 1,
        frames=max(frames, default=1),
        photometric=elements.word(_PHOTOMETRIC),
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=elements.number(_SIGN) == 1,
        planar=elements.number(_PLANAR) == 1,
        overlays=_overlays(elements, allocated),
    )


def _overlays(elements: Elements, allocated: int) -> int:
    """Mask of the bits of a pixel that overlays stand in.

    PS3.3, C.9.2, and PS3.5, 8.1.2, until 2004: such an overlay states the bits of the pixels as its
    own, and has no data elsewhere.
    """
    places = (
        elements.number(place)
        for bits, place in _OVERLAY_BITS.items()
        if elements.number(bits) == allocated
    )
    return sum(1 << place for place in {*places} if place is not None and place < allocated)
