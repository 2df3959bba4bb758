"""Containers: what kind a file is, whether it is whole, and what becomes of damaged ones."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import MIN_SIDE, Radiograph
from deepcovid_edge.imaging.signatures import (
    is_cut_off,
    is_damaged,
    is_dicom,
    known_kind,
    unread_format,
)
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]


# --- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dicom"),
    [
        (bytes(128) + b"DICM", True),
        (b"II*\0" + bytes(124) + b"DICM" + bytes(9), True),
        (bytes(127) + b"DICM", False),
        (b"DICM", False),
        (bytes(128) + b"DIC", False),
        (b"", False),
    ],
)
def test_dicom_is_told_by_its_prefix_behind_the_preamble(data: bytes, dicom: bool) -> None:
    assert is_dicom(data) is dicom


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "a ZIP archive or office document"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\x10\x20", "a JPEG XL codestream"),
        (b"II\xbc\x01\x08\0\0\0", "JPEG XR"),
        (b"P5\n640 480\n255\n\x10", "PGM"),
        (b"P5 640\t480\r\n65535 \x10", "PGM"),
        (b"P2\n# of the ward\n640 # wide\n480\n255\n0 1", "PGM"),
        (b"P6\n640 480\n255\n\x10", "PPM"),
        (b"P3 640 480 255\n0 0 0", "PPM"),
        (b"P5", None),
        (b"P5\n", None),
        (b"P5 and P6 are patients of ward 7", None),
        (b"P5 120 80 mmHg\n", None),
        (b"P5640 480 255\n", None),
        (b"P5 0 480 255\n", None),
        (b"SIMPLE  =", "FITS"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "a gzip archive (NIfTI?)"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIF"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"\0\0\0\x18ftypM4V ", "HEIF or a video"),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"\xff\xd8\xff\xe0", None),
        (b"any text", None),
        (b"", None),
    ],
)
def test_foreign_format_is_named(data: bytes, name: str | None) -> None:
    assert unread_format(data) == name


@pytest.mark.parametrize(
    ("format", "name"),
    [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP"), ("TIFF", "TIFF"), ("BMP", "BMP")],
)
def test_own_formats_are_known_by_their_beginning(format: str, name: str, pictures: Any) -> None:
    assert known_kind(pictures.encode(pictures.image(), format)[:64]) == name


@pytest.mark.parametrize(
    "data", [b"", b"BM", b"BMI of the patients of the ward", b"RIFF....WAVEfmt ", b"\xff\xd8"]
)
def test_text_and_sound_are_not_taken_for_pictures(data: bytes) -> None:
    assert known_kind(data) is None


# --- whole or not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "cut_off"),
    [
        (b"\xff\xd8", True),
        (b"\xff\xd8\xff\xd9", False),
        (b"\xff\xd8\xff\xd9 vendor data", False),
        # An EOI within a segment is not the end, one behind it is.
        (b"\xff\xd8\xff\xfe\0\x06\xff\xd9..", True),
        (b"\xff\xd8\xff\xfe\0\x06\xff\xd9..\xff\xd9..", False),
        # Within the pixels stand stuffed bytes, restarts and fill bytes.
        (b"\xff\xd8\xff\xda\0\x03.ab\xff\0cd\xff\xd0ef", True),
        (b"\xff\xd8\xff\xda\0\x03.ab\xff\0cd\xff\xd0ef\xff\xff\xd9zz", False),
        (b"\xff\xd8\xff\xda\0\x03.ab\xff", True),
        # A segment that says it is longer than the file.
        (b"\xff\xd8\xff\xe1\xff\xff abc", True),
    ],
)
def test_jpeg_ends_at_its_end_marker(data: bytes, cut_off: bool) -> None:
    assert is_cut_off(data) is cut_off


def test_png_ends_with_its_last_chunk(pictures: Any) -> None:
    whole = pictures.encode(pictures.image(), "PNG")
    assert not is_cut_off(whole)
    assert not is_cut_off(whole + b"IEND" * 50_000)
    assert is_cut_off(whole[:-1])
    # The name of the last chunk in a text is not the last chunk.
    text = (b"tEXt", b"a\0IEND\xaeB`\x82")
    commented = pictures.png(pictures.image(), 0, before=[text])
    assert not is_cut_off(commented)
    assert is_cut_off(commented[:500])


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\0\0\0\1"])
def test_png_whose_last_chunk_states_more_than_there_is_is_cut_off(
    length: bytes, pictures: Any
) -> None:
    whole = pictures.encode(pictures.image(), "PNG")
    assert is_cut_off(whole[:-12] + length + whole[-8:])


def test_webp_is_as_long_as_its_header_says(pictures: Any) -> None:
    whole = pictures.encode(pictures.image(), "WEBP")
    assert not is_cut_off(whole)
    assert not is_cut_off(whole + b"more")
    assert is_cut_off(whole[:-1])
    assert not is_cut_off(b"RIFF\xff\xff\0\0WAVEfmt ")
    assert not is_cut_off(b"RIFF")


def test_bmp_is_as_long_as_its_rows_whatever_size_it_states(pictures: Any) -> None:
    image = pictures.image(100, 101)
    rows = b"".join(row.tobytes() + bytes(3) for row in image)
    ramp = bytes(4 * 256)
    for stated in (None, 0, 10**6):
        whole = pictures.bmp(rows, (101, 100), 8, palette=ramp, stated=stated)
        assert not is_cut_off(whole)
        assert is_cut_off(whole[:-1])
    os2 = b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 101, 100, 1, 8) + rows
    assert not is_cut_off(os2)
    assert is_cut_off(os2[:-1])
    runs = pictures.bmp(b"run lengths", (101, 100), 8, compression=1, palette=ramp)
    assert not is_cut_off(runs)
    assert is_cut_off(runs[:-1])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_holds_its_directory_its_values_and_its_strips(
    order: str, channels: int, pictures: Any
) -> None:
    image = pictures.image()
    whole = pictures.tiff(
        image if channels == 1 else pictures.rgb(image), channels // 2 + 1, order=order
    )
    assert not is_cut_off(whole)
    assert is_cut_off(whole[:-1])
    (directory,) = struct.unpack_from(order + "I", whole, 4)
    assert is_cut_off(whole[:directory])
    assert is_cut_off(whole[: directory + 2])
    entries = whole[directory + 2 :]
    emptied = whole[:directory] + bytes(2) + entries
    assert is_cut_off(emptied)
    longer = struct.pack(order + "HHII", 279, 4, 1, len(whole))  # strip as long as the file
    at = whole.index(struct.pack(order + "HHI", 279, 4, 1))
    assert is_cut_off(whole[:at] + longer + whole[at + 12 :])


def test_tiff_directory_that_counts_more_than_memory_holds_is_refused_at_once(
    pictures: Any,
) -> None:
    whole = pictures.tiff(pictures.image(), 1)
    at = whole.index(struct.pack("<HHI", 279, 4, 1))
    many = struct.pack("<HHII", 279, 4, 0xFFFFFFFF, 8)
    assert is_cut_off(whole[:at] + many + whole[at + 12 :])


@pytest.mark.parametrize("data", [b"", b"text", b"GIF89a", bytes(500), b"II", b"\x89PNG"])
def test_other_files_are_never_cut_off_or_damaged(data: bytes) -> None:
    assert not is_cut_off(data)
    assert not is_damaged(data)


def test_changed_pixel_byte_of_a_png_fails_its_checksum(pictures: Any) -> None:
    whole = pictures.encode(pictures.image(), "PNG")
    assert not is_damaged(whole)
    assert not is_damaged(whole + b"more")
    start = whole.index(b"IDAT") + 4
    for place in (start, len(whole) // 2, len(whole) - 17):
        changed = bytearray(whole)
        changed[place] ^= 1
        assert is_damaged(bytes(changed))


def test_only_the_pixels_checksum_counts(pictures: Any) -> None:
    whole = pictures.png(pictures.image(), 0, before=[(b"tEXt", b"Comment\0from the ward")])
    assert not is_damaged(whole.replace(b"ward", b"yard"))


def series(pictures: Any, format: str) -> bytes:
    image = pictures.image()
    pages = [Image.fromarray(pictures.rgb(pixels)) for pixels in (image, 255 - image)]
    written = io.BytesIO()
    pages[0].save(written, format, save_all=True, append_images=pages[1:])
    return written.getvalue()


# --- files that end early ----------------------------------------------------------------------

CUT: dict[str, Callable[[Any], bytes]] = {
    "jpeg": lambda p: p.encode(p.image(), "JPEG"),
    "jpeg-fine": lambda p: p.encode(p.image(), "JPEG", quality=100),
    "jpeg-rgb": lambda p: p.encode(p.rgb(p.image()), "JPEG"),
    "jpeg-progressive": lambda p: p.encode(p.image(), "JPEG", progressive=True),
    "jpeg-thumbnail": lambda p: p.encode(
        p.image(), "JPEG", comment=p.encode(p.image(100, 100), "JPEG")
    ),
    "png": lambda p: p.encode(p.image(), "PNG"),
    "png-rgba": lambda p: p.encode(p.rgb(p.image(), p.image()), "PNG"),
    "png-16-bit": lambda p: p.encode(p.image(bits=16), "PNG"),
    "png-16-bit-rgb": lambda p: p.png(p.rgb(p.image(bits=16)), 2),
    "png-palette": lambda p: p.encode(Image.fromarray(p.image()).convert("P"), "PNG"),
    "webp": lambda p: p.encode(p.image(), "WEBP"),
    "webp-lossless": lambda p: p.encode(p.image(), "WEBP", lossless=True),
    "webp-exif": lambda p: p.encode(p.image(), "WEBP", exif=p.exif(6)),
    "tiff": lambda p: p.encode(p.image(), "TIFF"),
    "tiff-directory-last": lambda p: p.tiff(p.image(bits=16), 1),
    "tiff-big-endian": lambda p: p.tiff(p.rgb(p.image()), 2, order=">"),
    "tiff-big": lambda p: p.encode(p.image(bits=16), "TIFF", big_tiff=True),
    "tiff-big-big-endian": lambda p: p.tiff(p.image(bits=16), 0, order=">", big=True),
    "tiff-big-deflate": lambda p: p.tiff(p.image(), 1, order=">", big=True, tags={259: 8}),
    "tiff-lzw": lambda p: p.encode(p.image(), "TIFF", compression="tiff_lzw"),
    "tiff-lzw-rgb": lambda p: p.encode(p.rgb(p.image()), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda p: p.encode(p.image(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": lambda p: p.encode(p.image(), "TIFF", compression="packbits"),
    "tiff-jpeg": lambda p: p.encode(p.image(), "TIFF", compression="jpeg"),
    "tiff-opencv": lambda p: p.opencv(p.rgb(p.image(bits=16)), ".tiff"),
    "bmp": lambda p: p.encode(p.image(), "BMP"),
    "bmp-padded": lambda p: p.encode(p.image(128, 161), "BMP"),
    "bmp-rgb": lambda p: p.encode(p.rgb(p.image()), "BMP"),
}
SIGNATURE = 18
"""Bytes from which a head can be told from a text, in BMP."""


@pytest.mark.parametrize("kind", CUT)
def test_file_that_ends_early_is_cut_off_wherever_it_ends(
    kind: str, pictures: Any, decode: Decode
) -> None:
    whole = CUT[kind](pictures)
    decode(whole)
    shares = {int(len(whole) * share) for share in (0.01, 0.1, 0.5, 0.9, 0.99)}
    least = 3 if kind.startswith("jpeg") else 1  # a JPEG is read without its end marker
    spread = {int(end) for end in np.linspace(1, len(whole) - least, 150)}
    last = {len(whole) - cut for cut in range(least, 33)}
    for end in sorted(shares | spread | last):
        with pytest.raises(NotAssessedError) as caught:
            decode(whole[:end])
        allowed = {Reason.TRUNCATED} | ({Reason.NOT_IMAGE} if end < SIGNATURE else set())
        assert caught.value.reason in allowed, f"{end} of {len(whole)} bytes: {caught.value}"


def test_jpeg_cut_behind_its_thumbnail_is_not_taken_for_whole(
    pictures: Any, decode: Decode
) -> None:
    whole = CUT["jpeg-thumbnail"](pictures)
    inner_end = whole.index(b"\xff\xd9") + 2
    assert inner_end < len(whole) - 1000
    for end in (inner_end + 1, inner_end + 200, len(whole) - 3):
        with pytest.raises(NotAssessedError) as caught:
            decode(whole[:end])
        assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize(
    "trailer", [bytes(700), b"vendor data " * 8000, b"\xff\xd8\xff\xe0", b"IEND"], ids=repr
)
def test_bytes_behind_the_end_do_not_matter(
    kind: str, trailer: bytes, pictures: Any, decode: Decode
) -> None:
    whole = CUT[kind](pictures)
    read, expected = decode(whole + trailer), decode(whole)
    assert np.array_equal(read.pixels, expected.pixels)


# --- damage ------------------------------------------------------------------------------------


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """The bytes with one to eight of them changed, some lost, added or overwritten."""
    damaged, size = bytearray(data), len(data)
    near = min(size, 400)
    place = int(
        draw.choice([draw.integers(near), draw.integers(size), size - 1 - draw.integers(near)])
    )
    length = int(draw.integers(1, 64))
    match int(draw.integers(6)):
        case 0:
            for _ in range(int(draw.integers(1, 9))):
                damaged[int(draw.integers(near if draw.random() < 0.6 else size))] = int(
                    draw.integers(256)
                )
        case 1:
            damaged[place] ^= 1 << int(draw.integers(8))
        case 2:
            del damaged[place : place + length]
        case 3:
            damaged[place:place] = draw.bytes(length)
        case 4:
            damaged[place : place + length] = bytes(len(damaged[place : place + length]))
        case _:
            extreme = (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0")
            damaged[place : place + 4] = extreme[int(draw.integers(5))]
    return bytes(damaged)


def mutated_chunk(data: bytes, draw: np.random.Generator, pictures: Any) -> bytes:
    """A PNG with one chunk damaged and its checksum fixed: the decoder itself is reached."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = int(draw.integers(len(chunks) - 1))
    kind, content = chunks[number]
    chunks[number] = (kind, mutated(content, draw) if content else b"?")
    fixed: bytes = pictures.png_of_chunks(chunks)
    return fixed


