"""Damage in the PackBits of a TIFF: libtiff reads on where a strip makes more bytes than it may."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_tiff import in_pieces

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.formats.tiff.damage import check_compressed
from deepcovid_edge.imaging.formats.tiff.directory import SIZES, STARTS, read_directory
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]
PACKBITS = 32773
DAMAGED = "is damaged: it does not unpack to its rows"


def packed(rows: NDArray[np.uint8]) -> bytes:
    """Runs of up to 128 bytes as they are, each row for itself (TIFF 6.0, section 9)."""
    parts = (row[at : at + 128].tobytes() for row in rows for at in range(0, len(row), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def in_strips(image: NDArray[np.uint8], rows: int) -> list[bytes]:
    return [packed(image[top : top + rows]) for top in range(0, len(image), rows)]


def detail(decode: Decode, data: bytes) -> str:
    with pytest.raises(NotAssessedError) as caught:
        decode(data)
    assert caught.value.reason is Reason.DECODE
    return caught.value.detail


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", None], ids=["zeros", "ones", "noise"])
def test_a_lost_sector_of_packbits_is_no_pixel(
    fill: bytes | None, mode: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=16 if mode == "I;16" else 8)
    picture = Image.fromarray(image)
    picture = picture if mode == "I;16" else picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF", compression="packbits")
    whole = file.getvalue()
    assert np.array_equal(decode(whole).pixels, image)
    page = read_directory(whole)
    start, size = page.tags[STARTS][0], page.tags[SIZES][0]
    at = (start + size // 2) // 512 * 512
    sector = fill * 512 if fill else np.random.default_rng(4).bytes(512)
    assert detail(decode, whole[:at] + sector + whole[at + 512 :]).endswith(DAMAGED)


def test_a_strip_of_packbits_is_as_long_as_its_rows(pictures: Any, decode: Decode) -> None:
    image, tags = pictures.image(), {259: PACKBITS, 278: 48}
    whole = in_strips(image, 48)
    assert np.array_equal(decode(in_pieces(whole, image.shape, tags)).pixels, image)
    for number in range(3):
        longer = [*whole]
        longer[number] += packed(image[:1, :9])
        said = detail(decode, in_pieces(longer, image.shape, tags))
        assert said == f"strip or tile {number + 1} {DAMAGED}"


BEHIND = [b"", b"\0", b"x", b"\x11\x22\x33", b"wxyz", b"x" + bytes(30), b"\x80", b"\x80" * 7]


@pytest.mark.parametrize("behind", BEHIND, ids=repr)
def test_padding_behind_packbits_is_no_damage(behind: bytes, pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    pieces = [b"\x80" + strip + behind for strip in in_strips(image, 48)]
    read = decode(in_pieces(pieces, image.shape, {259: PACKBITS, 278: 48}))
    assert np.array_equal(read.pixels, image)


def test_lengths_of_packbits_may_reach_into_the_next_strip(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    data = in_pieces(in_strips(image, 48), image.shape, {259: PACKBITS, 278: 48})
    assert np.array_equal(decode(longer_strips(data, 4)).pixels, image)
    assert detail(decode, longer_strips(data, 5)).endswith(DAMAGED)


def longer_strips(data: bytes, more: int) -> bytes:
    """A file that states so many bytes more for each of its strips but the last."""
    lengths = read_directory(data).tags[SIZES]
    stated, longer = (
        struct.pack(f"<{len(lengths)}I", *sizes)
        for sizes in (lengths, [size + more for size in lengths[:-1]] + [lengths[-1]])
    )
    assert data.count(stated) == 1
    return data.replace(stated, longer)


def test_the_last_strip_of_packbits_may_be_filled(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    for more in (8, 16):
        filled = np.vstack([image, np.zeros((more, 160), np.uint8)])
        data = in_pieces(in_strips(filled, 48), image.shape, {259: PACKBITS, 278: 48})
        assert np.array_equal(decode(data).pixels, image)


def test_rows_of_packbits_may_be_packed_together(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    pieces = [packed(image[top : top + 48].reshape(1, -1)) for top in range(0, 128, 48)]
    read = decode(in_pieces(pieces, image.shape, {259: PACKBITS, 278: 48}))
    assert np.array_equal(read.pixels, image)


def test_a_last_run_of_packbits_that_lacks_its_bytes_is_damaged(
    pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    for strip in (packed(image)[:-3], packed(image)[:-33] + b"\xe1"):
        detail(decode, in_pieces([strip], image.shape, {259: PACKBITS, 278: 128}))


def test_strips_of_packbits_without_lengths_are_checked_too(pictures: Any) -> None:
    image = pictures.image()
    data = in_pieces(in_strips(image, 48), image.shape, {259: PACKBITS, 278: 48}, gap=5)
    at = data.index(struct.pack("<HHI", SIZES, 4, 3))
    without = data[:at] + struct.pack("<H", 280) + data[at + 2 :]
    check_compressed(without)
    with pytest.raises(NotAssessedError, match="strip or tile 1 " + DAMAGED):
        check_compressed(without[:3000] + b"\x77" * 512 + without[3512:])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rows_of_few_bits_end_with_a_byte(bits: int) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (9, -(-13 * bits // 8)), dtype=np.uint8)
    tags = {258: bits, 259: PACKBITS, 278: 4}
    check_compressed(in_pieces(in_strips(rows, 4), (9, 13), tags))
    with pytest.raises(NotAssessedError, match="strip or tile 3"):
        check_compressed(in_pieces([*in_strips(rows, 4)[:2], b"\0x"], (9, 13), tags))


def test_no_more_of_packbits_is_read_than_its_rows_can_take(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    data = in_pieces([b"\x80" * 50_000 + packed(image)], image.shape, {259: PACKBITS, 278: 128})
    assert detail(decode, data).endswith(DAMAGED)


PLACES: list[dict[str, Any]] = [
    {"tile": (64, 48)},
    {"rowsperstrip": 10},
    {"bigtiff": True},
    {"byteorder": ">", "rowsperstrip": 7},
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_whole_packbits_of_tifffile_are_read(
    place: dict[str, Any], pictures: Any, decode: Decode
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    pytest.importorskip("imagecodecs", reason="needs extra dicom")
    grey, deep = pictures.image(), pictures.image(bits=16)
    colours = {"photometric": "rgb"}
    for given, more in (
        (grey, {}),
        (deep, {}),
        (np.dstack([grey] * 3), colours),
        (np.stack([grey] * 3), {**colours, "planarconfig": "separate"}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, given, metadata=None, compression="packbits", **place, **more)
        assert np.array_equal(decode(file.getvalue()).pixels, deep if given is deep else grey)
