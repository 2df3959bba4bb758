"""A JPEG whose header is plain is read without Pillow, and gives what Pillow's way gives."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from drawn_once import drawn_phantom
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging import pictures
from deepcovid_edge.imaging.files import FileBytes
from deepcovid_edge.imaging.formats.jpeg import SOS, segments
from deepcovid_edge.imaging.pictures import PlainJpeg
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import decode_radiograph
from deepcovid_edge.imaging.signatures import is_plain_jpeg
from deepcovid_edge.reasons import Reason

IMAGE = drawn_phantom(0)[:300, :260]


def jpeg(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def with_segment(data: bytes, marker: int, content: bytes, *, times: int = 1) -> bytes:
    """A JPEG with a segment more, before all others."""
    segment = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
    return data[:2] + segment * times + data[2:]


def decoded(data: bytes) -> Radiograph | str:
    try:
        return decode_radiograph(FileBytes(Path("image.jpg"), data, "0" * 64))
    except NotAssessedError as error:
        return error.reason.code


def outcome(data: bytes) -> tuple[Any, ...]:
    found = decoded(data)
    if isinstance(found, str):
        return (found,)
    return found.pixels.tobytes(), found.pixels.shape, found.format, found.warnings


PLAIN: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "progressive": lambda: jpeg(progressive=True),
    "optimised": lambda: jpeg(optimize=True),
    "with a comment": lambda: jpeg(comment=b"spelt here, but not said: Exif"),
    "with much else before": lambda: with_segment(jpeg(), 0xE5, bytes(60_000), times=3),
    "with XMP": lambda: with_segment(jpeg(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
}
LEFT_TO_PILLOW: dict[str, Callable[[], bytes]] = {
    "EXIF": lambda: jpeg(exif=exif(6)),
    "EXIF behind much else": lambda: with_segment(jpeg(exif=exif(8)), 0xE5, bytes(60_000), times=3),
    "EXIF behind a scan marker within a segment": lambda: with_segment(
        jpeg(exif=exif(3)), 0xED, b"\xff\xda\0\x08"
    ),
    "fill bytes before a marker": lambda: jpeg()[:2] + b"\xff\xff" + jpeg()[2:],
    "a segment shorter than its length": lambda: (
        with_segment(jpeg(), 0xE4, b"")[:4] + b"\0\0" + jpeg()[2:]
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_header_is_read_without_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PLAIN[kind]()
    assert is_plain_jpeg(data)
    assert isinstance(pictures._open(data)[0], PlainJpeg)
    found = outcome(data)
    monkeypatch.setattr(pictures, "_plain_jpeg", lambda data: None)
    assert found == outcome(data)
    assert len(found) > 1


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_what_is_not_plain_is_left_to_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LEFT_TO_PILLOW[kind]()
    assert not is_plain_jpeg(data)
    found = outcome(data)
    monkeypatch.setattr(pictures, "_plain_jpeg", lambda data: None)
    assert found == outcome(data)


def test_two_pictures_in_a_file_are_still_seen() -> None:
    stream = io.BytesIO()
    image = Image.fromarray(IMAGE)
    image.save(stream, "MPO", save_all=True, append_images=[image])
    assert not is_plain_jpeg(stream.getvalue())
    assert decoded(stream.getvalue()) == "E_FRAMES"


def test_colours_are_left_to_pillow() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.dstack([IMAGE] * 3)).save(stream, "JPEG")
    assert is_plain_jpeg(stream.getvalue())
    assert not isinstance(pictures._open(stream.getvalue())[0], PlainJpeg)


@pytest.mark.parametrize(("count", "code"), [(10_000, None), (70_000, "E_DECODE")])
def test_more_segments_than_any_image_has_are_not_read(count: int, code: str | None) -> None:
    """A file of two million empty comments took 15 seconds."""
    found = decoded(with_segment(jpeg(), 0xFE, b"", times=count))
    assert found == code if code else isinstance(found, Radiograph)


NO_END: dict[str, Callable[[], bytes]] = {
    "grey": jpeg,
    "restarts": lambda: jpeg(restart_marker_rows=1),
    "progressive": lambda: jpeg(progressive=True),
    "EXIF": lambda: jpeg(exif=exif(1)),
    "optimised": lambda: jpeg(optimize=True),
}


@pytest.mark.parametrize("fill", [b"", *(bytes(size) for size in (1, 2, 700, 100_000))])
@pytest.mark.parametrize("padding", [b"", b"\xff", b"\xff" * 40])
@pytest.mark.parametrize("kind", NO_END)
def test_a_missing_end_marker_does_no_harm(kind: str, padding: bytes, fill: bytes) -> None:
    whole = NO_END[kind]()
    assert whole.endswith(b"\xff\xd9")
    bare = whole[:-2]
    assert outcome(bare + fill + padding) == outcome(whole)
    assert outcome(bare + fill + padding + bytes(9)) == outcome(whole)


@pytest.mark.parametrize("tail", [b"", b"\xff" * 40])
@pytest.mark.parametrize("kind", NO_END)
def test_a_scan_that_is_cut_is_not_taken_for_one_without_its_end(kind: str, tail: bytes) -> None:
    whole = NO_END[kind]()
    last = range(len(whole) - 40, len(whole) - 4)
    for end in (*last, *range(len(whole) // 4, len(whole) - 4, 997)):
        assert decoded(whole[:end] + tail) == "E_TRUNCATED", end


def test_a_height_that_stands_behind_the_scan_is_read() -> None:
    """ITU-T T.81, B.2.5."""
    whole = jpeg()
    at = whole.index(b"\xff\xc0") + 5
    late = whole[:at] + b"\0\0" + whole[at + 2 : -2] + b"\xff\xdc\0\4" + whole[at : at + 2]
    assert outcome(late + whole[-2:]) == outcome(whole)
    assert decoded(whole[:at] + b"\0\0" + whole[at + 2 :]) == "E_DECODE"


@pytest.mark.parametrize("kind", NO_END)
def test_zeros_in_the_place_of_pixels_are_a_file_that_is_cut_off(kind: str) -> None:
    """Wherever they begin: within the last rows, and where a scan ends that others follow."""
    whole = NO_END[kind]()
    scans = [at for at in range(len(whole) // 4, len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    tables = [at for at in range(len(whole) // 4, len(whole)) if whole[at : at + 2] == b"\xff\xc4"]
    last = range(len(whole) - 40, len(whole) - 4)
    for end in (*scans, *tables, *last, *range(len(whole) // 4, len(whole) - 4, 997)):
        assert decoded(whole[:end] + bytes(len(whole) - end)) == "E_TRUNCATED", end


def test_header_without_an_end_is_checked_for_its_size_before_it_is_decoded() -> None:
    data = jpeg()
    at = data.index(b"\xff\xc0") + 5
    large = data[:at] + b"\xf0\0\xf0\0" + data[at + 4 : -2] + bytes(40)
    assert decoded(large) == "E_TOO_BIG"


FILL = b"\xff" * (1 << 20)
FILLED: dict[str, tuple[Callable[[bytes], bytes], str | None]] = {
    "cut": (lambda whole: whole[: len(whole) // 2] + FILL, "E_TRUNCATED"),
    "without its end": (lambda whole: whole[:-2] + FILL, None),
    "before its end": (lambda whole: whole[:-2] + FILL + whole[-2:], None),
    "before its first segment": (lambda whole: whole[:2] + FILL + whole[2:], None),
    "amid a segment": (lambda whole: with_segment(whole, 0xED, FILL[:60_000]), None),
    "in runs that end in zeros": (
        lambda whole: whole[: len(whole) // 2] + (FILL[:9999] + b"\0") * 99,
        "E_TRUNCATED",
    ),
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", FILLED)
def test_a_long_run_of_ones_is_passed_in_little_time(kind: str, progressive: bool) -> None:
    """A search that takes the square of its length takes hours, and no other thread runs."""
    fill, reason = FILLED[kind]
    whole = jpeg(progressive=progressive)
    start = time.monotonic()
    found = outcome(fill(whole))
    assert time.monotonic() - start < 10
    assert found == ((reason,) if reason else outcome(whole))


@pytest.mark.parametrize("fill", [b"", b"\xff", b"\xff" * 700])
def test_fill_bytes_before_a_marker_are_none_of_the_scan(fill: bytes) -> None:
    """ITU-T T.81, B.1.1.2."""
    whole = jpeg(progressive=True)
    filled = whole.replace(b"\xff\xda", fill + b"\xff\xda").replace(b"\xff\xc4", fill + b"\xff\xc4")
    scans, with_fill = (
        [data[part.end : part.scan_end] for part in segments(data) if part.marker == SOS]
        for data in (whole, filled)
    )
    assert len(scans) > 1
    assert scans == with_fill


@pytest.mark.parametrize("end", [b"\xff\xd9", b""])
def test_a_jpeg_of_very_many_scans_is_not_decoded(
    end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = jpeg(progressive=True)
    last = [part for part in segments(whole) if part.marker == SOS][-1]
    many = whole[: last.scan_end] + whole[last.start : last.scan_end] * 500 + end
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    if end:
        with pytest.raises(NotAssessedError, match=r"50\d scans; at most 500 are read") as caught:
            decode_radiograph(FileBytes(Path("image.jpg"), many, "0" * 64))
        assert caught.value.reason is Reason.DECODE
    else:
        assert decoded(many) == "E_TRUNCATED"


@given(at=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_header_is_taken_as_pillow_takes_it(at: int, value: int) -> None:
    """The same image comes out, or it is refused for the same reason."""
    data = bytearray(jpeg())
    data[at] = value
    quick = outcome(bytes(data))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "_plain_jpeg", lambda data: None)
        assert quick == outcome(bytes(data))
