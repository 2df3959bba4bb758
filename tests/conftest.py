"""Encoders of test pictures, as a fixture: files that Pillow and OpenCV do not write themselves."""

from __future__ import annotations

import io
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Browser
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image
from run_folder import choose_run_folder

from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import decode_radiograph

LARGE_NETWORKS = {"densenet121", "resnet50"}
"""A test of one of these takes half a minute; the others show the same code at work."""


def pytest_configure() -> None:
    """Let programs under test be interrupted: a background job starts with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what runs on a large network."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call and LARGE_NETWORKS & set(map(str, call.params.values())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of the run, beside those of its workers where it has some, as pytest-xdist says."""
    own = tmp_path_factory.getbasetemp()
    choose_run_folder((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: networks of tests are slower on two."""
    torch = pytest.importorskip("torch", reason="the workstation side needs extra export")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Chunks = Iterable[tuple[bytes, bytes]]

# The same examples each time: a change fails for what it does. No deadline: a core may be busy.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")


class Pictures:
    """Draws images and encodes them."""

    @staticmethod
    def image(height: int = 128, width: int = 160, *, bits: int = 8, seed: int = 0) -> NDArray[Any]:
        """A grey ramp with waves and noise: no two turns of it are alike, all values are used."""
        y, x = np.mgrid[0:height, 0:width]
        waves = np.sin(x / width * 9) + np.cos(y / height * 7) + x / width + 2 * y / height
        noisy = waves + np.random.default_rng(seed).normal(0, 0.05, (height, width))
        scaled = (noisy - noisy.min()) / np.ptp(noisy) * ((1 << bits) - 1)
        image: NDArray[Any] = np.rint(scaled).astype(np.uint8 if bits == 8 else np.uint16)
        return image

    @staticmethod
    def rgb(grey: NDArray[Any], *more: NDArray[Any]) -> NDArray[Any]:
        """Three equal channels, and such more as an alpha."""
        return np.dstack([grey, grey, grey, *more])

    @staticmethod
    def encode(pixels: NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
        """The picture as Pillow writes it."""
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        written = io.BytesIO()
        picture.save(written, format, **options)
        return written.getvalue()

    @staticmethod
    def opencv(pixels: NDArray[Any], suffix: str, *options: int) -> bytes:
        """The picture as OpenCV writes it; the channels are BGR(A)."""
        written: NDArray[Any] = cv2.imencode(suffix, pixels, list(options))[1]
        return written.tobytes()

    @staticmethod
    def png(pixels: NDArray[Any], colour: int, *, before: Chunks = (), after: Chunks = ()) -> bytes:
        """A PNG of that colour type with chunks before and after the pixels."""
        height, width = pixels.shape[:2]
        deep = pixels.astype(pixels.dtype.newbyteorder(">"))
        rows = b"".join(b"\0" + row.tobytes() for row in deep)
        return Pictures.png_of_rows(
            rows, (height, width, 8 * pixels.itemsize, colour), before=before, after=after
        )

    @staticmethod
    def png_of_rows(
        rows: bytes, header: tuple[int, int, int, int], *, before: Chunks = (), after: Chunks = ()
    ) -> bytes:
        """A PNG of filtered rows; the header is height, width, bits and colour type."""
        height, width, bits, colour = header
        ihdr = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
        pixels = (b"IDAT", zlib.compress(rows, 1))
        return Pictures.png_of_chunks([(b"IHDR", ihdr), *before, pixels, *after, (b"IEND", b"")])

    @staticmethod
    def png_of_chunks(chunks: Chunks) -> bytes:
        """A PNG of these chunks, with their lengths and checksums."""
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    @staticmethod
    def tiff(
        pixels: NDArray[Any],
        photometric: int,
        *,
        order: str = "<",
        big: bool = False,
        tags: Mapping[int, int] = {},
    ) -> bytes:
        """A TIFF of one strip, uncompressed or deflated (tag 259: 8), directory last.

        Args:
            pixels: Of shape (H, W) or (H, W, channels), any type.
            photometric: Tag 262: 0 WhiteIsZero, 1 BlackIsZero, 2 RGB, 5 CMYK.
            order: `<` for a little-endian file, `>` for a big-endian one.
            big: Whether it is a BigTIFF.
            tags: More tags, or other values for the usual ones; 16-bit numbers.
        """
        height, width = pixels.shape[:2]
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        strip = pixels.astype(np.dtype(f"{order}{pixels.dtype.str[1:]}")).tobytes()
        strip = zlib.compress(strip) if tags.get(259) == 8 else strip
        strip += b"\0" * (len(strip) % 2)
        entries: dict[int, tuple[str, tuple[int, ...]]] = {
            256: ("I", (width,)),
            257: ("I", (height,)),
            258: ("H", (8 * pixels.itemsize,) * channels),
            259: ("H", (1,)),
            262: ("H", (photometric,)),
            273: ("I", (16 if big else 8,)),
            277: ("H", (channels,)),
            278: ("I", (height,)),
            279: ("I", (len(strip),)),
            **{tag: ("H", (value,)) for tag, value in tags.items()},
        }
        letter, entry, magic = ("Q", "HHQ", b"+\0\x08\0\0\0") if big else ("I", "HHI", b"*\0")
        width, size = struct.calcsize(letter), struct.calcsize(f"={entry}{letter}")
        if order == ">":
            magic = struct.pack(
                f">{len(magic) // 2}H", *struct.unpack(f"<{len(magic) // 2}H", magic)
            )
        start = 2 + len(magic) + width + len(strip)
        directory = struct.pack(order + ("Q" if big else "H"), len(entries))
        elsewhere, values = start + len(directory) + size * len(entries) + width, b""
        for tag, (kind, numbers) in sorted(entries.items()):
            value = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
            if len(value) > width:
                place = struct.pack(order + letter, elsewhere + len(values))
                values, value = values + value, place
            directory += struct.pack(order + entry, tag, {"H": 3, "I": 4}[kind], len(numbers))
            directory += value.ljust(width, b"\0")
        head = (b"II" if order == "<" else b"MM") + magic + struct.pack(order + letter, start)
        return head + strip + directory + bytes(width) + values

    @staticmethod
    def bmp(
        rows: bytes,
        size: tuple[int, int],
        bits: int,
        *,
        compression: int = 0,
        palette: bytes = b"",
        stated: int | None = None,
    ) -> bytes:
        """A BMP of padded rows; the size is (width, height), negative height for top-down."""
        start = 54 + len(palette)
        whole = start + len(rows) if stated is None else stated
        info = (40, *size, 1, bits, compression, len(rows), 0, 0, len(palette) // 4, 0)
        header = b"BM" + struct.pack("<IHHI", whole, 0, 0, start)
        return header + struct.pack("<IiiHHIIiiII", *info) + palette + rows

    @staticmethod
    def exif(orientation: int) -> Image.Exif:
        """EXIF that states an orientation."""
        block = Image.Exif()
        block[0x0112] = orientation
        return block


@pytest.fixture(scope="session")
def pictures() -> type[Pictures]:
    return Pictures


@pytest.fixture(scope="session")
def decode() -> Callable[..., Radiograph]:
    """Decode bytes as if they had been read from a file of that name."""

    def decoded(data: bytes, name: str = "image") -> Radiograph:
        return decode_radiograph(FileBytes(Path(name), data, "0" * 64))

    return decoded


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser; tests that use it are marked `needs_browser`."""
    opened = Browser(tmp_path_factory.mktemp("browser"))
    try:
        opened.start()
        yield opened
    finally:
        opened.close()


def spread(*axes: Iterable[Any], of: int) -> list[Any]:
    """All combinations for `parametrize`, one of so many in the default run, the others slow.

    Each value of each axis is among the default ones, with other partners from value to value.
    """
    numbered = product(*(enumerate(axis) for axis in axes))
    return [
        pytest.param(
            *(value for _, value in chosen),
            marks=[pytest.mark.slow] if sum(number for number, _ in chosen) % of else [],
        )
        for chosen in numbered
    ]
