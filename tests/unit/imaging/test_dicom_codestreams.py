"""Codestreams in DICOM files: surplus, ends, containers and labels that are wrong."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np
import pytest
from conftest import spread
from PIL import Image

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from codestreams import EOI, byte_planes, rle
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    J2K,
    JPEG,
    JPEG_12,
    JPEG_LS,
    LOSSLESS,
    LOSSLESS_SV1,
    NEAR_LOSSLESS,
    RLE,
    WRITABLE,
    compressed,
    dataset,
    fragments,
    reason_of,
    written,
)
from pydicom.encaps import encapsulate, itemize_fragment
from test_dicom_refusals import image, with_codestream

from deepcovid_edge.imaging.dicom.decoding.codestreams import with_end
from deepcovid_edge.imaging.dicom.syntaxes import DEFLATED, ENCAPSULATED, IMPLICIT, SYNTAXES

Decode = Callable[..., Radiograph]


# --- surplus ---------------------------------------------------------------------------------

SURPLUS = {
    **{f"{size} zeros": bytes(size) for size in (1, 2, 3, 12, 256, 318, 512, 1000, 4096, 70_000)},
    **{f"{size} times FF": b"\xff" * size for size in (2, 512, 4096)},
    "blanks": b" " * 100,
    "something short": bytes(range(100, 200)),
}

SURPLUS_OF_RLE = [kind for kind in SURPLUS if kind != "something short"]


def with_value(value: bytes, bits: int, syntax: str = EXPLICIT) -> bytes:
    """A file of an image whose pixel data are these bytes."""
    longer = dataset(image(bits), stored=bits)
    longer.add_new(0x7FE00010, "OW", value + b"\0" * (len(value) % 2))
    return written(longer, syntax)


@pytest.mark.parametrize(
    ("kind", "bits", "syntax"), spread(SURPLUS, (8, 12), (EXPLICIT, IMPLICIT, DEFLATED), of=6)
)
def test_bytes_behind_uncompressed_pixels_are_cut(
    kind: str, bits: int, syntax: str, decode: Decode
) -> None:
    surplus = SURPLUS[kind]
    data = with_value(image(bits).tobytes() + surplus, bits, syntax)
    assert np.array_equal(decode(data).pixels, image(bits))


@pytest.mark.parametrize(
    "change", [{"Rows": 127}, {"Rows": 100}, {"Columns": 159}, {"Columns": 150}]
)
@pytest.mark.parametrize("bits", [8, 12])
def test_pixels_that_the_header_leaves_out_are_no_padding(
    bits: int, change: dict[str, int], decode: Decode
) -> None:
    """Also where they are all black: rows of another length would lean to one side."""
    pixels = image(bits)
    for black in (False, True):
        pixels[-8 if black else 128 :] = 0
        other = dataset(pixels, stored=bits, **change)
        if black and "Rows" in change:
            continue  # the last rows, all black, are padding by any measure
        assert reason_of(decode, written(other)) is Reason.LENGTH


@pytest.mark.parametrize(("kind", "bits"), spread(SURPLUS_OF_RLE, (8, 12), of=2))
def test_bytes_behind_the_pixels_of_a_segment_of_rle_are_cut(
    kind: str, bits: int, decode: Decode
) -> None:
    words = image(bits)
    stream = rle(byte_planes(words), SURPLUS[kind])
    assert np.array_equal(decode(with_codestream(stream, RLE, bits)).pixels, words)


@pytest.mark.parametrize("stated", [1, 2, 15])
def test_count_of_segments_that_is_wrong_gives_way_to_their_offsets(
    stated: int, decode: Decode
) -> None:
    stream = rle(byte_planes(image(12)), segments=stated)
    assert np.array_equal(decode(with_codestream(stream, RLE)).pixels, image(12))


RLE_FAULTS: dict[str, tuple[Reason, Callable[[], bytes]]] = {
    "a segment too many": (
        Reason.LENGTH,
        lambda: rle([*byte_planes(image(12)), np.zeros((128, 160), np.uint8)]),
    ),
    "a segment too few": (Reason.LENGTH, lambda: rle(byte_planes(image(12))[:1])),
    "rows too few": (Reason.LENGTH, lambda: rle(byte_planes(image(12)[:120]))),
    "rows too many": (Reason.LENGTH, lambda: rle(byte_planes(image(12, height=136)))),
    "columns too many": (Reason.LENGTH, lambda: rle(byte_planes(image(12, width=161)))),
    "cut in the last segment": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:-900]),
    "cut in the first": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:9000]),
    "cut in its header": (Reason.TRUNCATED, lambda: rle(byte_planes(image(12)))[:40]),
    "the first segment short": (
        Reason.DECODE,
        lambda: rle([byte_planes(image(12))[0][:100], byte_planes(image(12))[1]]),
    ),
    "no header": (Reason.DECODE, lambda: bytes(500)),
}


@pytest.mark.parametrize("kind", RLE_FAULTS)
def test_fault_of_rle_gets_the_reason_that_is_true(kind: str, decode: Decode) -> None:
    expected, make = RLE_FAULTS[kind]
    assert reason_of(decode, with_codestream(make(), RLE)) is expected


def with_surplus(*behind: bytes) -> bytes:
    """RLE whose segments have these bytes behind their own, without an even length."""
    segments = [rle([plane])[64:] + more for plane, more in zip(PLANES, behind, strict=True)]
    return struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments)


PLANES = byte_planes(image(12))
LITERALS = bytes([99, *range(100)])
"""A run of 100 bytes that are not alike."""


@pytest.mark.parametrize(
    ("first", "last", "reason"),
    [
        (LITERALS, b"", Reason.DECODE),
        (b"", LITERALS, Reason.DECODE),
        (b"\x81\0", b"", Reason.DECODE),
        (b"", b"\x81\x11", Reason.DECODE),
        (LITERALS, LITERALS, Reason.LENGTH),
    ],
)
def test_segments_of_rle_with_other_bytes_behind_them_are_damaged(
    first: bytes, last: bytes, reason: Reason, decode: Decode
) -> None:
    """A run that begins in the midst of another gives more bytes, or fewer."""
    assert reason_of(decode, with_codestream(with_surplus(first, last), RLE)) is reason


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (b"\0\0\0", b""),
        (b"\0\x11\0", b"\xff\x11"),
        (b"\x81\0", b"\x81\xff"),
        (b"", bytes(5000)),
        (b"", b"\xff" * 5000),
        (bytes(512), bytes(99)),
    ],
)
def test_padding_of_each_segment_of_rle_is_cut(first: bytes, last: bytes, decode: Decode) -> None:
    stream = with_surplus(first, last)
    assert np.array_equal(decode(with_codestream(stream, RLE)).pixels, image(12))


# --- ends ------------------------------------------------------------------------------------

ENDED = [
    (syntax, bits)
    for syntax, bits in (
        *((JPEG, 8), (JPEG_12, 12), (LOSSLESS, 12), (LOSSLESS_SV1, 16), (JPEG_LS, 12)),
        *((NEAR_LOSSLESS, 12), (J2K, 12), (HTJ2K, 12)),
    )
    if syntax in WRITABLE
]
BEHIND = {
    **{f"{size} zeros": bytes(size) for size in (1, 2, 4095, 5000, 100_000)},
    **{f"{size} times FF": b"\xff" * size for size in (1, 2, 5000, 100_000)},
    "both": bytes(4000) + b"\xff" * 4000,
    "something else": b"of a vendor, and not short: " * 300,
    "another codestream": b"\xff\xd8\xff\xd8",
}


PADDINGS = {
    "nothing": b"",
    "2 zeros": bytes(2),
    "5000 zeros": bytes(5000),
    "5000 times FF": b"\xff" * 5000,
}


def same(decode: Decode, data: bytes, bits: int, syntax: str) -> bool:
    whole = decode(written(dataset(image(bits), stored=bits), syntax))
    return np.array_equal(decode(data).pixels, whole.pixels)


@pytest.mark.parametrize(("ended", "kind"), spread(ENDED, BEHIND, of=6))
def test_what_stands_behind_a_whole_codestream_does_not_matter(
    ended: tuple[str, int], kind: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    assert same(decode, with_codestream(stream + BEHIND[kind], syntax, bits), bits, syntax)


CONTAINERS: dict[str, Callable[[bytes, int], bytes]] = {
    "no delimiter": lambda data, _: data[:-8],
    "half a delimiter": lambda data, _: data[:-5],
    "zeros instead": lambda data, _: data[:-8] + bytes(10_000),
    "FF instead": lambda data, _: data[:-8] + b"\xff" * 10_000,
    "an empty item more": lambda data, _: data[:-8] + b"\xfe\xff\0\xe0\0\0\0\0" + data[-8:],
    "an item longer than the file": lambda data, size: longer_item(data, size, 10_000),
    "no table": lambda data, _: data.replace(b"\xfe\xff\0\xe0\4\0\0\0\0\0\0\0", b"", 1),
}


def longer_item(data: bytes, size: int, more: int) -> bytes:
    even = size + size % 2
    at = len(data) - 8 - even - 4
    assert data[at : at + 4] == even.to_bytes(4, "little")
    return data[:at] + (even + more).to_bytes(4, "little") + data[at + 4 : -8]


@pytest.mark.parametrize(("ended", "kind"), spread([*ENDED, (RLE, 12), (RLE, 8)], CONTAINERS, of=6))
def test_whole_codestream_in_a_broken_container_is_read(
    ended: tuple[str, int], kind: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    data = CONTAINERS[kind](with_codestream(stream, syntax, bits), len(stream))
    assert same(decode, data, bits, syntax)


@pytest.mark.parametrize(("ended", "padding"), spread(ENDED, PADDINGS, of=4))
def test_codestream_that_lacks_its_end_and_nothing_else_is_read(
    ended: tuple[str, int], padding: str, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    assert stream.endswith(EOI)
    assert with_end(stream) == stream
    assert same(
        decode, with_codestream(stream[:-2] + PADDINGS[padding], syntax, bits), bits, syntax
    )


@pytest.mark.parametrize(
    ("ended", "padding", "share"),
    spread([*ENDED, (RLE, 12)], PADDINGS, (0.01, 0.5, 0.9, 0.98), of=8),
)
def test_codestream_that_is_cut_off_is_said_to_be(
    ended: tuple[str, int], padding: str, share: float, decode: Decode
) -> None:
    syntax, bits = ended
    stream = compressed(image(bits), bits, syntax)
    if syntax == RLE and PADDINGS[padding]:
        pytest.skip("zeros are runs of RLE too")
    cut = stream[: round(share * len(stream))] + PADDINGS[padding]
    assert reason_of(decode, with_codestream(cut, syntax, bits)) is Reason.TRUNCATED


# --- labels ----------------------------------------------------------------------------------

LABELLED = (RLE, JPEG, JPEG_12, LOSSLESS, JPEG_LS, J2K, HTJ2K, EXPLICIT)
ALL_KINDS = [*ENDED, (RLE, 12), (EXPLICIT, 12)]


@pytest.mark.parametrize(("label", "stored"), spread(LABELLED, ALL_KINDS, of=6))
def test_pixels_are_read_as_what_they_are_under_every_label(
    label: str, stored: tuple[str, int], decode: Decode
) -> None:
    syntax, bits = stored
    whole = written(dataset(image(bits), stored=bits), syntax)
    read = decode(relabelled(whole, syntax, label))
    assert np.array_equal(read.pixels, decode(whole).pixels)
    assert read.dicom is not None
    families = [SYNTAXES[uid].family for uid in (read.dicom.transfer_syntax_uid, syntax)]
    assert families[0] is families[1]


def relabelled(data: bytes, syntax: str, label: str) -> bytes:
    """The file with another transfer syntax in its file meta information."""
    before, after = (uid.encode() + b"\0" * (len(uid) % 2) for uid in (syntax, label))
    element = b"\x02\0\x10\0UI"
    old = element + len(before).to_bytes(2, "little") + before
    assert old in data
    return data.replace(old, element + len(after).to_bytes(2, "little") + after, 1)


@pytest.mark.parametrize(("syntax", "bits"), [*ENDED, (RLE, 12)])
def test_codestream_of_a_stated_length_is_read(syntax: str, bits: int, decode: Decode) -> None:
    stream = compressed(image(bits), bits, syntax)
    bare = with_value(stream, bits)
    items = fragments(dataset(image(bits)), stream).PixelData
    for data in (bare, with_value(items, bits)):
        assert same(decode, data, bits, syntax)
        assert same(decode, relabelled(data, EXPLICIT, syntax), bits, syntax)


def test_uncompressed_pixels_in_a_fragment_are_read(decode: Decode) -> None:
    """PS3.5, A.4.11, and files that say something else of themselves."""
    for label in (EXPLICIT, RLE, JPEG_LS):
        assert np.array_equal(decode(with_codestream(image(12).tobytes(), label)).pixels, image(12))


def test_uncompressed_pixels_in_fragments_are_checked_as_others_are(decode: Decode) -> None:
    value = image(12).tobytes()
    for pieces in ([value], [value[:998], value[998:]], [value, bytes(2)]):
        items = b"".join(itemize_fragment(piece) for piece in pieces)
        one = dataset(image(12), stored=12)
        one.add_new(0x7FE00010, "OB", itemize_fragment(bytes(4)) + items)
        one["PixelData"].is_undefined_length = True
        read = decode(written(one, ENCAPSULATED))
        assert np.array_equal(read.pixels, image(12))
        assert read.dicom is not None
        assert read.dicom.transfer_syntax_uid == ENCAPSULATED
    two = in_pieces(ENCAPSULATED, 12, value, value, table=False)
    assert reason_of(decode, two) is Reason.LENGTH
    empty = value[: len(value) // 2 + 160] + bytes(len(value) // 2 - 160)
    ends = in_pieces(ENCAPSULATED, 12, empty, table=True)
    assert reason_of(decode, ends) is Reason.TRUNCATED


def test_uncompressed_pixels_of_an_undefined_length_are_read(decode: Decode) -> None:
    data = written(dataset(image(12), stored=12))
    value = image(12).tobytes()
    head = data[: -len(value) - 4]
    assert data == head + len(value).to_bytes(4, "little") + value
    for end in (b"", b"\xfe\xff\xdd\xe0\0\0\0\0"):
        assert np.array_equal(decode(head + b"\xff" * 4 + value + end).pixels, image(12))
    assert reason_of(decode, head + b"\xff" * 4 + value[:-2]) is Reason.TRUNCATED


@pytest.mark.parametrize("syntax", [J2K, *([HTJ2K] if HTJ2K in WRITABLE else [])])
def test_jpeg_2000_that_was_cut_and_closed_again_is_cut_off(syntax: str, decode: Decode) -> None:
    stream = compressed(image(12), 12, syntax)[:-900] + EOI
    assert reason_of(decode, with_codestream(stream, syntax)) is Reason.TRUNCATED


@pytest.mark.parametrize("tile", [(64, 64), (128, 160), (50, 70)])
def test_all_tiles_of_jpeg_2000_are_looked_for(tile: tuple[int, int], decode: Decode) -> None:
    file = io.BytesIO()
    Image.fromarray(image()).save(file, "JPEG2000", no_jp2=True, tile_size=tile[::-1])
    stream = file.getvalue()
    for whole in (stream, stream[:-2], stream[:-2] + bytes(5000)):
        assert np.array_equal(decode(with_codestream(whole, J2K, 8)).pixels, image())
    last = stream.rindex(b"\xff\x90\0\x0a")
    if last > stream.index(b"\xff\x90\0\x0a"):
        assert reason_of(decode, with_codestream(stream[:last] + EOI, J2K, 8)) is Reason.TRUNCATED


def test_what_is_no_codestream_could_not_be_decoded(decode: Decode) -> None:
    assert reason_of(decode, with_codestream(b"no codestream at all" * 99, J2K)) is Reason.DECODE


# --- frames ----------------------------------------------------------------------------------


def in_pieces(syntax: str, bits: int, *pieces: bytes, table: bool, **elements: object) -> bytes:
    """A file that states one frame, with these fragments."""
    one = dataset(image(bits), stored=bits, **elements)
    one.add_new(0x7FE00010, "OB", encapsulate([*pieces], has_bot=table))
    one["PixelData"].is_undefined_length = True
    return written(one, syntax)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("syntax", "bits"), [*ENDED, (RLE, 12)])
def test_two_codestreams_are_two_pictures_whatever_is_stated(
    syntax: str, bits: int, table: bool, decode: Decode
) -> None:
    streams = [compressed(pixels, bits, syntax) for pixels in (image(bits), image(bits)[::-1])]
    for stated in ({}, {"NumberOfFrames": "1"}):
        data = in_pieces(syntax, bits, *streams, table=table, **stated)
        assert reason_of(decode, data) is Reason.FRAMES


def in_fragments(pieces: list[bytes], offsets: list[int], **elements: object) -> bytes:
    """A JPEG-LS file whose Basic Offset Table has these offsets."""
    one = dataset(image(12), stored=12, **elements)
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    one.add_new(0x7FE00010, "OB", b"".join(map(itemize_fragment, [table, *pieces])))
    one["PixelData"].is_undefined_length = True
    return written(one, JPEG_LS)


def test_two_offsets_are_two_pictures_in_either_table(decode: Decode) -> None:
    """Also where the header of either stands in several fragments."""
    stream = compressed(image(12), 12, JPEG_LS)
    stream += bytes(len(stream) % 2)
    pieces = [stream[:6], stream[6:]] * 2
    second = 16 + len(stream)
    extended = {"ExtendedOffsetTable": struct.pack("<2Q", 0, second)}
    assert reason_of(decode, in_fragments(pieces, [0, second])) is Reason.FRAMES
    assert reason_of(decode, in_fragments(pieces, [], **extended)) is Reason.FRAMES


@pytest.mark.parametrize("cuts", [(), (6,), (600, 1000)])
def test_offsets_at_which_no_picture_begins_are_none(cuts: tuple[int, ...], decode: Decode) -> None:
    """dicom-rs added the end to its tables (pull request 399); some point to every fragment."""
    stream = compressed(image(12), 12, JPEG_LS)
    stream += bytes(len(stream) % 2)
    pieces = [stream[start:end] for start, end in pairwise((0, *cuts, len(stream)))]
    starts = [0, *accumulate(8 + len(piece) for piece in pieces)]
    for offsets in (starts, starts[:-1], [0, starts[-1]], [0, 0], [0, 100], [0, 1 << 31]):
        extended = {"ExtendedOffsetTable": struct.pack(f"<{len(offsets)}Q", *offsets)}
        for data in (in_fragments(pieces, offsets), in_fragments(pieces, [], **extended)):
            assert np.array_equal(decode(data).pixels, image(12)), offsets


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("syntax", "bits"), ENDED)
def test_codestream_in_several_fragments_is_one_picture(
    syntax: str, bits: int, table: bool, decode: Decode
) -> None:
    """A thumbnail that a fragment begins with is none of its own."""
    stream = compressed(image(bits), bits, syntax)
    if stream.startswith(b"\xff\xd8"):
        thumbnail = compressed(image(bits)[:16, :16], bits, syntax)
        head = b"\xff\xef" + (len(thumbnail) + 2).to_bytes(2, "big")
        stream = stream[:2] + head + thumbnail + stream[2:]
    cuts = [0, 6, len(stream) // 2 * 2 - 40, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(cuts)]
    one = dataset(image(bits), stored=bits)
    items = b"".join(itemize_fragment(piece + b"\0" * (len(piece) % 2)) for piece in pieces)
    offsets = b"\xfe\xff\0\xe0" + (b"\4\0\0\0" if table else b"") + bytes(4)
    one.add_new(0x7FE00010, "OB", offsets + items)
    one["PixelData"].is_undefined_length = True
    assert same(decode, written(one, syntax), bits, syntax)


def with_sign(data: bytes) -> bytes:
    """A codestream of JPEG 2000 whose samples have a sign (T.800, A.5.1: Ssiz)."""
    at = data.index(b"\xff\x51") + 40
    return data[:at] + bytes([data[at] | 0x80]) + data[at + 1 :]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("windowed", [True, False])
def test_signs_that_the_header_does_not_know_are_refused(
    bits: int, windowed: bool, decode: Decode
) -> None:
    """What the window means, nothing says; wrapped, the brightest half would be black."""
    window = {"WindowCenter": 1 << bits - 1, "WindowWidth": 1 << bits} if windowed else {}
    stream = with_sign(compressed(image(bits), bits, J2K))
    labelled = dataset(image(bits), stored=bits, **window)
    assert reason_of(decode, written(fragments(labelled, stream), J2K)) is Reason.BITS
