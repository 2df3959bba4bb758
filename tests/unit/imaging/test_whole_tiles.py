"""Damage within the tiles of JPEG 2000 and HTJ2K, which decoders pass over; whole ones are read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    WRITABLE,
    compressed,
    dataset,
    fragments,
    reason_of,
    written,
)
from test_dicom_sandbox import request
from test_whole_scan import noisy

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.decoding import decoders
from deepcovid_edge.imaging.dicom.decoding.codestreams import with_end
from deepcovid_edge.imaging.dicom.decoding.whole_tiles import check_tiles
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]

END = b"\xff\xd9"
BYPASS, HT = 1, 0x40
SECTORS = {
    "FF": b"\xff" * 512,
    "a page of anything": np.random.default_rng(3).bytes(4096),
    "zeros": bytes(512),
}

OVERWRITTEN = [
    (syntax, sector)
    for syntax in (J2K, J2K_LOSSY, HTJ2K, HTJ2K_LOSSY)
    for sector in SECTORS
    if syntax in WRITABLE and (sector != "zeros" or syntax in (J2K, J2K_LOSSY))
]
"""Zeros may stand in HTJ2K."""


def pillow(pixels: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, irreversible=False, **options)
    return stream.getvalue()


def with_packets(stream: bytes, packets: bytes, length: int | None = None) -> bytes:
    """A codestream of one tile-part with other packets (ITU-T T.800, A.4.2)."""
    at = stream.index(b"\xff\x90\0\x0a")
    start = stream.index(b"\xff\x93", at) + 2
    length = start - at + len(packets) if length is None else length
    head = stream[: at + 6] + length.to_bytes(4, "big") + stream[at + 10 : start]
    return head + packets + END


def with_style(stream: bytes, style: int) -> bytes:
    """A codestream that states another style of its code-blocks (T.800, table A.19)."""
    at = stream.index(b"\xff\x52") + 12
    return stream[:at] + bytes([style]) + stream[at + 1 :]


def is_refused(stream: bytes) -> bool:
    try:
        check_tiles(stream)
    except NotAssessedError:
        return True
    return False


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("syntax", "sector"), OVERWRITTEN)
def test_a_sector_that_was_overwritten_is_damage(
    syntax: str, share: float, sector: str, decode: Decode
) -> None:
    """OpenJPEG makes pixels of most of them."""
    pixels = noisy(12)
    whole = compressed(pixels, 12, syntax)
    start = round(share * (len(whole) - 4600)) + 300
    changed = whole[:start] + SECTORS[sector] + whole[start + len(SECTORS[sector]) :]
    file = written(fragments(dataset(pixels, stored=12), changed), syntax)
    assert reason_of(decode, file) is Reason.DECODE
    assert not is_refused(whole)


@pytest.mark.parametrize("halvings", [0, 1])
def test_damage_is_found_at_every_resolution(halvings: int) -> None:
    pixels = noisy(12)
    whole = compressed(pixels, 12, J2K)
    at = len(whole) - 2000  # of the highest resolution
    changed = whole[:at] + b"\xff" * 512 + whole[at + 512 :]
    asked = request(J2K, rows=320, columns=280, halvings=halvings)
    assert decoders.decode(asked, whole).shape == (320 >> halvings, 280 >> halvings)
    with pytest.raises(NotAssessedError, match="damaged: what stands from byte"):
        decoders.decode(asked, changed)


KINDS: dict[str, dict[str, Any]] = {
    "tiles": {"tile_size": (64, 96)},
    "small precincts": {"precinct_size": (64, 64), "codeblock_size": (32, 32)},
    "layers": {"quality_mode": "rates", "quality_layers": [80, 20, 5, 1]},
    "one resolution": {"num_resolutions": 1},
    "small blocks": {"codeblock_size": (4, 4), "progression": "PCRL"},
    "tile-parts' lengths": {"plt": True},
}
PICTURES: dict[str, Callable[[], NDArray[Any]]] = {
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (320, 280), np.uint8),
    "film": lambda: noisy(8, border=60),
    "16 bits": lambda: noisy(16, border=60),
    "black": lambda: np.zeros((320, 280), np.uint8),
    "grey": lambda: np.full((320, 280), 128, np.uint8),
    "stripes": lambda: np.tile(np.array([128, 129], np.uint8), (320, 140)),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_encoders_write_is_no_damage(kind: str, picture: str) -> None:
    stream = pillow(PICTURES[picture](), **KINDS[kind])
    assert with_end(stream) == stream
    assert not is_refused(stream)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_empty_packets_are_zeros_and_no_damage(side: int) -> None:
    """T.800, B.10.3: an empty packet is a bit of 0. Some encoders write them for a flat image."""
    pixels = np.full((640, 560), 128, np.uint8)
    options = {"precinct_size": (side, side), "codeblock_size": (16, 16)}
    empty = pillow(pixels, num_resolutions=1, **options)
    packets = bytes(-(-640 // side) * -(-560 // side))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(with_packets(empty, packets)))), pixels)
    assert not is_refused(with_packets(empty, packets))
    assert is_refused(with_packets(empty, packets + bytes(512)))


def test_zeros_may_stand_where_the_arithmetic_coder_is_bypassed() -> None:
    stream = pillow(noisy(8))
    packets = b"\xc0" + bytes(600) + b"\1"
    assert is_refused(with_packets(stream, packets))
    for style in (BYPASS, HT):
        assert not is_refused(with_style(with_packets(stream, packets), style))


@pytest.mark.parametrize(
    ("packets", "refused"),
    [
        (b"\xff\x91\0\4\0\0\x80\xff\x92\x12\xff\x8f\x34", False),
        (b"\xff\x91\0\4\xff\x95\x80\xff\x92\x12", False),  # SOP states its packet's number
        (b"\xff\x91\0\4\0\xff\xc0\xff\x92\x12", False),
        (b"\xff\x91\0\4\0\0\xff\xc0\xff\x92\x12", True),
        (b"\xff\x91\0\5\0\0\x80\x12", True),
        (b"\x80\x12\xff\x90\0", True),
        (b"\x80\x12\xff\xff", True),
        (b"\x80\x12\xff", False),
        (b"", False),
    ],
)
def test_no_marker_but_those_of_packets_stands_in_a_tile(packets: bytes, refused: bool) -> None:
    stream = pillow(noisy(8))
    assert is_refused(with_packets(stream, packets)) is refused
    assert is_refused(with_packets(stream, packets, 0)) is refused  # up to the end, T.800, A.4.2


def test_where_lengths_are_wrong_the_decoder_decides() -> None:
    stream = pillow(noisy(8))
    assert not is_refused(with_packets(stream, b"\x80\x12\xff\xff\x34", 17))
    assert not is_refused(with_packets(stream, b"\x80\x12\xff\xff\x34", 1))


@pytest.mark.parametrize(
    "place",
    [
        (2**32 - 1, 2**32 - 1, 0, 0, 2**32 - 1, 2**32 - 1),
        (280, 320, 2**31, 2**31, 280, 320),
        (280, 320, 0, 2**32 - 1, 280, 320),
    ],
)
def test_no_size_by_a_damaged_header_is_taken_for_zeros(place: tuple[int, ...]) -> None:
    """T.800, A.5.1: width, height, left and top of the picture; width and height of a tile."""
    options = {"precinct_size": (32, 32), "codeblock_size": (16, 16), **KINDS["layers"]}
    stream = pillow(noisy(8), **options)
    at = stream.index(b"\xff\x51") + 6
    changed = stream[:at] + struct.pack(">6I", *place) + stream[at + 24 :]
    assert with_end(changed) == changed
    assert not is_refused(changed)
