"""Writes codestreams as encoders elsewhere do, and as those of imagecodecs and DCMTK never do.

JPEG lossless is written from ITU-T T.81, annex H, by code that shares nothing with any decoder.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

JFIF = b"\xff\xe0\0\x10JFIF\0\1\2\0\0\1\0\1\0\0"
"""Three components behind it are Y, Cb and Cr."""
JFXX = b"\xff\xe0\0\x09JFXX\0\x10\0"
"""An extension of it, which says nothing of colours."""
EOI = b"\xff\xd9"
_CATEGORIES, _CODE_BITS, _MOST_BITS = 17, 5, 20


def adobe(transform: int) -> bytes:
    """Adobe's marker: transform 0 is RGB, 1 is YCbCr, 2 is YCCK."""
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


@dataclass(frozen=True)
class LosslessJpeg:
    """How JPEG lossless is written (ITU-T T.81, annex H).

    Attributes:
        precision: Bits of a sample.
        predictor: Selection value, 1 to 7.
        point: Point transform.
        restart_rows: Rows of a restart interval; none where 0.
        interval: The interval that DRI states, samples; by the rows where None.
        se: The end of a spectral selection, which means nothing here.
        ah: The high bit position of a successive approximation, which means nothing here.
        height_behind: Whether the height stands in a DNL segment behind the scan.
        one_scan: Whether channels are interleaved.
        segments: Segments before the frame header.
        identifiers: Identifiers of the components.
    """

    precision: int
    predictor: int = 1
    point: int = 0
    restart_rows: int = 0
    interval: int | None = None
    se: int = 0
    ah: int = 0
    height_behind: bool = False
    one_scan: bool = True
    segments: bytes = b""
    identifiers: bytes = b"\1\2\3"

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """A codestream of pixels of shape (rows, columns) or (rows, columns, channels)."""
        planes = np.atleast_3d(pixels).astype(np.int64) >> self.point
        rows, columns, count = planes.shape
        names = self.identifiers[:count]
        components = b"".join(bytes([name, 0x11, 0]) for name in names)
        height = 0 if self.height_behind else rows
        frame = struct.pack(">BHHB", self.precision, height, columns, count) + components
        stream = b"\xff\xd8" + self.segments + _segment(0xC4, _HUFFMAN) + _segment(0xC3, frame)
        if self.restart_rows or self.interval is not None:
            interval = self.restart_rows * columns if self.interval is None else self.interval
            stream += _segment(0xDD, struct.pack(">H", interval))
        scans = [range(count)] if self.one_scan else [[channel] for channel in range(count)]
        for number, channels in enumerate(scans):
            stream += self._scan(bytes(names[channel] for channel in channels))
            stream += self._entropy(planes[..., list(channels)])
            if self.height_behind and not number:
                stream += _segment(0xDC, struct.pack(">H", rows))
        return stream + EOI

    def _scan(self, names: bytes) -> bytes:
        tables = b"".join(bytes([name, 0]) for name in names)
        last = bytes([self.predictor, self.se, self.ah << 4 | self.point])
        return _segment(0xDA, bytes([len(names)]) + tables + last)

    def _entropy(self, planes: NDArray[np.int64]) -> bytes:
        rows = self.restart_rows or len(planes)
        parts = [
            _packed(self._differences(planes[at : at + rows])) for at in range(0, len(planes), rows)
        ]
        stream = parts[0]
        for number, part in enumerate(parts[1:]):
            stream += bytes([0xFF, 0xD0 + number % 8]) + part
        return stream

    def _differences(self, planes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Differences from the prediction, modulo 2^16 (H.1.2.1 and table H.1)."""
        left, above, corner = (np.zeros_like(planes) for _ in range(3))
        left[:, 1:] = planes[:, :-1]
        above[1:] = planes[:-1]
        corner[1:, 1:] = planes[:-1, :-1]
        predicted = (
            left,
            above,
            corner,
            left + above - corner,
            left + ((above - corner) >> 1),
            above + ((left - corner) >> 1),
            (left + above) >> 1,
        )[self.predictor - 1].copy()
        predicted[0] = left[0]
        predicted[1:, 0] = above[1:, 0]
        predicted[0, 0] = 1 << (self.precision - self.point - 1)
        differences: NDArray[np.int64] = (planes - predicted + 32767) % 65536 - 32767
        return differences


_HUFFMAN = bytes([0, 0, 0, 0, 0, _CATEGORIES, *[0] * 11, *range(_CATEGORIES)])


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _packed(differences: NDArray[np.int64]) -> bytes:
    """Category and low bits of each difference, stuffed (T.81, H.1.2.2 and F.1.2.3)."""
    steps = differences.ravel()
    sizes = np.ceil(np.log2(np.abs(steps) + 1)).astype(np.int64)
    extra = np.where(sizes == 16, 0, sizes)  # 32768 has a category, and no bits
    low = np.where(steps >= 0, steps, steps + (1 << extra) - 1) & ((1 << extra) - 1)
    words, lengths = sizes << extra | low, _CODE_BITS + extra
    place = lengths[:, None] - 1 - np.arange(_MOST_BITS)
    bits = (words[:, None] >> np.maximum(place, 0) & 1)[place >= 0]
    filled = np.concatenate([bits, np.ones(-len(bits) % 8, np.int64)])
    return np.packbits(filled.astype(np.uint8)).tobytes().replace(b"\xff", b"\xff\0")


def colour_jpeg(
    planes: NDArray[np.uint8],
    segments: bytes = b"",
    identifiers: bytes = b"\1\2\3",
    *,
    level: int = 98,
) -> bytes:
    """Baseline JPEG of three planes as they are, which says no more of them than these segments."""
    stream = bytes(
        imagecodecs.jpeg8_encode(planes, level=level, colorspace="RGB", outcolorspace="RGB")
    )
    at = 2
    while stream[at + 1] >= 0xE0:  # the encoder's own say
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    stream = stream[:2] + segments + stream[at:]
    for marker, before, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        start = stream.index(marker) + before
        for number in range(3):
            place = start + number * step
            stream = stream[:place] + identifiers[number : number + 1] + stream[place + 1 :]
    return stream


def rle(
    planes: list[NDArray[np.uint8]], surplus: bytes = b"", *, segments: int | None = None
) -> bytes:
    """Segments of literal runs (PS3.5, annex G), each with something more behind its bytes."""
    packed = []
    for plane in planes:
        data = plane.tobytes()
        runs = [data[at : at + 128] for at in range(0, len(data), 128)]
        body = b"".join(bytes([len(run) - 1]) + run for run in runs) + surplus
        packed.append(body + b"\0" * (len(body) % 2))
    starts = np.cumsum([64, *map(len, packed[:-1])])
    header = [len(planes) if segments is None else segments, *map(int, starts)]
    return struct.pack("<16I", *header, *[0] * (16 - len(header))) + b"".join(packed)


def byte_planes(words: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """The planes of RLE: each channel's bytes, the highest first."""
    planes = []
    for channel in np.moveaxis(np.atleast_3d(words), -1, 0):
        for shift in range(8 * words.itemsize - 8, -1, -8):
            planes.append((channel >> shift & 255).astype(np.uint8))
    return planes