FUZZED: dict[str, Callable[[Any], bytes]] = {
    **{kind: make for kind, make in CUT.items() if not kind.startswith("tiff-lzw-")},
    "tiff-white-is-zero": lambda p: p.tiff(p.image(bits=16), 0, tags={274: 6}),
    "tiff-pages": lambda p: series(p, "TIFF"),
    "jpeg-exif": lambda p: p.encode(p.image(), "JPEG", exif=p.exif(5)),
    "mpo": lambda p: series(p, "MPO"),
    "gif": lambda p: p.encode(p.image(), "GIF"),
    "dicom": lambda p: bytes(128) + b"DICM" + bytes(500),
}


@pytest.mark.filterwarnings("ignore")  # as in a run, where Pillow's warnings are no errors
@pytest.mark.parametrize(
    "rounds",
    [60, pytest.param(200, marks=pytest.mark.slow)],  # `make fuzz` goes on from there
)
@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_file_is_an_image_or_refused_and_nothing_else(
    kind: str, rounds: int, pictures: Any, decode: Decode
) -> None:
    whole = FUZZED[kind](pictures)
    draw = np.random.default_rng(20240607)
    spec = InputSpec()
    refused = 0
    for number in range(rounds):
        if kind.startswith("png") and number % 2:
            damaged = mutated_chunk(whole, draw, pictures)
        else:
            damaged = mutated(whole, draw)
        try:
            image = decode(damaged)
        except NotAssessedError:
            refused += 1
            continue
        assert image.pixels.dtype in (np.uint8, np.uint16)
        assert image.pixels.ndim == 2
        assert min(image.pixels.shape) >= MIN_SIDE
        assert image.pixels.max() <= image.white
        assert prepare(image, spec).shape == (224, 224)
    assert refused > rounds // 20
