"""TIFF: one sample in planes, alpha in planes, samples of no stated kind, and few bits a sample."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_tiff import ORDERS, in_pieces

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

Decode = Callable[..., Radiograph]

_TURNED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def as_stored(pixels: NDArray[Any], bits: int, order: str) -> bytes:
    """Grey pixels of an even number a row, uncompressed (TIFF 6.0, section 3)."""
    if bits >= 8:
        return pixels.astype(f"{order}u{bits // 8}").tobytes()
    alone = np.unpackbits(pixels[..., None], axis=2)[..., 8 - bits :]
    return np.packbits(alone.reshape(len(pixels), -1), axis=1).tobytes()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tile", [0, 64])
@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_one_sample_in_planes_is_read_as_one_sample_beside_no_other(
    bits: int, photometric: int, packing: int, tile: int, order: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=16) >> (16 - bits) if bits == 16 else pictures.image() >> (8 - bits)
    stored = image if photometric else (1 << bits) - 1 - image
    pieces = [stored[top : top + 16] for top in range(0, len(stored), 16)]
    tags = {258: bits, 259: packing, 262: photometric, 278: 16}
    if tile:
        padded = np.pad(stored, ((0, -len(stored) % tile), (0, -stored.shape[1] % tile)))
        places = np.ndindex(padded.shape[0] // tile, padded.shape[1] // tile)
        pieces = [padded[y * tile :, x * tile :][:tile, :tile] for y, x in places]
        tags = {258: bits, 259: packing, 262: photometric, 322: tile, 323: tile}
    packed = [as_stored(piece, bits, order) for piece in pieces]
    packed = [zlib.compress(one) for one in packed] if packing == 8 else packed
    read = decode(in_pieces(packed, stored.shape, {**tags, 284: 2}, order=order))
    twin = decode(in_pieces(packed, stored.shape, {**tags, 284: 1}, order=order))
    scale = 255 // ((1 << bits) - 1) if bits < 8 else 1
    assert np.array_equal(read.pixels, image * scale)
    assert np.array_equal(read.pixels, twin.pixels)
    assert read.warnings == twin.warnings == ((WarningCode.DEPTH,) if bits < 8 else ())


def test_12_bits_of_one_sample_in_planes_are_read(pictures: Any, decode: Decode) -> None:
    image = pictures.image(bits=12)
    left, right = image[:, ::2], image[:, 1::2]
    packed = np.dstack([left >> 4, left << 4 & 0xF0 | right >> 8, right & 0xFF])
    data = in_pieces([packed.astype(np.uint8).tobytes()], image.shape, {258: 12, 278: 128, 284: 2})
    assert np.array_equal(decode(data).pixels, image)


@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("extra", [1, 2])
def test_grey_and_alpha_in_planes_are_refused_by_name(
    extra: int, packing: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    planes = [image.tobytes(), np.full_like(image, 255).tobytes()]
    pieces = [zlib.compress(plane) for plane in planes] if packing == 8 else planes
    tags = {258: 8, 259: packing, 262: 1, 278: len(image), 284: 2, 338: extra}
    with pytest.raises(NotAssessedError, match=r"alpha .* in separate planes") as caught:
        decode(in_pieces(pieces, (*image.shape, 2), {**tags, 277: 2}))
    assert caught.value.reason is Reason.MODE


@pytest.mark.parametrize(("extra", "photometric"), [(1, 2), (0, 0), (0, 1)])
def test_planes_that_are_not_read_are_no_unknown_raw_mode(
    extra: int, photometric: int, pictures: Any, decode: Decode
) -> None:
    """RGB with an alpha that is laid on black, and grey with a sample of no meaning."""
    image = pictures.image()
    channels = 4 if photometric == 2 else 2
    tags = {262: photometric, 278: len(image), 284: 2, 338: extra}
    with pytest.raises(NotAssessedError, match="in separate planes") as caught:
        decode(in_pieces([image.tobytes()] * channels, (*image.shape, channels), tags))
    assert caught.value.reason is Reason.MODE


# --- samples of no stated kind (SampleFormat 4), and the lowest bit of each byte first ------------


def with_turned_bits(data: bytes, order: str) -> bytes:
    """A TIFF of one strip at its start with the bits of each byte of it turned."""
    (end,) = struct.unpack_from(order + "I", data, 4)
    return data[:8] + data[8:end].translate(_TURNED) + data[end:]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fill", [1, 2])
@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1, 2])
def test_samples_of_no_stated_kind_are_unsigned(
    photometric: int,
    bits: int,
    packing: int,
    fill: int,
    order: str,
    pictures: Any,
    decode: Decode,
) -> None:
    image = pictures.image(bits=bits)
    white = 255 if bits == 8 else 65535
    pixels = pictures.rgb(image) if photometric == 2 else image
    stored = white - pixels if photometric == 0 else pixels
    tags = {259: packing, 266: fill, 339: 4}
    data = pictures.tiff(stored, photometric, order=order, tags=tags)
    read = decode(with_turned_bits(data, order) if fill == 2 else data)
    assert np.array_equal(read.pixels, image)
    assert read.warnings == ((WarningCode.DEPTH,) if bits == 12 else ())


def test_palette_of_no_stated_kind_is_looked_up(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    picture = Image.fromarray(255 - image).convert("P")
    picture.putpalette([255 - level // 3 for level in range(768)])
    read = decode(pictures.encode(picture, "TIFF", tiffinfo={339: 4}))
    assert np.array_equal(read.pixels, image)
    assert read.warnings == (WarningCode.PALETTE,)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("more", [{}, {339: 4}, {266: 2}, {266: 2, 339: 4}])
@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_grey_and_alpha_are_read_whatever_their_kind_and_order_of_bits(
    extra: int, packing: int, more: dict[int, int], order: str, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    both = np.dstack([image, np.full_like(image, 255)])
    data = pictures.tiff(both, 1, order=order, tags={259: packing, 338: extra, **more})
    read = decode(with_turned_bits(data, order) if 266 in more else data)
    assert np.array_equal(read.pixels, image)
    assert read.warnings == ()


@pytest.mark.parametrize("packing", [1, 8])
def test_grey_with_alpha_that_states_no_photometric_interpretation_is_black_is_zero(
    packing: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    both = np.dstack([image, np.full_like(image, 255)])
    whole = pictures.tiff(both, 1, tags={259: packing, 338: 2})
    without = whole.replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 263, 3))
    assert np.array_equal(decode(without).pixels, image)


# --- few bits a sample ------------------------------------------------------------------------


def test_bmp_of_5_bits_a_colour_is_read_with_a_warning(pictures: Any, decode: Decode) -> None:
    image = pictures.image() >> 3
    words = (image.astype("<u2") * 0x421)[::-1]
    read = decode(pictures.bmp(words.tobytes(), image.shape[::-1], 16))
    assert np.abs(read.pixels - image * (255 / 31)).max() < 1
    assert read.warnings == (WarningCode.DEPTH,)


def test_8_bits_of_16_levels_give_no_warning(pictures: Any, decode: Decode) -> None:
    image = (pictures.image() >> 4) * 17
    assert decode(pictures.encode(image, "TIFF")).warnings == ()
