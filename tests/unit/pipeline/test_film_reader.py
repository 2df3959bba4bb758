"""Films are read ahead while a model loads: each once, in order, none lost, and nobody waits."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.imaging.phantom import write_samples
from deepcovid_edge.imaging.pictures import read_radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.pipeline import reader as module
from deepcovid_edge.pipeline.reader import Film, FilmReader, Reading

SPEC = InputSpec(32, 32)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("films"), count=5)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was read."""
    seen: Counter[Path] = Counter()
    real = module.read_bytes

    def counted(path: Path) -> Any:
        seen[path] += 1
        return real(path)

    monkeypatch.setattr(module, "read_bytes", counted)
    return seen


@pytest.mark.parametrize("kept", [True, False])
def test_a_film_s_own_pixels_are_kept_where_they_are_asked_for(
    kept: bool, films: list[Path]
) -> None:
    film = FilmReader(SPEC, keeps_films=kept).read(films[0])
    assert film.shape == read_radiograph(films[0]).pixels.shape
    assert (film.radiograph is not None) == kept


def paths_of(reading: Reading) -> list[Path]:
    return [call().path for call in reading]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_film_is_read_once_and_in_order(
    threads: int, films: list[Path], read: Counter[Path]
) -> None:
    reading = Reading(films, FilmReader(SPEC))
    with reading.ahead(threads):
        pass
    assert paths_of(reading) == films
    assert read == Counter(films)


def test_without_a_thread_nothing_is_read_ahead(films: list[Path], read: Counter[Path]) -> None:
    with Reading(films, FilmReader(SPEC)).ahead(0):
        assert not read


def test_what_lies_ahead_is_read_and_the_rest_is_left(
    films: list[Path], read: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block lasts until the bound is reached: no more films than that are taken."""
    monkeypatch.setattr(module, "_MOST_AHEAD", 3)
    paths = iter(films)
    reading = Reading(paths, FilmReader(SPEC))
    enough = threading.Event()
    real = FilmReader.read

    def told(self: FilmReader, path: Path) -> Film:
        film = real(self, path)
        if path == films[2]:
            enough.set()
        return film

    monkeypatch.setattr(FilmReader, "read", told)
    with reading.ahead(1):
        assert enough.wait(30)
    assert read == Counter(films[:3])
    assert next(paths) == films[3]
    assert paths_of(reading) == [*films[:3], films[4]]


def test_a_film_that_takes_long_is_not_waited_for(
    films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    real = FilmReader.read

    def slow(self: FilmReader, path: Path) -> Film:
        if path == films[0]:
            begun.set()
            assert goes_on.wait(30)
        return real(self, path)

    monkeypatch.setattr(FilmReader, "read", slow)
    reading = Reading(films, FilmReader(SPEC))
    with reading.ahead(1):
        assert begun.wait(30)
    first, *others = reading  # here already, while the film is still being read
    assert [call().path for call in others] == films[1:]
    goes_on.set()
    assert first().path == films[0]


def test_a_model_that_does_not_load_ends_the_reading(
    films: list[Path], read: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    real = FilmReader.read

    def slow(self: FilmReader, path: Path) -> Film:
        begun.set()
        assert goes_on.wait(30)
        return real(self, path)

    monkeypatch.setattr(FilmReader, "read", slow)

    def load() -> None:
        assert begun.wait(30)
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"), Reading(films, FilmReader(SPEC)).ahead(1):
        load()
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ahead"):
            thread.join(30)
            assert not thread.is_alive()
    assert read == Counter(films[:1])


def test_no_film_is_lost_or_read_twice_whenever_the_model_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads begin with films while those that wait are cancelled, so what begins has gaps."""
    seen: list[Path] = []

    def quick(self: FilmReader, path: Path) -> Film:
        seen.append(path)
        return Film(path, 0.0)

    monkeypatch.setattr(FilmReader, "read", quick)
    paths = [Path(f"{number}.png") for number in range(100)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for round_ in range(300):
            seen.clear()
            reading = Reading(paths, FilmReader(SPEC))
            with reading.ahead(1 + round_ % 3):
                ends = time.perf_counter() + round_ % 10 * 2e-4
                while time.perf_counter() < ends:
                    pass
            assert paths_of(reading) == paths
            assert Counter(seen) == Counter(paths)
    finally:
        sys.setswitchinterval(before)
