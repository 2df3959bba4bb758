"""Damage in Deflate and JPEG inside a TIFF, which libtiff passes over; whole ones are read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from test_tiff import in_pieces, strips

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.formats.tiff.damage import check_compressed
from deepcovid_edge.imaging.formats.tiff.directory import SIZES, STARTS, read_directory
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]
DEFLATE = (8, 32946)


def refusal(decode: Decode, data: bytes) -> NotAssessedError:
    with pytest.raises(NotAssessedError) as caught:
        decode(data)
    return caught.value


def by_pillow(picture: Any, compression: str, **more: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "TIFF", compression=compression, **more)
    return file.getvalue()


def first_piece(data: bytes) -> slice:
    page = read_directory(data)
    start, size = page.tags[STARTS][0], page.tags[SIZES][0]
    return slice(start, start + size)


@pytest.mark.parametrize("compression", DEFLATE)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tags", [{278: 16}, {278: 128}, {322: 160, 323: 64}], ids=str)
def test_a_byte_that_fails_the_checksum_of_deflate_is_no_pixel(
    tags: dict[int, int], order: str, compression: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    rows = tags.get(278, 64)
    packed = [zlib.compress(strip, 0) for strip in strips(image, rows)]
    tags = {259: compression, **tags}
    whole = in_pieces(packed, image.shape, tags, order=order)
    assert np.array_equal(decode(whole).pixels, image)
    changed = bytearray(packed[-1])
    changed[len(changed) // 2] ^= 0x55
    packed[-1] = bytes(changed)
    error = refusal(decode, in_pieces(packed, image.shape, tags, order=order))
    assert error.reason is Reason.DECODE
    assert error.detail.startswith(f"strip or tile {len(packed)} is damaged: ")


def test_a_strip_without_its_checksum_is_damaged(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    packed = [zlib.compress(image.tobytes())[:-2]]
    error = refusal(decode, in_pieces(packed, image.shape, {259: 8, 278: 128}))
    assert (error.reason, error.detail) == (
        *(Reason.DECODE, "strip or tile 1 is damaged: it lacks its checksum"),
    )


def test_no_strip_is_inflated_far_beyond_its_rows(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    for surplus, is_read in ((image.nbytes, True), (8 << 20, False)):
        packed = [zlib.compress(image.tobytes() + bytes(surplus))]
        data = in_pieces(packed, image.shape, {259: 8, 278: 128})
        if is_read:
            assert np.array_equal(decode(data).pixels, image)
        else:
            assert refusal(decode, data).detail.endswith("it is longer than its rows")


def test_tiles_that_share_their_bytes_are_not_decoded_without_end(
    pictures: Any, decode: Decode
) -> None:
    tile, image = zlib.compress(bytes(1 << 16)), pictures.image()
    data = in_pieces([tile] * 160, image.shape, {259: 8, 322: 1, 323: 90_000_000})
    assert refusal(decode, data).reason is Reason.TOO_BIG


def test_strips_that_lie_over_each_other_are_read_a_few_times_at_most(
    pictures: Any, decode: Decode
) -> None:
    image, strip = pictures.image(), zlib.compress(pictures.image()[:2].tobytes())
    data = in_pieces([strip + b"x" * 20_000] + [strip] * 63, image.shape, {259: 8, 278: 2})
    page = read_directory(data)
    packed = struct.pack("<64I", *page.tags[SIZES])
    shared = data.replace(packed, struct.pack("<64I", *[page.tags[SIZES][0]] * 64))
    first = struct.pack("<I", page.tags[STARTS][0])
    starts = struct.pack("<64I", *page.tags[STARTS])
    assert refusal(decode, shared.replace(starts, first * 64)).detail == "strips or tiles overlap"


@pytest.mark.parametrize("compression", [8, 7])
def test_strips_of_no_stated_length_end_where_the_next_begins(
    compression: int, pictures: Any
) -> None:
    image = pictures.image()
    packed = [zlib.compress(strip) for strip in strips(image, 32)]
    if compression == 7:
        pieces = (image[top : top + 32, :, np.newaxis] for top in range(0, 128, 32))
        packed = [simplejpeg.encode_jpeg(np.ascontiguousarray(one), 95, "GRAY") for one in pieces]
    data = in_pieces(packed, image.shape, {259: compression, 278: 32})
    at = data.index(struct.pack("<HHI", 279, 4, 4))
    check_compressed(data[:at] + struct.pack("<H", 280) + data[at + 2 :])
    damaged = data.replace(packed[2], packed[2][:-9] + bytes(9))
    with pytest.raises(NotAssessedError, match="strip or tile 3 is damaged"):
        check_compressed(damaged[:at] + struct.pack("<H", 280) + damaged[at + 2 :])


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_a_strip_that_libjpeg_warns_of_is_damaged(mode: str, decode: Decode) -> None:
    noise = np.random.default_rng(1).integers(0, 40, (480, 480), dtype=np.uint8)
    picture = Image.fromarray(noise + np.arange(0, 192, 0.4).astype(np.uint8)).convert(mode)
    data = by_pillow(picture, "jpeg", quality=95, strip_size=480 * 160)
    assert decode(data).pixels.shape == (480, 480)
    place = first_piece(data)
    middle = (place.start + place.stop) // 2
    error = refusal(decode, data[:middle] + bytes(512) + data[middle + 512 :])
    assert error.reason is Reason.DECODE
    assert error.detail.startswith("strip or tile 1 is damaged: ")


def test_a_strip_of_jpeg_may_lack_its_end_mark_alone(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    coded = simplejpeg.encode_jpeg(image[..., np.newaxis], 95, "GRAY")
    tags = {259: 7, 278: 128}
    whole = decode(in_pieces([coded], image.shape, tags)).pixels
    assert np.array_equal(decode(in_pieces([coded[:-2]], image.shape, tags)).pixels, whole)
    error = refusal(decode, in_pieces([coded[:-60]], image.shape, tags))
    assert error.detail == "strip or tile 1 is damaged: it lacks its end"


def test_tables_of_jpeg_are_no_larger_than_any_need(
    monkeypatch: pytest.MonkeyPatch, pictures: Any, decode: Decode
) -> None:
    """They are read again with each strip."""
    whole = by_pillow(Image.fromarray(pictures.image()), "jpeg")
    decode(whole)
    monkeypatch.setattr("deepcovid_edge.imaging.formats.tiff.damage._MOST_TABLES", 100)
    assert "JPEG tables of" in str(refusal(decode, whole))


def test_a_strip_of_jpeg_is_no_larger_than_its_place(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    coded = simplejpeg.encode_jpeg(np.zeros((512, 160, 1), np.uint8), 95, "GRAY")
    error = refusal(decode, in_pieces([coded], image.shape, {259: 7, 278: 128}))
    assert error.detail == "strip or tile 1 is damaged: it has 160 x 512 pixels"


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_whole_files_of_pillow_are_read(
    mode: str, compression: str, pictures: Any, decode: Decode
) -> None:
    if (mode, compression) == ("I;16", "jpeg"):
        pytest.skip("libtiff writes no such file")
    image = pictures.image()
    picture = Image.fromarray(image.astype(np.uint16) << 4 if mode == "I;16" else image)
    picture = picture if mode == "I;16" else picture.convert(mode)
    for rows in (8, 24, 128):
        for size in ({}, {"strip_size": rows * 160}):
            data = by_pillow(picture, compression, tiffinfo={278: rows}, **size)
            assert decode(data).pixels.shape == image.shape


LOSSLESS = {"lossless": True, "predictor": 6}
KINDS: list[dict[str, Any]] = [
    *({"compression": "adobe_deflate", "predictor": on} for on in (True, False)),
    {"compression": "deflate"},
    {"compression": "jpeg"},
    {"compression": "jpeg", "compressionargs": LOSSLESS},
    {"compression": "jpeg", "compressionargs": {"bitspersample": 12}},
    {"compression": "jpeg", "compressionargs": {"bitspersample": 12, **LOSSLESS}},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("place", [{"tile": (64, 48)}, {"rowsperstrip": 10}, {"bigtiff": True}])
def test_whole_files_of_tifffile_are_read(
    place: dict[str, Any], kind: dict[str, Any], pictures: Any, decode: Decode
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    pytest.importorskip("imagecodecs", reason="needs extra dicom")
    image, deep = pictures.image(), kind.get("compressionargs", {}).get("bitspersample")
    pixels = image.astype(np.uint16) << 4 if deep else image
    planes = [{}] if deep else [{"photometric": "rgb", "planarconfig": "separate"}]
    if not deep and "compressionargs" not in kind:
        planes.append({"photometric": "rgb", "planarconfig": "contig"})
        planes.append({"photometric": "minisblack"})
    for more in planes:
        given = pixels
        if more.get("planarconfig"):
            given = np.stack([pixels] * 3, axis=0 if more["planarconfig"] == "separate" else -1)
        file = io.BytesIO()
        tifffile.imwrite(file, given, metadata=None, **kind, **place, **more)
        read = decode(file.getvalue()).pixels
        error = np.abs(read.astype(int) - pixels)
        assert error.max() <= (40 if kind["compression"] == "jpeg" else 0)
