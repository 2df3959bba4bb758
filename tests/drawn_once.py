"""Phantoms for tests, drawn once a run: to draw and write one takes a third of a second."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from run_folder import has_run_folder, made_once

from deepcovid_edge.imaging.synthetic.clinic_folder import write_phantoms
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

FILES = 6
"""Phantoms that are written for all tests; none asks for more."""


def drawn_phantom(seed: int, *, opacities: int = 0) -> NDArray[np.uint8]:
    """The pixels that `draw_phantom` draws."""

    def draw(folder: Path) -> None:
        np.save(folder / "pixels.npy", draw_phantom(seed, opacities=opacities))

    if not has_run_folder():
        return draw_phantom(seed, opacities=opacities)
    kept = made_once(f"phantom-{seed}-{opacities}", draw)
    pixels: NDArray[np.uint8] = np.load(kept / "pixels.npy")
    return pixels


def phantom_files(folder: Path, count: int = FILES) -> list[Path]:
    """The files that `write_phantoms` writes, in a folder that is made if need be."""
    assert count <= FILES

    def write(kept: Path) -> None:
        write_phantoms(kept, FILES)

    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted(made_once("phantoms", write).iterdir())[:count]
    return [Path(shutil.copyfile(path, folder / path.name)) for path in originals]
