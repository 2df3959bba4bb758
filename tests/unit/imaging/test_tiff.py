"""TIFF and BigTIFF in either order of bytes: what is read, and why the rest is not."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.empty_end import PixelBlock, check_end
from deepcovid_edge.imaging.formats.tiff import directory as tiff
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.signatures import is_cut_off, known_kind
from deepcovid_edge.reasons import Reason, WarningCode

Decode = Callable[..., Radiograph]

ORDERS = ["<", ">"]


def in_pieces(
    pieces: Sequence[bytes],
    shape: tuple[int, ...],
    tags: Mapping[int, int],
    *,
    order: str = "<",
    big: bool = False,
    gap: int = 0,
) -> bytes:
    """A TIFF of 8-bit strips, or of tiles where tag 322 states their width.

    Args:
        pieces: The bytes of each, in the order of the file.
        shape: Of the picture, (rows, columns) or with its channels.
        tags: More tags, or other values for the usual ones.
        order: `<` for a little-endian file, `>` for a big-endian one.
        big: Whether it is a BigTIFF.
        gap: Bytes between two pieces.
    """
    channels = shape[2] if len(shape) == 3 else 1
    starts, body = [], bytes(16)
    for piece in pieces:
        starts.append(len(body))
        body += piece + bytes(gap)
    places = (324, 325) if 322 in tags else (273, 279)
    entries: dict[int, tuple[int, ...]] = {
        **{256: (shape[1],), 257: (shape[0],), 258: (8,) * channels, 259: (1,)},
        **{262: (2 if channels == 3 else 1,), 277: (channels,)},
        **{tag: (value,) for tag, value in tags.items()},
        **dict(zip(places, (tuple(starts), tuple(map(len, pieces))), strict=True)),
    }
    start, place = len(body), "Q" if big else "I"
    width = struct.calcsize(place)
    behind = start + (8 if big else 2) + (4 + 2 * width) * len(entries) + width
    directory, values = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        value = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(value) > width:
            pointer = struct.pack(order + place, behind + len(values))
            values, value = values + value, pointer
        directory += struct.pack(order + "HH" + place, tag, 4, len(numbers))
        directory += value.ljust(width, b"\0")
    version = struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
    head = (b"II" if order == "<" else b"MM") + version + struct.pack(order + place, start)
    return head + body[len(head) :] + directory + bytes(width) + values


def strips(pixels: NDArray[Any], rows: int) -> list[bytes]:
    """Uncompressed strips of so many rows, the last of those that are left."""
    return [pixels[top : top + rows].tobytes() for top in range(0, len(pixels), rows)]


def refusal(decode: Decode, data: bytes) -> Reason:
    with pytest.raises(NotAssessedError) as caught:
        decode(data)
    return caught.value.reason


def two_directories(data: bytes) -> bytes:
    """A big-endian BigTIFF whose directory is followed by itself again."""
    (start,) = struct.unpack_from(">Q", data, 8)
    (count,) = struct.unpack_from(">Q", data, start)
    end = start + 8 + 20 * count
    return data[:end] + struct.pack(">Q", len(data)) + data[end + 8 :] + data[start : end + 8]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("packing", [1, 8])
def test_big_tiff_is_read_in_either_order_of_bytes(
    order: str, bits: int, packing: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    for pixels, kind in ((image, 1), (pictures.rgb(image), 2)):
        data = pictures.tiff(pixels, kind, order=order, big=True, tags={259: packing})
        assert known_kind(data) == "TIFF"
        read = decode(data)
        assert np.array_equal(read.pixels, image)
        assert read.white == (1 << bits) - 1
        assert read.warnings == ()


def test_what_pillow_does_not_open_keeps_its_turn_and_the_shape_of_its_pixels(
    pictures: Any, decode: Decode
) -> None:
    image = pictures.image(height=240, width=160, bits=16)[::2]
    whole = pictures.tiff(image, 1, order=">", big=True, tags={274: 6})
    read = decode(whole)
    assert np.array_equal(read.pixels, np.rot90(image, 3))
    assert read.warnings == (WarningCode.EXIF,)
    across = struct.pack(">HHQII", 282, 5, 1, 200, 1)
    down = struct.pack(">HHQII", 283, 5, 1, 100, 1)
    stated = pictures.tiff(image, 1, order=">", big=True, tags={282: 1, 283: 1})
    for tag, entry in ((282, across), (283, down)):
        at = stated.index(struct.pack(">HHQ", tag, 3, 1))
        stated = stated[:at] + entry + stated[at + 20 :]
    read = decode(stated)
    assert read.pixels.shape == (240, 160)
    assert read.warnings == (WarningCode.ASPECT,)


def without_photometric(data: bytes) -> bytes:
    """The file with tag 262 turned into 263, which says nothing of an image of 8 bits."""
    order = "<" if data.startswith(b"II") else ">"
    return data.replace(struct.pack(order + "HH", 262, 3), struct.pack(order + "HH", 263, 3))


NOT_READ: dict[str, tuple[Reason, str, Callable[[Any], bytes]]] = {
    "signed": (
        Reason.MODE,
        "signed 16-bit integers",
        lambda p: p.tiff(p.image().astype(np.int16), 1, tags={339: 2}),
    ),
    "signed, big-endian BigTIFF": (
        Reason.MODE,
        "signed 16-bit integers",
        lambda p: p.tiff(p.image().astype(np.int16), 1, order=">", big=True, tags={339: 2}),
    ),
    "half floats": (
        Reason.MODE,
        "floating point",
        lambda p: p.tiff(p.image().astype(np.float16), 1, tags={339: 3}),
    ),
    "32 bits": (
        Reason.MODE,
        "1 of 32 bits a pixel",
        lambda p: p.tiff(p.image().astype(np.uint32), 1, order=">"),
    ),
    "grey and alpha of 16 bits": (
        Reason.MODE,
        "2 of 16 bits a pixel",
        lambda p: p.tiff(np.dstack([p.image(bits=16)] * 2), 1, tags={338: 2}),
    ),
    "colours of no stated kind": (
        Reason.MODE,
        "3 of 8 bits a pixel, photometric interpretation not stated",
        lambda p: without_photometric(p.tiff(p.rgb(p.image()), 2)),
    ),
    "pages, one of them of no stated kind": (
        Reason.FRAMES,
        "2 pictures",
        lambda p: without_photometric(two_directories(p.tiff(p.image(), 1, order=">", big=True))),
    ),
    "pages": (
        Reason.FRAMES,
        "2 pictures",
        lambda p: two_directories(p.tiff(p.image(), 1, order=">", big=True)),
    ),
    "next page beyond the end": (
        Reason.TRUNCATED,
        "a page is missing",
        lambda p: two_directories(p.tiff(p.image(), 1, order=">", big=True))[:-50],
    ),
    "cut off": (
        Reason.TRUNCATED,
        "9000 bytes",
        lambda p: p.encode(p.image(bits=16), "TIFF", big_tiff=True)[:9000],
    ),
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_reason_says_what_the_file_is(kind: str, pictures: Any, decode: Decode) -> None:
    reason, detail, make = NOT_READ[kind]
    with pytest.raises(NotAssessedError) as caught:
        decode(make(pictures))
    assert caught.value.reason is reason
    assert detail in caught.value.detail


@pytest.mark.parametrize("order", ORDERS)
def test_big_tiff_holds_its_directory_its_values_and_its_strips(order: str, pictures: Any) -> None:
    whole = pictures.tiff(pictures.rgb(pictures.image()), 2, order=order, big=True)
    assert not is_cut_off(whole)
    (directory,) = struct.unpack_from(order + "Q", whole, 8)
    for end in (9, 15, 40, directory, directory + 8, directory + 30, len(whole) - 1):
        assert is_cut_off(whole[:end])
    at = whole.index(struct.pack(order + "HHQ", 279, 4, 1))
    for count, length in ((1, len(whole)), (1 << 40, 8), (1 << 63, 8), ((1 << 64) - 1, 8)):
        longer = struct.pack(order + "HHQI", 279, 4, count, length)
        assert is_cut_off(whole[:at] + longer + whole[at + 16 :])
    for offset in (1 << 62, (1 << 64) - 1):
        assert is_cut_off(whole[:8] + struct.pack(order + "Q", offset) + whole[16:])
    many = struct.pack(order + "Q", 1 << 40)
    assert is_cut_off(whole[:directory] + many + whole[directory + 8 :])


@pytest.mark.parametrize("kind", [2, 5, 11, 12, 13, 99])
@pytest.mark.parametrize("tag", [256, 257, 258, 259, 262, 273, 277, 279, 284, 339])
def test_number_of_a_kind_that_no_writer_uses_ends_in_pixels_or_in_a_reason(
    tag: int, kind: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    for order in ORDERS:
        whole = pictures.tiff(image, 1, order=order, tags={284: 1, 339: 1})
        at = whole.index(struct.pack(order + "H", tag), len(whole) - 140)
        for count in (1, 2):
            odd = whole[: at + 2] + struct.pack(order + "HI", kind, count) + whole[at + 8 :]
            with contextlib.suppress(NotAssessedError):
                assert decode(odd).pixels.shape == image.shape


@pytest.mark.parametrize("start", [101, 200, 1 << 40])
def test_pixels_beyond_the_end_are_cut_off(start: int) -> None:
    with pytest.raises(NotAssessedError) as caught:
        check_end(bytes(200), PixelBlock(start, 10, 10, 1))
    assert caught.value.reason is Reason.TRUNCATED


def test_strips_without_lengths_are_no_reason_to_fail(pictures: Any, decode: Decode) -> None:
    whole = pictures.tiff(pictures.image(), 1)
    at = whole.index(struct.pack("<HHI", 279, 4, 1))
    without = whole[:at] + struct.pack("<H", 280) + whole[at + 2 :]
    assert np.array_equal(decode(without).pixels, pictures.image())


# --- what Pillow does not open, or takes for another picture ------------------------------------


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "overwritten": lambda packed: [*packed[:2], packed[2][:2] + bytes(40), *packed[3:]],
    "zeros within": lambda packed: [
        *packed[:2],
        packed[2][:9] + bytes(60) + packed[2][69:],
        *packed[3:],
    ],
    "short": lambda packed: [
        *packed[:2],
        zlib.compress(zlib.decompress(packed[2])[:500]),
        *packed[3:],
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("more", [{}, {339: 4}, {338: 0}], ids=["", "no kind", "more"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_damaged_strip_is_never_a_hole_in_an_image(
    order: str,
    big: bool,
    more: dict[int, int],
    photometric: int,
    channels: int,
    damage: str,
    pictures: Any,
    decode: Decode,
) -> None:
    image = pictures.image()
    stored = image if photometric else 255 - image
    pixels = image if channels == 1 else pictures.rgb(image)
    tags = {259: 8, 262: 2, 278: 16, **more}
    if channels == 1:
        pixels, tags[262] = stored, photometric
    packed = [zlib.compress(strip) for strip in strips(pixels, 16)]
    read = decode(in_pieces(packed, pixels.shape, tags, order=order, big=big))
    assert np.array_equal(read.pixels, image)
    assert read.warnings == ()
    damaged = in_pieces(DAMAGE[damage](packed), pixels.shape, tags, order=order, big=big)
    assert refusal(decode, damaged) in (Reason.DECODE, Reason.TRUNCATED)


@pytest.mark.parametrize("compression", [32909, 34712, 34887, 34933, 50002])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_compression_that_is_not_read_is_named(
    order: str, big: bool, channels: int, compression: int, pictures: Any, decode: Decode
) -> None:
    pixels = pictures.image() if channels == 1 else pictures.rgb(pictures.image())
    tags = {259: compression, 278: 128}
    with pytest.raises(NotAssessedError, match=f"compression {compression}") as caught:
        decode(in_pieces([pixels.tobytes()], pixels.shape, tags, order=order, big=big))
    assert caught.value.reason is Reason.DECODE


@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_grey_picture_that_states_no_photometric_interpretation_is_read_upright(
    order: str, big: bool, bits: int, packing: int, pictures: Any, decode: Decode
) -> None:
    """As libtiff and tifffile take it, at every depth."""
    image = pictures.image(bits=bits)
    whole = pictures.tiff(image, 1, order=order, big=big, tags={259: packing, 274: 6})
    read, twin = decode(without_photometric(whole)), decode(whole)
    assert np.array_equal(read.pixels, np.rot90(image, 3))
    assert (read.white, read.warnings) == (twin.white, twin.warnings)


@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_picture_with_the_lowest_bit_of_each_byte_first_is_its_usual_twin(
    order: str,
    big: bool,
    bits: int,
    photometric: int,
    packing: int,
    pictures: Any,
    decode: Decode,
) -> None:
    image = pictures.image(bits=bits)
    pixels = pictures.rgb(image) if photometric == 2 else image
    stored = (1 << bits) - 1 - pixels if photometric == 0 else pixels
    tags = {259: packing, 266: 2}
    whole = pictures.tiff(stored, photometric, order=order, big=big, tags=tags)
    at = 16 if big else 8
    (end,) = struct.unpack_from(order + ("Q" if big else "I"), whole, at - (8 if big else 4))
    turned = np.packbits(np.unpackbits(np.frombuffer(whole[at:end], np.uint8)), bitorder="little")
    read = decode(whole[:at] + turned.tobytes() + whole[end:])
    assert np.array_equal(read.pixels, image)
    assert read.warnings == ()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_uncompressed_strip_that_runs_into_the_next_one_is_cut_off(
    order: str, big: bool, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    whole = strips(image, 16)
    for number in (2, len(whole) - 1):
        short = [*whole]
        short[number] = short[number][:1000]
        data = in_pieces(short, image.shape, {278: 16}, order=order, big=big)
        assert refusal(decode, data) is Reason.TRUNCATED
    read = decode(in_pieces(whole, image.shape, {278: 16}, order=order, big=big))
    assert np.array_equal(read.pixels, image)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("bits", [9, 10, 12, 13, 14, 15, 16])
def test_tiff_whose_black_is_the_highest_of_16_bits_is_its_black_is_zero_twin(
    bits: int, marked: bool, big: bool, order: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(300, 200, bits=bits)
    if marked:
        image[20:26, 20:26] = 65535
    twin = decode(pictures.tiff(image, 1, order=order, big=big))
    read = decode(pictures.tiff(65535 - image, 0, order=order, big=big))
    np.testing.assert_array_equal(read.pixels, twin.pixels)
    assert read.white == twin.white == (1 << bits) - 1
    assert read.warnings == twin.warnings == (() if bits == 16 else (WarningCode.DEPTH,))


def test_a_directory_that_points_to_itself_is_one_page(decode: Decode) -> None:
    pixels = np.arange(200 * 256).reshape(200, 256).astype(np.uint8)
    whole = in_pieces(strips(pixels, 200), pixels.shape, {}, order=">", big=True)
    data = bytearray(whole)
    (start,) = struct.unpack_from(">Q", data, 8)
    (entries,) = struct.unpack_from(">Q", data, start)
    struct.pack_into(">Q", data, start + 8 + 20 * entries, start)
    assert np.array_equal(decode(bytes(data)).pixels, decode(whole).pixels)


def test_a_tile_of_more_pixels_than_an_image_may_have_is_not_decoded(
    pictures: Any, decode: Decode
) -> None:
    """Where compressed, some bytes can be a tile of any size, of which the picture is a corner."""
    image = pictures.image()
    for order, packing, width in (("<", 8, 40_000), (">", 5, 99_984)):
        tags = {259: packing, 322: width, 323: 4096}
        for pixels in (image, pictures.rgb(image)):
            for big in (False, True):
                data = in_pieces([bytes(range(250))], pixels.shape, tags, order=order, big=big)
                with pytest.raises(NotAssessedError, match=f"{width} x 4096 pixels") as caught:
                    decode(data)
                assert caught.value.reason is Reason.TOO_BIG


def test_pages_are_counted_in_little_time(pictures: Any, decode: Decode) -> None:
    """Pillow looks for each among all those before it."""
    data = bytearray(pictures.tiff(pictures.image(), 1))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    size = 2 + 12 * entries + 4
    page = bytes(data[start : start + size - 4])
    data += bytes(len(data) % 2)
    first = len(data)
    struct.pack_into("<I", data, start + size - 4, first)
    for number in range(1, 30_000):
        data += page + struct.pack("<I", first + number * size)
    data += page + bytes(4)
    begun = time.monotonic()
    assert refusal(decode, bytes(data)) is Reason.FRAMES
    assert time.monotonic() - begun < 5


def test_a_page_beyond_the_end_is_missing(pictures: Any, decode: Decode) -> None:
    data = bytearray(pictures.tiff(pictures.image(), 1))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, len(data) + 1000)
    assert refusal(decode, bytes(data)) is Reason.TRUNCATED


@pytest.mark.parametrize("compression", [34925, 50000])
def test_compression_of_16_bits_that_is_not_read_is_named(
    compression: int, pictures: Any, decode: Decode
) -> None:
    """LZMA and Zstandard, which Pillow reads and OpenCV does not."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    image = pictures.image(bits=16)
    for pixels, photometric, order in (
        (pictures.rgb(image), "rgb", "<"),
        (pictures.rgb(image), "rgb", ">"),
        (image, "miniswhite", ">"),
    ):
        file = io.BytesIO()
        tifffile.imwrite(
            file, pixels, photometric=photometric, compression=compression, byteorder=order
        )
        with pytest.raises(NotAssessedError, match=rf"compression {compression}\)$") as caught:
            decode(file.getvalue())
        assert caught.value.reason is Reason.DECODE


def test_tags_that_share_their_values_take_no_more_memory_than_the_file() -> None:
    size, tags = 400_000, sorted(tiff._READ)
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 1, size, 8) for tag in tags) + bytes(4)
    data = b"II*\0" + struct.pack("<I", size + 8) + bytes(size) + directory
    page = tiff.read_directory(data)
    assert sum(map(len, page.tags.values())) <= len(data)


def test_a_tag_with_more_values_than_strips_can_be_is_not_read() -> None:
    size = 1 << 21
    entry = struct.pack("<HHII", tiff.STARTS, 1, size, 8)
    data = b"II*\0" + struct.pack("<I", size + 8) + bytes(size) + b"\1\0" + entry + bytes(4)
    assert tiff.read_directory(data).tags == {}
