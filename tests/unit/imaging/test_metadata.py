"""Metadata decides about no pixel: a picture with odd metadata is read as its twin without."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import WarningCode

Decode = Callable[..., Radiograph]
LARGE = 2_000_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as a run does


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jfif(version: bytes, *, thumbnail: bytes = b"\0\0") -> bytes:
    return segment(0xE0, b"JFIF\0" + version + b"\0\0\1\0\1" + thumbnail)


def behind_jfif(data: bytes, more: bytes) -> bytes:
    """A JPEG of Pillow with bytes behind its first segment, JFIF's of 18 bytes."""
    return data[:20] + more + data[20:]


def scan(data: bytes, spectrum: bytes) -> bytes:
    """A grey JPEG whose scan states this spectrum."""
    at = data.index(b"\xff\xda") + 7
    return data[:at] + spectrum + data[at + 3 :]


ICC = b"ICC_PROFILE\0"
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "jfif-0.02": lambda data: data[:2] + jfif(b"\0\2") + data[20:],
    "jfif-1.99": lambda data: data[:2] + jfif(b"\1\x63") + data[20:],
    "jfif-2.01": lambda data: data[:2] + jfif(b"\2\1") + data[20:],
    "jfif-255.255": lambda data: data[:2] + jfif(b"\xff\xff") + data[20:],
    "jfif-thumbnail-of-another-size": lambda data: (
        data[:2] + jfif(b"\1\1", thumbnail=b"\x50\x50abc") + data[20:]
    ),
    "jfif-short": lambda data: data[:2] + segment(0xE0, b"JFIF\0\1") + data[20:],
    "no-jfif": lambda data: data[:2] + data[20:],
    "jfxx-thumbnail-unknown": lambda data: behind_jfif(data, segment(0xE0, b"JFXX\0\x99abc")),
    "adobe-transform-unknown": lambda data: behind_jfif(
        data, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")
    ),
    "adobe-short": lambda data: behind_jfif(data, segment(0xEE, b"Adobe\0")),
    "icc-without-its-second-half": lambda data: behind_jfif(
        data, segment(0xE2, ICC + b"\1\2" + bytes(500))
    ),
    "icc-of-no-part": lambda data: behind_jfif(data, segment(0xE2, ICC)),
    "exif-garbage": lambda data: behind_jfif(data, segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "exif-empty": lambda data: behind_jfif(data, segment(0xE1, b"Exif\0\0")),
    "photoshop-garbage": lambda data: behind_jfif(
        data, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\xff\xff")
    ),
    "many-large-segments": lambda data: behind_jfif(data, segment(0xE5, bytes(65_000)) * 40),
    "comment": lambda data: behind_jfif(data, segment(0xFE, b"\xff\xda\xff\xd9" * 9)),
    "empty-segment": lambda data: behind_jfif(data, segment(0xE9, b"")),
    "bytes-between-segments": lambda data: behind_jfif(data, b"\0\1\2"),
    "fill-bytes": lambda data: behind_jfif(data, b"\xff\xff\xff"),
    "spectrum-of-zeros": lambda data: scan(data, b"\0\0\0"),
    "spectrum-1-to-5": lambda data: scan(data, b"\1\5\0"),
    "approximation": lambda data: scan(data, b"\0\x3f\x13"),
    "bytes-behind-the-pixels": lambda data: data[:-2] + b"\1\2\3\4" + data[-2:],
    "zeros-behind-the-pixels": lambda data: data[:-2] + bytes(5000) + data[-2:],
    "bytes-behind-the-end": lambda data: data + b"Vendor\xff\xd8\xff\xda" * 20,
    "two-oddities": lambda data: (
        scan(data[:2] + jfif(b"\2\1") + data[20:-2], b"\0\0\0") + b"\0\0\0\0" * 5 + b"\xff\xd9"
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_jpeg_with_odd_metadata_is_read_as_its_clean_twin(
    kind: str, pictures: Any, decode: Decode
) -> None:
    clean = pictures.encode(pictures.image(), "JPEG", quality=95)
    odd = HARMLESS[kind](clean)
    assert odd != clean
    assert np.array_equal(decode(odd).pixels, decode(clean).pixels)


COLOUR_KINDS = [kind for kind in HARMLESS if not kind.startswith(("spectrum", "approx", "two"))]


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_so_is_a_jpeg_that_stores_colours(kind: str, pictures: Any, decode: Decode) -> None:
    clean = pictures.encode(pictures.rgb(pictures.image()), "JPEG", quality=95)
    assert np.array_equal(decode(HARMLESS[kind](clean)).pixels, decode(clean).pixels)


def test_stray_bytes_between_the_scans_of_a_progressive_jpeg_do_no_harm(
    pictures: Any, decode: Decode
) -> None:
    clean = pictures.encode(pictures.image(), "JPEG", progressive=True)
    second = clean.index(b"\xff\xda", clean.index(b"\xff\xda") + 2)
    table = clean.rindex(b"\xff\xc4", 0, second)
    odd = clean[:table] + bytes(40) + clean[table:-2] + bytes(40) + clean[-2:]
    assert np.array_equal(decode(odd).pixels, decode(clean).pixels)


DAMAGED: dict[str, Callable[[bytes, int], bytes]] = {
    "bad-codes": lambda data, at: data[:at] + b"\xfe" * 60 + data[at + 60 :],
    "a-marker-in-the-pixels": lambda data, at: data[:at] + b"\xff\xc4" + data[at + 2 :],
    "missing-bytes": lambda data, at: data[:at] + data[-2:],
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", ["jfif-2.01", "spectrum-of-zeros", "zeros-behind-the-pixels"])
def test_damage_behind_a_harmless_warning_is_found(
    damage: str, kind: str, pictures: Any, decode: Decode
) -> None:
    """libjpeg tells of its first warning alone."""
    odd = HARMLESS[kind](pictures.encode(pictures.image(), "JPEG", quality=95))
    at = (odd.index(b"\xff\xda") + odd.rindex(b"\xff\xd9")) // 3
    with pytest.raises(NotAssessedError) as caught:
        decode(DAMAGED[damage](odd, at))
    assert caught.value.reason.code in {"E_DECODE", "E_TRUNCATED"}


def test_many_scans_that_lost_their_place_are_not_taken_for_stray_bytes(
    pictures: Any, decode: Decode
) -> None:
    """A wrong byte may swallow a block: what is left at the end then are no stray bytes."""
    draw = np.random.default_rng(3)
    read: list[bool] = []
    for seed in range(24):
        data = pictures.encode(pictures.image(seed=seed), "JPEG", quality=90)
        left = len(read)
        while len(read) == left:
            changed = bytearray(data)
            at = draw.integers(data.index(b"\xff\xda") + 20, len(data) - 40)
            changed[at] ^= 1 << int(draw.integers(8))
            if "before marker 0xd9" in first_warning(bytes(changed)):
                try:
                    read.append(decode(bytes(changed)) is not None)
                except NotAssessedError:
                    read.append(False)
    assert sum(read) <= len(read) // 2


def test_overwritten_bytes_leave_no_stray_bytes(pictures: Any, decode: Decode) -> None:
    """Half of all scans end in a byte of which the last bit is 1, damaged or not."""
    draw = np.random.default_rng(5)
    for seed in range(24):
        data = pictures.encode(pictures.image(seed=seed), "JPEG", quality=95)
        at = draw.integers(data.index(b"\xff\xda") + 20, len(data) * 2 // 3)
        noise = draw.integers(0, 255, 400, np.uint8).tobytes()
        damaged = data[:at] + noise + data[at + len(noise) :]
        count = re.search("([0-9]+) extraneous bytes before marker 0xd9", first_warning(damaged))
        if count and int(count[1]) > 8:
            with pytest.raises(NotAssessedError):
                decode(damaged)


def first_warning(data: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(data, "GRAY")
    except ValueError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------------- PNG

EXIF_OF_NO_USE = b"MM\0*\xff\xff\xff\xff"
APNG_FRAME = struct.pack(">IIIIIHHBB", 0, 160, 128, 0, 0, 1, 1, 0, 0)
PNG_CHUNKS: dict[str, list[tuple[bytes, bytes]]] = {
    "ztxt-large": [(b"zTXt", b"header\0\0" + zlib.compress(bytes(LARGE)))],
    "text-large": [(b"tEXt", b"header\0" + b"x" * LARGE)],
    "itxt-large": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * LARGE))],
    "texts-of-64-mib": [(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000)))] * 80,
    "icc-large": [(b"iCCP", b"icc\0\0" + zlib.compress(bytes(LARGE)))],
    "icc-no-zlib": [(b"iCCP", b"icc\0\0garbage")],
    "text-no-zlib": [(b"zTXt", b"key\0\0garbage")],
    "text-of-another-method": [(b"zTXt", b"key\0\x07garbage")],
    "text-without-a-keyword": [(b"tEXt", b"\0")],
    "private-large": [(b"prVt", bytes(LARGE))],
    "unknown": [(b"abCd", b"x"), (b"zzzz", b"")],
    "exif-garbage": [(b"eXIf", EXIF_OF_NO_USE)],
    "exif-empty": [(b"eXIf", b"")],
    "apng-of-one-picture": [(b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", APNG_FRAME)],
    "apng-of-none": [(b"acTL", struct.pack(">II", 0, 0))],
    "apng-short": [(b"acTL", b"\0")],
    **{
        f"{kind.decode()}-{length}": [(kind, bytes(length))]
        for kind in (
            b"cHRM",
            b"gAMA",
            b"sRGB",
            b"pHYs",
            b"tIME",
            b"sBIT",
            b"bKGD",
            b"sPLT",
            b"hIST",
        )
        for length in (0, 2)
    },
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", PNG_CHUNKS)
def test_a_png_with_odd_chunks_is_read_as_its_clean_twin(
    kind: str, place: str, pictures: Any, decode: Decode
) -> None:
    for bits in (8, 16):
        image = pictures.image(bits=bits)
        odd = pictures.png(image, 0, **{place: PNG_CHUNKS[kind]})
        assert np.array_equal(decode(odd).pixels, decode(pictures.png(image, 0)).pixels)


@pytest.mark.parametrize(
    ("value", "more", "is_unusual"),
    [
        *((100_000, [], True), (0, [], True), (30_000, [], True)),
        *((45_455, [], False), (50_000, [], False), (55_556, [], False)),
        *((100_000, [(kind, b"\0")], False) for kind in (b"sRGB", b"iCCP", b"cICP")),
    ],
)
def test_an_unusual_gamma_is_a_warning_and_changes_no_pixel(
    value: int, more: list[tuple[bytes, bytes]], is_unusual: bool, pictures: Any, decode: Decode
) -> None:
    image, gamma = pictures.image(), (b"gAMA", struct.pack(">I", value))
    read = decode(pictures.png(image, 0, before=[gamma, *more]))
    assert read.warnings == ((WarningCode.GAMMA,) if is_unusual else ())
    assert np.array_equal(read.pixels, image)


@pytest.mark.parametrize("kind", [b"tEXt", b"pHYs", b"gAMA", b"eXIf", b"abCd", b"acTL"])
def test_a_wrong_checksum_of_an_ancillary_chunk_does_no_harm(
    kind: bytes, pictures: Any, decode: Decode
) -> None:
    image = pictures.image()
    odd = bytearray(pictures.png(image, 0, before=[(kind, bytes(9))]))
    odd[odd.index(kind) + 4 + 9] ^= 1
    assert np.array_equal(decode(bytes(odd)).pixels, image)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_a_wrong_checksum_of_what_pixels_depend_on_is_a_reason(
    kind: bytes, pictures: Any, decode: Decode
) -> None:
    chunks = [(b"PLTE", bytes(range(256)) * 3), (b"tRNS", bytes(3))]
    odd = bytearray(pictures.png(pictures.image(), 3, before=chunks))
    odd[odd.index(kind) + 4] ^= 1
    with pytest.raises(NotAssessedError, match="decoded"):
        decode(bytes(odd))


def test_an_animation_stays_more_than_one_picture(pictures: Any, decode: Decode) -> None:
    frames = [Image.fromarray(pictures.image(seed=seed)) for seed in (1, 2)]
    with pytest.raises(NotAssessedError, match="More than one"):
        decode(pictures.encode(frames[0], "PNG", save_all=True, append_images=frames[1:]))


def test_a_bomb_stays_too_large(pictures: Any, decode: Decode) -> None:
    rows = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", b"k\0" + bytes(LARGE)), (b"IDAT", rows), (b"IEND", b"")]
    with pytest.raises(NotAssessedError, match="too large"):
        decode(pictures.png_of_chunks(chunks))


# ------------------------------------------------------------------------------------ WebP, TIFF


def webp_with(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A lossless WebP in its extended form, with chunks behind the pixels."""
    width, height = 160, 128
    flags = (b"ICCP", 0x20), (b"EXIF", 0x08), (b"XMP ", 0x04)
    stated = sum(bit for kind, bit in flags if kind in dict(chunks))
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + riff(b"VP8X", bytes([stated, 0, 0, 0]) + size)
    body += b"".join(riff(*chunk) for chunk in chunks if chunk[0] == b"ICCP") + data[12:]
    body += b"".join(riff(*chunk) for chunk in chunks if chunk[0] != b"ICCP")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP ", b"ABCD"])
@pytest.mark.parametrize("content", [b"", b"garbage", EXIF_OF_NO_USE, bytes(LARGE)])
def test_a_webp_with_odd_metadata_is_read_as_its_clean_twin(
    kind: bytes, content: bytes, pictures: Any, decode: Decode
) -> None:
    clean = pictures.encode(pictures.image(), "WEBP", lossless=True)
    assert np.array_equal(decode(webp_with(clean, (kind, content))).pixels, decode(clean).pixels)


TIFF_TAGS: dict[str, dict[int, int]] = {
    "software-as-a-number": {305: 7},
    "date-as-a-number": {306: 1},
    "description-as-a-number": {270: 65535},
    "private": {65000: 1, 34377: 2, 33550: 3},
    "exif-directory-nowhere": {34665: 65535},
    "gps-directory-nowhere": {34853: 65535},
    "icc-as-a-number": {34675: 1},
    "xmp-as-a-number": {700: 1},
    "metadata-of-geo": {34735: 1, 42112: 5},
    "thresholding": {263: 9},
    "page-3-of-9": {297: 3},
}


@pytest.mark.parametrize("kind", TIFF_TAGS)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_with_odd_tags_is_read_as_its_clean_twin(
    kind: str, bits: int, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(bits=bits)
    odd = decode(pictures.tiff(image, 1, tags=TIFF_TAGS[kind]))
    assert np.array_equal(odd.pixels, decode(pictures.tiff(image, 1)).pixels)


def test_a_large_text_in_a_tiff_does_no_harm(pictures: Any, decode: Decode) -> None:
    image = pictures.image()
    odd = pictures.encode(image, "TIFF", tiffinfo={270: "x" * LARGE, 65001: "y" * LARGE})
    assert np.array_equal(decode(odd).pixels, image)


@pytest.mark.parametrize("kind", [0, 13, 99, 65535])
def test_a_tag_of_an_unknown_type_does_no_harm(kind: int, pictures: Any, decode: Decode) -> None:
    odd = bytearray(pictures.tiff(pictures.image(), 1, tags={305: 7}))
    at = odd.index(struct.pack("<HH", 305, 3))
    struct.pack_into("<H", odd, at + 2, kind)
    assert np.array_equal(decode(bytes(odd)).pixels, pictures.image())
