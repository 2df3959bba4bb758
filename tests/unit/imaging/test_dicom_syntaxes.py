"""A data set is read in the encoding that it stands in, whatever its file says or leaves out."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import Pictures, spread
from test_containers import FUZZED

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.signatures import is_dicom
from deepcovid_edge.reasons import Reason

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    DX,
    EXPLICIT,
    J2K,
    JPEG_LS,
    RLE,
    compressed,
    dataset,
    fragments,
    reason_of,
    written,
)
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from test_dicom_refusals import image

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, DEFLATED, IMPLICIT

Decode = Callable[..., Radiograph]

PREAMBLE = bytes(128) + b"DICM"
ENCODINGS = {  # little, implicit, and the syntax that such a data set is of
    "explicit": (True, False, EXPLICIT),
    "implicit": (True, True, IMPLICIT),
    "big-endian": (False, False, BIG_ENDIAN),
    "implicit big-endian": (False, True, BIG_ENDIAN),
}
STATED = {
    "explicit": EXPLICIT,
    "implicit": IMPLICIT,
    "big-endian": BIG_ENDIAN,
    "deflated": DEFLATED,
    "compressed": JPEG_LS,
    "padded with blanks": EXPLICIT + "   ",
    "padded with zeros": IMPLICIT + "\0\0\0",
    "empty": "",
    "garbled": "UI\x1a\x001.2\n",
    "a name": "ImplicitVRLittleEndian",
    "absent": None,
}


def _raw_deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "deflated": _raw_deflated,
    "deflated, zlib": zlib.compress,
    "deflated, gzip": gzip.compress,
}


def body(encoding: str, **elements: Any) -> bytes:
    """A data set in one of the encodings."""
    little, implicit, _ = ENCODINGS[encoding]
    return data_set(dataset(image(12), stored=12, **elements), little=little, implicit=implicit)


def data_set(content: Dataset, *, little: bool, implicit: bool) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = little, implicit
    if not little:
        swapped = np.frombuffer(content.PixelData, "<u2").astype(">u2").tobytes()
        content.add_new(0x7FE00010, "OW", swapped)
    write_dataset(stream, content)
    return stream.getvalue()


def element(tag: int, value: bytes, *, little: bool = True, implicit: bool = False) -> bytes:
    """An element of text."""
    order: Any = "little" if little else "big"
    value += b"\0" * (len(value) % 2)
    head = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
    size = len(value).to_bytes(4 if implicit else 2, order)
    return head + (b"" if implicit else b"UI") + size + value


def meta(syntax: str | None, **encoding: bool) -> bytes:
    """File meta information, with a class that tells it from others, and no length."""
    found = element(0x00020002, DX.encode(), **encoding)
    if syntax is not None:
        found += element(0x00020010, syntax.encode(), **encoding)
    return found


def check(read: Radiograph, syntax: str) -> None:
    assert np.array_equal(read.pixels, image(12))
    assert read.dicom is not None
    assert read.dicom.transfer_syntax_uid == syntax
    assert read.dicom.sop_class_uid == DX
    assert read.warnings == ()


@pytest.mark.parametrize(("encoding", "stated"), spread(ENCODINGS, STATED, of=4))
def test_data_set_is_read_under_every_syntax_that_may_be_stated(
    encoding: str, stated: str, decode: Decode
) -> None:
    data = PREAMBLE + meta(STATED[stated]) + body(encoding)
    check(decode(data), ENCODINGS[encoding][2])


@pytest.mark.parametrize(("packing", "stated"), spread(PACKED, STATED, of=3))
def test_deflated_data_set_is_read_under_every_syntax_that_may_be_stated(
    packing: str, stated: str, decode: Decode
) -> None:
    data = PREAMBLE + meta(STATED[stated]) + PACKED[packing](body("explicit"))
    check(decode(data), DEFLATED)


PREFIXES = {
    "preamble": PREAMBLE,
    "another preamble": b"II*\0".ljust(128, b"\1") + b"DICM",
    "prefix": b"DICM",
    "preamble without prefix": bytes(128),
    "nothing": b"",
}
METAS: dict[str, bytes] = {
    "none": b"",
    **{
        name: meta(EXPLICIT, little=little, implicit=implicit)
        for name, (little, implicit, _) in ENCODINGS.items()
    },
    "with a length that is wrong": b"\2\0\0\0UL\4\0\7\7\0\0" + meta(IMPLICIT),
    "without a syntax": meta(None),
}


@pytest.mark.parametrize(
    ("prefix", "information", "encoding"), spread(PREFIXES, METAS, ENCODINGS, of=8)
)
def test_file_is_read_without_preamble_or_with_file_meta_information_of_any_kind(
    prefix: str, information: str, encoding: str, decode: Decode
) -> None:
    data = PREFIXES[prefix] + METAS[information] + body(encoding)
    assert is_dicom(data)
    assert is_dicom(data[:4096])  # all that is seen of a large file at first
    check(decode(data), ENCODINGS[encoding][2])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_elements_of_group_2_within_a_data_set_do_not_matter(encoding: str, decode: Decode) -> None:
    little, implicit, syntax = ENCODINGS[encoding]
    whole = body(encoding)
    second = element(0x00080016, DX.encode(), little=little, implicit=implicit)
    assert second in whole
    stray = element(0x00020010, JPEG_LS.encode(), little=little, implicit=implicit)
    check(decode(PREAMBLE + whole.replace(second, second + stray)), syntax)


@pytest.mark.parametrize("garbled", [b"1.2.840\0UI\n\x001.2.3", b"\xac\x14\xaabW\x9d", b"DX"])
def test_class_by_file_meta_information_is_a_uid_or_nothing(  # found by fuzz.py
    garbled: bytes, decode: Decode
) -> None:
    data = PREAMBLE + element(0x00020002, garbled) + body("explicit")
    check(decode(data), EXPLICIT)
    with pytest.raises(NotAssessedError, match="not stated"):
        decode(
            PREAMBLE
            + element(0x00020002, garbled)
            + body("explicit", SOPClassUID=None, Modality="")
        )


@pytest.mark.parametrize("stated", [EXPLICIT, IMPLICIT, JPEG_LS, None])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("syntax", [JPEG_LS, J2K, RLE])
def test_compressed_pixels_are_read_in_data_sets_of_both_kinds(
    syntax: str, implicit: bool, stated: str | None, decode: Decode
) -> None:
    packed = fragments(dataset(image(12), stored=12), compressed(image(12), 12, syntax))
    data = data_set(packed, little=True, implicit=implicit)
    check(decode(PREAMBLE + meta(stated) + data), syntax)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_body_part_is_told_in_every_encoding(encoding: str, decode: Decode) -> None:
    for stated in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, None):
        data = PREAMBLE + meta(stated) + body(encoding, BodyPartExamined="HAND")
        with pytest.raises(NotAssessedError, match="HAND") as caught:
            decode(data)
        assert caught.value.reason is Reason.BODY


@pytest.mark.parametrize("size", [20, 60, 200, 400, 30_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_data_set_that_is_cut_off_is_said_to_be(encoding: str, size: int, decode: Decode) -> None:
    for stated in (EXPLICIT, IMPLICIT, BIG_ENDIAN, None):
        with pytest.raises(NotAssessedError) as caught:
            decode(PREAMBLE + meta(stated) + body(encoding)[:size])
        assert caught.value.reason is Reason.TRUNCATED
        assert not re.search("[^ -~]", caught.value.detail)


def test_deflated_data_that_lack_their_last_block_are_read_if_all_pixels_are_there(
    decode: Decode,
) -> None:
    data = PREAMBLE + meta(DEFLATED) + PACKED["deflated"](body("explicit") + bytes(100))
    check(decode(data[:-1]), DEFLATED)


BEHIND_PIXELS = {
    "nothing": b"",
    "zeros": bytes(500),
    "a page of zeros": bytes(4096),
    "a byte": b" ",
    "one byte": b" ",
    "padding": b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0" + bytes(range(8)),
    "private elements": element(0x7FE10010, b"A VENDOR") + element(0x7FE11001, b"1.2"),
    "an element and zeros": element(0x7FE10010, b"A VENDOR") + bytes(100),
    "an element and a byte": element(0x7FE10010, b"A VENDOR") + b" ",
    "a sequence": b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\xdd\xe0\0\0\0\0",
}
NO_ELEMENTS = {
    "rows": bytes(range(1, 250)),
    "two bytes": b"\1\2",
    "an element of the header": element(0x0020000D, b"1.2.3"),
    "the pixels again": b"\xe0\x7f\x10\0OW\0\0\2\0\0\0\1\1",
    "an element, then rows": element(0x7FE10010, b"A VENDOR") + bytes(range(1, 250)),
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("behind", BEHIND_PIXELS)
def test_elements_and_padding_may_stand_behind_deflated_pixels(
    behind: str, packing: str, decode: Decode
) -> None:
    packed = PACKED[packing](body("explicit") + BEHIND_PIXELS[behind])
    check(decode(PREAMBLE + meta(DEFLATED) + packed), DEFLATED)


@pytest.mark.parametrize("behind", NO_ELEMENTS)
def test_anything_else_behind_deflated_pixels_is_damage(behind: str, decode: Decode) -> None:
    """Deflate has no checksum (RFC 1951): damage makes bytes more, or fewer."""
    packed = PACKED["deflated"](body("explicit") + NO_ELEMENTS[behind])
    with pytest.raises(NotAssessedError, match=r"damaged: \d+ bytes behind the pixels") as caught:
        decode(PREAMBLE + meta(DEFLATED) + packed)
    assert caught.value.reason is Reason.DECODE


def test_more_zeros_behind_black_rows_may_be_rows_that_damage_moved(decode: Decode) -> None:
    pixels = image(12)
    pixels[-8:] = 0
    packed = [
        PACKED["deflated"](
            data_set(dataset(pixels, stored=12), little=True, implicit=False) + zeros
        )
        for zeros in (bytes(512), bytes(514))
    ]
    assert np.array_equal(decode(PREAMBLE + meta(DEFLATED) + packed[0]).pixels, pixels)
    assert reason_of(decode, PREAMBLE + meta(DEFLATED) + packed[1]) is Reason.DECODE


@pytest.mark.parametrize("kind", [kind for kind in FUZZED if kind != "dicom"])
def test_pictures_are_not_taken_for_data_sets(kind: str) -> None:
    assert not is_dicom(FUZZED[kind](Pictures))


def test_noise_is_not_taken_for_a_data_set() -> None:
    draw = np.random.default_rng(0)
    starts = [b"\2\0", b"\0\2", b"\x08\0", b"\0\x08", b"DICM\2\0", b"\x08\0\x08\0"]
    for start, _ in product(starts, range(300)):
        assert not is_dicom(start + draw.bytes(300))
    for start in starts:
        assert not is_dicom(start + bytes(300))
        assert not is_dicom(start * 100)


def test_file_with_a_stated_syntax_that_is_true_is_read_as_before(decode: Decode) -> None:
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED):
        check(decode(written(dataset(image(12), stored=12), syntax)), syntax)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RLE, JPEG_LS])
def test_file_is_told_by_the_header_before_its_pixels_are_read(syntax: str, decode: Decode) -> None:
    """Refusals of the header come first, though the pixels are broken too."""
    data = written(dataset(image(12), stored=12, BodyPartExamined="HAND"), syntax)
    with pytest.raises(NotAssessedError) as caught:
        decode(data if syntax == DEFLATED else data[:-100])
    assert caught.value.reason is Reason.BODY


ODD_ELEMENTS = {
    "?? and 2 bytes": b"??" + struct.pack("<H", 8) + b"ACME 1.0",
    "zeros and 2 bytes": b"\0\0" + struct.pack("<H", 8) + b"ACME 1.0",
    "one to come, 4 bytes": b"OX\0\0" + struct.pack("<I", 8) + b"ACME 1.0",
    "two letters, 2 bytes": b"ZZ" + struct.pack("<H", 8) + b"ACME 1.0",
    "without one, 4 bytes": struct.pack("<I", 8) + b"ACME 1.0",
    "an end of a sequence": None,
}
"""What stands behind the tag: a value representation that is none, a length, a value."""


@pytest.mark.parametrize("kind", ODD_ELEMENTS)
@pytest.mark.parametrize("tag", [(0x0009, 0x0010), (0x0019, 0x0010), (0x0029, 0x1001)])
def test_an_element_of_an_odd_representation_is_passed_over(
    kind: str, tag: tuple[int, int], decode: Decode
) -> None:
    """PS3.5, 7.1.2: 4 bytes of length for representations to come; DCMTK takes 2 for `??`."""
    whole, odd = body("explicit"), ODD_ELEMENTS[kind]
    element = b"\xfe\xff\xdd\xe0" + bytes(4) if odd is None else struct.pack("<HH", *tag) + odd
    rows = whole.index(struct.pack("<HH", 0x0028, 0x0010))
    at = {0x0009: whole.index(struct.pack("<HH", 0x0010, 0x0010)), 0x0019: rows}.get(
        tag[0], len(whole) - len(image(12).tobytes()) - 12
    )
    check(decode(PREAMBLE + meta(EXPLICIT) + whole[:at] + element + whole[at:]), EXPLICIT)
