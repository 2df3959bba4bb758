"""What the reader refuses, each with its reason, and what it tells of images that it takes."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging import files, radiograph
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import Reason, WarningCode

Decode = Callable[..., Radiograph]


# --- refusals ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A file that is not assessed: its bytes by `make`, or whatever stands at the path."""

    reason: Reason
    make: Callable[[Any, Path], bytes | Path]
    detail: str = ""


def photograph(size: int = 160) -> NDArray[Any]:
    hsv = np.full((size, size, 3), 200, np.uint8)
    hsv[..., 0] = np.linspace(0, 179, size)
    hsv[..., 2] = np.linspace(60, 255, size)[:, None]
    pixels: NDArray[Any] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels


def share(white: float, level: int) -> NDArray[Any]:
    image = np.full((200, 200), 128, np.uint8)
    image[: round(200 * white)] = level
    return image


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels, by repeating one compressed block of zeros."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(1 << 16)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 16)) + packer.flush(zlib.Z_FULL_FLUSH)
    rows = head + block * ((width + 1) * height // (1 << 16)) + b"\x03\0"
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", ihdr), (b"IDAT", rows), (b"IEND", b""))
    )


def jpeg_with(pictures: Any, *, process: int = 0xC0, bits: int = 8) -> bytes:
    data = bytearray(pictures.encode(pictures.image(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = process, bits
    return bytes(data)


def damaged_jpeg(pictures: Any) -> bytes:
    """A few bytes in the middle were overwritten; its end is there."""
    data = pictures.encode(pictures.image(), "JPEG")
    middle = len(data) // 2
    return bytes(data[:middle] + bytes(40) + data[middle + 40 :])


def series(pictures: Any, format: str, **options: Any) -> bytes:
    image = pictures.image()
    pages = [Image.fromarray(pictures.rgb(pixels)) for pixels in (image, 255 - image)]
    written = io.BytesIO()
    pages[0].save(written, format, save_all=True, append_images=pages[1:], **options)
    return written.getvalue()


def planar_16_bit(pictures: Any) -> bytes:
    data: bytes = pictures.tiff(pictures.rgb(pictures.image(bits=16)), 2, tags={284: 2})
    return data


def damaged_png(pictures: Any) -> bytes:
    data = bytearray(pictures.encode(pictures.image(), "PNG"))
    data[len(data) // 2] ^= 1
    return bytes(data)


def half_zero(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "image.png")
    return folder / "image.png"


def sparse(folder: Path) -> Path:
    path = folder / "image.png"
    with path.open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    return path


def unfinished(pictures: Any, folder: Path) -> Path:
    path = folder / "image.png.part"
    path.write_bytes(pictures.encode(pictures.image(), "PNG"))
    return path


REFUSALS: dict[str, Refusal] = {
    "missing": Refusal(Reason.UNREADABLE, lambda p, t: t / "none.png", "No such file"),
    "folder": Refusal(Reason.UNREADABLE, lambda p, t: t, "not a regular file"),
    "fifo": Refusal(Reason.UNREADABLE, lambda p, t: fifo(t), "not a regular file"),
    "device": Refusal(Reason.UNREADABLE, lambda p, t: Path("/dev/null"), "not a regular file"),
    "name-too-long": Refusal(Reason.UNREADABLE, lambda p, t: t / ("a" * 5000), "name too long"),
    "name-with-nul": Refusal(Reason.UNREADABLE, lambda p, t: t / "a\0b.png", "null"),
    "part": Refusal(Reason.INCOMPLETE, unfinished),
    "empty": Refusal(Reason.NOT_IMAGE, lambda p, t: b"", "empty file"),
    "text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"No image was exported.\n" * 20),
    "web-page": Refusal(Reason.NOT_IMAGE, lambda p, t: b"<!DOCTYPE html><html>Log in</html>"),
    "bm-text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BMI of the patients of ward 7: 27"),
    "bm-short": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BMI 27\n"),
    "bm-long": Refusal(Reason.NOT_IMAGE, lambda p, t: b"BM" + b"I of the patient\r\n" * 999),
    "sound": Refusal(Reason.NOT_IMAGE, lambda p, t: b"RIFF\x24\0\0\0WAVEfmt " + bytes(20)),
    "riff-text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"RIFF"),
    "noise": Refusal(Reason.NOT_IMAGE, lambda p, t: b"\x17" + np.random.default_rng(0).bytes(9999)),
    "zeros": Refusal(Reason.NOT_IMAGE, lambda p, t: bytes(100_000)),
    "line-ends-changed": Refusal(
        Reason.NOT_IMAGE, lambda p, t: p.encode(p.image(), "PNG").replace(b"\n", b"\r\n")
    ),
    "half-zero-jpeg": Refusal(
        Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.image(), "JPEG", quality=100))
    ),
    "half-zero-progressive": Refusal(
        Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.image(), "JPEG", progressive=True))
    ),
    "half-zero-png": Refusal(Reason.TRUNCATED, lambda p, t: half_zero(p.encode(p.image(), "PNG"))),
    "half-zero-tiff": Refusal(Reason.TRUNCATED, lambda p, t: half_zero(p.tiff(p.image(), 1))),
    "pdf": Refusal(Reason.FORMAT, lambda p, t: b"%PDF-1.7\n%...", "PDF"),
    "zip": Refusal(Reason.FORMAT, lambda p, t: b"PK\x03\x04" + bytes(40), "ZIP"),
    "gzip": Refusal(Reason.FORMAT, lambda p, t: b"\x1f\x8b\x08" + bytes(40), "gzip"),
    "heic": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
    "avif": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypavif" + bytes(99), "AVIF"),
    "video": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x18ftypqt  " + bytes(99), "video"),
    "jpeg-2000": Refusal(Reason.FORMAT, lambda p, t: p.encode(p.image(), "JPEG2000"), "JPEG 2000"),
    "jpeg-xl": Refusal(Reason.FORMAT, lambda p, t: b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "jpeg-xl-stream": Refusal(Reason.FORMAT, lambda p, t: b"\xff\x0a" + bytes(99), "JPEG XL"),
    "jpeg-xr": Refusal(Reason.FORMAT, lambda p, t: b"II\xbc\x01" + bytes(99), "JPEG XR"),
    "pgm": Refusal(Reason.FORMAT, lambda p, t: p.opencv(p.image(), ".pgm"), "PGM"),
    "ppm": Refusal(Reason.FORMAT, lambda p, t: p.opencv(p.rgb(p.image()), ".ppm"), "PPM"),
    "p5-text": Refusal(Reason.NOT_IMAGE, lambda p, t: b"P5 is the patient of 12 May\n" * 20),
    "gif": Refusal(Reason.FORMAT, lambda p, t: p.encode(p.image(), "GIF"), "GIF"),
    "gif-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "GIF"), "2 pictures"),
    "png-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "PNG"), "2 pictures"),
    "webp-series": Refusal(Reason.FRAMES, lambda p, t: series(p, "WEBP"), "2 pictures"),
    "tiff-pages": Refusal(Reason.FRAMES, lambda p, t: series(p, "TIFF"), "2 pictures"),
    "mpo": Refusal(Reason.FRAMES, lambda p, t: series(p, "MPO"), "2 pictures"),
    "file-too-big": Refusal(Reason.TOO_BIG, lambda p, t: sparse(t), "1073741825 bytes"),
    "bomb": Refusal(Reason.TOO_BIG, lambda p, t: bomb(20_000, 20_000), "by its header"),
    "99-pixels": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.image(99, 150), "PNG"), "150 x 99"),
    "strip": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.image(120, 241), "PNG"), "241 x 120"),
    "tall": Refusal(Reason.SHAPE, lambda p, t: p.encode(p.image(241, 120), "JPEG"), "120 x 241"),
    "1-bit-png": Refusal(
        Reason.MODE, lambda p, t: p.encode(Image.fromarray(p.image() > 99), "PNG"), "1-bit"
    ),
    "1-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(Image.fromarray(p.image() > 99), "TIFF"), "1-bit"
    ),
    "1-bit-palette": Refusal(
        Reason.MODE,
        lambda p, t: p.encode(Image.fromarray(p.image()).quantize(2), "PNG", bits=1),
        "1-bit",
    ),
    "float-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(p.image().astype(np.float32), "TIFF"), "floating"
    ),
    "32-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.encode(p.image().astype(np.int32), "TIFF"), "32-bit"
    ),
    "signed-16-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.tiff(p.image().astype(np.int16), 1, tags={339: 2}), "16-bit"
    ),
    "signed-8-bit-tiff": Refusal(
        Reason.MODE, lambda p, t: p.tiff(p.image(), 1, tags={339: 2}), "signed"
    ),
    "cmyk-jpeg": Refusal(
        Reason.MODE,
        lambda p, t: p.encode(Image.fromarray(p.image()).convert("CMYK"), "JPEG"),
        "CMYK",
    ),
    "cmyk-tiff": Refusal(Reason.MODE, lambda p, t: p.tiff(p.rgb(p.image(), p.image()), 5), "CMYK"),
    "lab-tiff": Refusal(Reason.MODE, lambda p, t: p.tiff(p.rgb(p.image()), 8), "LAB"),
    "planar-16-bit": Refusal(Reason.MODE, lambda p, t: planar_16_bit(p), "planes"),
    "photograph-png": Refusal(Reason.COLOUR, lambda p, t: p.encode(photograph(), "PNG"), "chroma"),
    "photograph-jpeg": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(photograph(), "JPEG"), "chroma"
    ),
    "photograph-webp": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(photograph(), "WEBP"), "chroma"
    ),
    "photograph-16-bit": Refusal(
        Reason.COLOUR, lambda p, t: p.png(photograph().astype(np.uint16) * 257, 2), "chroma"
    ),
    "photograph-palette": Refusal(
        Reason.COLOUR, lambda p, t: p.encode(Image.fromarray(photograph()).quantize(64), "PNG")
    ),
    "dark-photograph": Refusal(Reason.COLOUR, lambda p, t: p.encode(photograph() // 4, "PNG")),
    "tinted": Refusal(
        Reason.COLOUR, lambda p, t: p.encode((p.rgb(p.image()) * (1, 0.9, 0.7)).astype("u1"), "PNG")
    ),
    "black": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 0), "PNG"), "contrast 0.0"),
    "grey": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 128), "JPEG"), "contrast 0.0"),
    "white": Refusal(Reason.BLANK, lambda p, t: p.encode(share(1, 255), "BMP"), "contrast 0.0"),
    "black-16-bit": Refusal(
        Reason.BLANK, lambda p, t: p.encode(np.zeros((200, 200), np.uint16), "PNG"), "contrast 0.0"
    ),
    "white-16-bit": Refusal(
        Reason.BLANK,
        lambda p, t: p.encode(np.full((200, 200), 65535, np.uint16), "PNG"),
        "contrast",
    ),
    "transparent": Refusal(
        Reason.BLANK, lambda p, t: p.encode(p.rgb(p.image(), p.image() * 0), "PNG"), "contrast 0.0"
    ),
    "nearly-constant": Refusal(
        Reason.BLANK, lambda p, t: p.encode(120 + p.image() // 32, "PNG"), "contrast"
    ),
    "mostly-black": Refusal(Reason.BLANK, lambda p, t: p.encode(share(0.7, 0), "PNG"), "70%"),
    "mostly-white": Refusal(Reason.BLANK, lambda p, t: p.encode(share(0.7, 255), "PNG"), "70%"),
    "two-levels": Refusal(
        Reason.BLANK, lambda p, t: p.encode((p.image() > 120) * np.uint8(255), "PNG"), "white"
    ),
    "checksum": Refusal(Reason.DECODE, lambda p, t: damaged_png(p), "checksum"),
    "damaged-jpeg": Refusal(Reason.DECODE, lambda p, t: damaged_jpeg(p), "premature end of data"),
    "12-bit-jpeg": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, bits=12), "JPEG of a kind"),
    "lossless-jpeg": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, process=0xC3)),
    "jpeg-ls": Refusal(Reason.DECODE, lambda p, t: jpeg_with(p, process=0xF7), "JPEG of a kind"),
    "half-float-tiff": Refusal(
        Reason.MODE,
        lambda p, t: p.tiff(p.image().astype(np.float16), 1, tags={339: 3}),
        "floating point",
    ),
}

