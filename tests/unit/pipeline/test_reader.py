"""Images are read ahead while a model loads: each once, in order, none lost, and nobody waits."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from drawn_once import phantom_files

from deepcovid_edge.imaging.files import read_source
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.pipeline import reader as module
from deepcovid_edge.pipeline.reader import ImageReader, PreparedImage, Reading

SPEC = InputSpec(32, 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom_files(tmp_path_factory.mktemp("images"), count=5)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was read."""
    seen: Counter[Path] = Counter()
    real = read_source

    def counted(path: Path) -> Any:
        seen[path] += 1
        return real(path)

    monkeypatch.setattr(module, "read_source", counted)
    return seen


@pytest.mark.parametrize("kept", [True, False])
def test_an_image_s_own_pixels_are_kept_where_they_are_asked_for(
    kept: bool, images: list[Path]
) -> None:
    image = ImageReader(SPEC, keeps_radiographs=kept).read(images[0])
    assert image.shape == read_radiograph(images[0]).pixels.shape
    assert (image.radiograph is not None) == kept


def paths_of(reading: Iterable[Callable[[], PreparedImage]]) -> list[Path]:
    return [Path(call().name) for call in reading]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_image_is_read_once_and_in_order(
    threads: int, images: list[Path], read: Counter[Path]
) -> None:
    reading = Reading(images, ImageReader(SPEC))
    with reading.ahead(threads):
        pass
    assert paths_of(reading) == images
    assert read == Counter(images)


def test_without_a_thread_nothing_is_read_ahead(images: list[Path], read: Counter[Path]) -> None:
    with Reading(images, ImageReader(SPEC)).ahead(0):
        assert not read


def test_what_lies_ahead_is_read_and_the_rest_is_left(
    images: list[Path], read: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block lasts until the bound is reached: no more images than that are taken."""
    monkeypatch.setattr(module, "_MOST_AHEAD", 3)
    paths = iter(images)
    reading = Reading(paths, ImageReader(SPEC))
    enough = threading.Event()
    real = ImageReader.read

    def told(self: ImageReader, path: Path) -> PreparedImage:
        image = real(self, path)
        if path == images[2]:
            enough.set()
        return image

    monkeypatch.setattr(ImageReader, "read", told)
    with reading.ahead(1):
        assert enough.wait(30)
    assert read == Counter(images[:3])
    assert next(paths) == images[3]
    assert paths_of(reading) == [*images[:3], images[4]]


def test_an_image_that_takes_long_is_not_waited_for(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    real = ImageReader.read

    def slow(self: ImageReader, path: Path) -> PreparedImage:
        if path == images[0]:
            begun.set()
            assert goes_on.wait(30)
        return real(self, path)

    monkeypatch.setattr(ImageReader, "read", slow)
    reading = Reading(images, ImageReader(SPEC))
    with reading.ahead(1):
        assert begun.wait(30)
    first, *others = reading  # here already, while the image is still being read
    assert paths_of(others) == images[1:]
    goes_on.set()
    assert first().name == str(images[0])


def test_a_model_that_does_not_load_ends_the_reading(
    images: list[Path], read: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    real = ImageReader.read

    def slow(self: ImageReader, path: Path) -> PreparedImage:
        begun.set()
        assert goes_on.wait(30)
        return real(self, path)

    monkeypatch.setattr(ImageReader, "read", slow)

    def load() -> None:
        assert begun.wait(30)
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"), Reading(images, ImageReader(SPEC)).ahead(1):
        load()
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ahead"):
            thread.join(30)
            assert not thread.is_alive()
    assert read == Counter(images[:1])


def test_no_image_is_lost_or_read_twice_whenever_the_model_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads begin with images while those that wait are cancelled, so what begins has gaps."""
    seen: list[Path] = []

    def quick(self: ImageReader, path: Path) -> PreparedImage:
        seen.append(path)
        return PreparedImage(str(path), 0.0)

    monkeypatch.setattr(ImageReader, "read", quick)
    paths = [Path(f"{number}.png") for number in range(100)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for round_ in range(300):
            seen.clear()
            reading = Reading(paths, ImageReader(SPEC))
            with reading.ahead(1 + round_ % 3):
                ends = time.perf_counter() + round_ % 10 * 2e-4
                while time.perf_counter() < ends:
                    pass
            assert paths_of(reading) == paths
            assert Counter(seen) == Counter(paths)
    finally:
        sys.setswitchinterval(before)
