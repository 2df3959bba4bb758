"""Programs that a benchmark compares: each in a process of its own, ended with it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

PROGRAMS = """
import os

def make(place, *, fails=False):
    if fails:
        raise ValueError("no such device\\nand more")
    with open(place, "a") as file:
        file.write(f"made {os.getpid()}\\n")
    def run():
        with open(place, "a") as file:
            file.write(f"ran {os.getpid()}\\n")
    return run

def failing():
    def run():
        raise OSError("gone")
    return run

def dying():
    return lambda: os._exit(9)
"""


@pytest.fixture(autouse=True)
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_programs.py").write_text(PROGRAMS)
    monkeypatch.syspath_prepend(str(tmp_path))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_is_made_once_and_run_again_in_a_process_of_its_own(tmp_path: Path) -> None:
    from benchmarks.measure.programs import Program

    place = tmp_path / "log"
    with closing(Program("some_programs:make", str(place))) as program:
        program()
        program()
    lines = [line.split() for line in place.read_text().splitlines()]
    assert [what for what, _ in lines] == ["made", "ran", "ran"]
    (process,) = {int(number) for _, number in lines}
    assert process != os.getpid()
    assert not alive(process)


def test_what_a_program_lacks_is_raised_when_it_is_made(tmp_path: Path) -> None:
    from benchmarks.measure.programs import Program

    with pytest.raises(RuntimeError, match=r"^ValueError: no such device$"):
        Program("some_programs:make", str(tmp_path / "log"), fails=True)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        Program("no_such_module:make")


def test_a_program_that_fails_or_dies_is_no_measurement() -> None:
    from benchmarks.measure.programs import Program

    with (
        closing(Program("some_programs:failing")) as failing,
        pytest.raises(RuntimeError, match="OSError: gone"),
    ):
        failing()
    with (
        closing(Program("some_programs:dying")) as dying,
        pytest.raises(RuntimeError, match="its process ended with 9"),
    ):
        dying()


def test_the_roof_classifies_every_image_once_and_as_infer_prepares_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import cv2
    import numpy as np
    from drawn_once import drawn_phantom

    from benchmarks.speed import roof
    from deepcovid_edge.imaging.prepare import prepare
    from deepcovid_edge.imaging.reading import read_radiograph
    from deepcovid_edge.manifest import InputSpec

    images = []
    for seed in range(5):
        images.append(tmp_path / f"{seed}.jpg")
        cv2.imwrite(str(images[-1]), drawn_phantom(seed))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(roof, "_GROUP", 2)
    roof.run(seen.append, images, roof.prepared)
    expected = {prepare(read_radiograph(image), InputSpec()).tobytes() for image in images}
    assert sorted(pixels.tobytes() for pixels in seen) == sorted(expected)