ELSEWHERE: dict[Reason | WarningCode, str] = {
    Reason.RESULT: "said of the network's answer: tests/unit/pipeline/test_predict.py",
    Reason.MODEL: "said of a site file, not of an image: tests/integration/test_site_check.py",
    Reason.OOD: "said by the network's limits: tests/integration/test_ood.py",
    Reason.TURNED: "said by the network's limits: tests/integration/test_ood.py",
    Reason.DISK: "said of the disk, not of an image: tests/integration/test_disk.py",
    WarningCode.SITE: "said of a site file, not of an image: tests/integration/test_site_check.py",
    WarningCode.DUPLICATE_UID: "said of a second image: tests/unit/pipeline/test_duplicates.py",
    WarningCode.OOD: "said by the network's limits: tests/integration/test_ood.py",
    WarningCode.UNVERIFIED: "said of an engine: tests/unit/pipeline/test_predict.py",
    WarningCode.NO_HEATMAP: "said of a heat map: tests/integration/test_heatmap.py",
    **dict.fromkeys(
        (
            *(Reason.DICOM, Reason.SYNTAX, Reason.MODALITY, Reason.RAW, Reason.BODY, Reason.VIEW),
            *(Reason.AGE, Reason.BITS, Reason.LENGTH),
            *(
                WarningCode.NO_VIEW,
                WarningCode.NOT_UNDERSTOOD,
                WarningCode.AP,
                WarningCode.AGE,
                WarningCode.SECONDARY,
                WarningCode.WINDOW,
                WarningCode.SHUTTER,
            ),
            WarningCode.ORIENTATION,
        ),
        "said of DICOM files: tests/unit/imaging/test_dicom_refusals.py",
    ),
}
"""Members that no picture file can bring about, and why."""


def placed(case: Refusal, pictures: Any, folder: Path) -> Path:
    made = case.make(pictures, folder)
    if isinstance(made, Path):
        return made
    path = folder / "image.png"
    path.write_bytes(made)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_reason_a_sentence_and_a_detail(
    name: str, tmp_path: Path, pictures: Any
) -> None:
    case = REFUSALS[name]
    path = placed(case, pictures, tmp_path)
    with pytest.raises(NotAssessedError) as caught:
        read_radiograph(path)
    error = caught.value
    assert error.reason is case.reason, error
    assert str(error).startswith(case.reason.sentence)
    assert case.reason.sentence.endswith(".")
    assert case.detail.lower() in error.detail.lower()
    assert "\n" not in str(error)
    assert "0x" not in error.detail  # no address of an object: the same file, the same record


def test_every_reason_is_brought_about_by_a_file() -> None:
    brought_about = {case.reason for case in REFUSALS.values()}
    assert brought_about | {member for member in ELSEWHERE if isinstance(member, Reason)} == set(
        Reason
    )


WARNED: dict[WarningCode, Callable[[Any], tuple[bytes, str]]] = {
    WarningCode.SUFFIX: lambda p: (p.encode(p.image(), "PNG"), "image.jpg"),
    WarningCode.EXIF: lambda p: (p.encode(p.image(), "PNG", exif=p.exif(3)), "image.png"),
    WarningCode.ALPHA: lambda p: (p.encode(p.rgb(p.image(), p.image()), "PNG"), "image.png"),
    WarningCode.PALETTE: lambda p: (
        p.encode(Image.fromarray(p.image()).convert("P"), "PNG"),
        "image.png",
    ),
    WarningCode.DEPTH: lambda p: (p.encode(p.image(bits=12), "PNG"), "image.png"),
    WarningCode.GAMMA: lambda p: (
        p.png(p.image(), 0, before=[(b"gAMA", struct.pack(">I", 100_000))]),
        "image.png",
    ),
    WarningCode.COLOUR: lambda p: (p.encode(marked_image(p), "PNG"), "image.png"),
    WarningCode.LOSSY: lambda p: (p.encode(p.image(512, 512), "JPEG", quality=5), "image.jpg"),
    WarningCode.ASPECT: lambda p: (with_density(p, 3000, 2000), "image.png"),
    WarningCode.SPACING: lambda p: (with_density(p, 3000, 0), "image.png"),
    WarningCode.EMPTY_END: lambda p: (p.encode(with_empty_rows(p), "TIFF"), "image.tif"),
    WarningCode.SYNTHETIC: lambda p: (
        p.png(p.image(), 0, before=[(b"tEXt", b"Description\0" + radiograph.SYNTHETIC_MARK)]),
        "image.png",
    ),
}


def with_density(pictures: Any, across: int, down: int) -> bytes:
    density = struct.pack(">IIB", across, down, 1)
    return bytes(pictures.png(pictures.image(), 0, before=[(b"pHYs", density)]))


def with_empty_rows(pictures: Any) -> NDArray[Any]:
    image: NDArray[Any] = np.maximum(pictures.image(), 1)
    image[-10:] = 0
    return image


def marked_image(pictures: Any) -> NDArray[Any]:
    marked: NDArray[Any] = pictures.rgb(pictures.image())
    marked[10:30, 10:30] = (255, 255, 0)
    return marked


@pytest.mark.parametrize("warning", WARNED)
def test_assessed_with_this_warning_alone(
    warning: WarningCode, pictures: Any, decode: Decode
) -> None:
    data, name = WARNED[warning](pictures)
    assert decode(data, name).warnings == (warning,)


def test_every_warning_is_brought_about_by_a_file() -> None:
    elsewhere = {member for member in ELSEWHERE if isinstance(member, WarningCode)}
    assert set(WARNED) | elsewhere == set(WarningCode)


def test_codes_are_unique_and_sentences_are_sentences() -> None:
    for coded, prefix in ((Reason, "E_"), (WarningCode, "W_")):
        codes = [member.code for member in coded]
        assert len(set(codes)) == len(codes)
        assert all(code.startswith(prefix) for code in codes)
        assert not any(member.sentence[0].islower() for member in coded)
        assert all(member.sentence.endswith(".") for member in coded)
        causes = [member.cause.removesuffix("...") for member in coded]
        assert not any(cause.endswith(".") or "|" in cause for cause in causes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_may_not_be_read_is_refused(tmp_path: Path, pictures: Any) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(pictures.encode(pictures.image(), "PNG"))
    path.chmod(0)
    with pytest.raises(NotAssessedError, match="Permission denied") as caught:
        read_radiograph(path)
    assert caught.value.reason is Reason.UNREADABLE


# --- bombs -------------------------------------------------------------------------------------


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc for memory used")
def test_bomb_is_refused_before_a_pixel_is_decoded(decode: Decode) -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 1_000_000
    before, started = resident_bytes(), time.perf_counter()
    with pytest.raises(NotAssessedError) as caught:
        decode(data)
    assert caught.value.reason is Reason.TOO_BIG
    assert time.perf_counter() - started < 1.0
    assert resident_bytes() - before < 50_000_000  # 400 MB of pixels


def test_picture_above_the_limit_is_refused_though_pillow_would_only_warn(decode: Decode) -> None:
    # In a run, Pillow's warning between 89 and 179 megapixels is none of our errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotAssessedError, match=r"12000 x 9000 pixels; at most 100 mega"):
            decode(bomb(12_000, 9_000))


# --- files that arrive while they are read -----------------------------------------------------


@pytest.mark.parametrize(("growths", "refused"), [(1, False), (2, True)])
def test_growing_file_is_waited_for_once(
    growths: int, refused: bool, tmp_path: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file grows by a byte after each of its first `growths` readings."""
    waits: list[float] = []
    monkeypatch.setattr("deepcovid_edge.imaging.files.time.sleep", waits.append)
    path = tmp_path / "image.jpg"
    path.write_bytes(pictures.encode(pictures.image(), "JPEG"))
    read, still = os.pread, iter(range(growths))

    def pread(handle: int, size: int, at: int) -> bytes:
        data = read(handle, size, at)
        if next(still, None) is not None:
            with path.open("ab") as file:
                file.write(b"\0")
        return data

    monkeypatch.setattr(os, "pread", pread)
    if refused:
        with pytest.raises(NotAssessedError) as caught:
            read_radiograph(path)
        assert caught.value.reason is Reason.INCOMPLETE
    else:
        assert read_radiograph(path).format == "JPEG"
    assert waits == [1.0]


def test_file_that_another_thread_writes_is_never_a_picture(tmp_path: Path, pictures: Any) -> None:
    whole = pictures.encode(pictures.image(900, 900, bits=16), "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(whole[:1000])
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            for at in range(1000, len(whole) - 1):
                if stop.is_set():
                    return
                file.write(whole[at : at + 1])

    writer = threading.Thread(target=append)
    writer.start()
    try:
        with pytest.raises(NotAssessedError) as caught:
            read_radiograph(path)
    finally:
        stop.set()
        writer.join()
    assert caught.value.reason in (Reason.INCOMPLETE, Reason.TRUNCATED)
