"""A folder as a clinic sends it, synthetic: phantoms, and files that cannot be assessed."""

from __future__ import annotations

import filecmp
import io
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image

from deepcovid_edge.errors import OutputError, require
from deepcovid_edge.imaging.dicom.writing import DX, write_dicom, write_radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom, save_phantom

_OPACITIES = 9
_SEED = 1000
"""Of the phantoms behind the files that cannot be assessed."""
_CT = "1.2.840.10008.5.1.4.1.1.2"
_Writer: TypeAlias = Callable[[Path], None]


def write_phantoms(folder: Path, count: int = 6, *, dicom: bool = False) -> list[Path]:
    """Write phantoms: clear lungs and lungs with opacities in turn.

    Args:
        folder: Created if need be.
        count: Number of images.
        dicom: Write DICOM files instead of PNG files, each in a study of its own.

    Raises:
        MissingDependencyError: `dicom`, and pydicom is not installed; no file is written.
        OutputError: A file of such a name is there with another content; no file is written.
    """
    if dicom:
        require("pydicom", extra="dicom")
    return _write(folder, _phantoms(count, dicom=dicom))


def write_clinic_folder(folder: Path, count: int = 6, *, dicom: bool = False) -> list[Path]:
    """Write phantoms, and beside them what a clinic also sends.

    Args:
        folder: Created if need be.
        count: Number of phantoms.
        dicom: Write the phantoms as DICOM files.

    Raises:
        MissingDependencyError: pydicom is not installed; no file is written.
        OutputError: A file of such a name is there with another content; no file is written.
    """
    require("pydicom", extra="dicom")
    return _write(folder, {**_phantoms(count, dicom=dicom), **OTHERS})


def _phantoms(count: int, *, dicom: bool) -> dict[str, _Writer]:
    suffix = ".dcm" if dicom else ".png"
    return {f"phantom_{seed:03d}{suffix}": partial(_phantom, seed) for seed in range(count)}


def _phantom(seed: int, path: Path) -> None:
    pixels = draw_phantom(seed, opacities=_OPACITIES * (seed % 2))
    if path.suffix == ".dcm":
        write_radiograph(path, pixels)
    else:
        save_phantom(pixels, path)


def _write(folder: Path, files: Mapping[str, _Writer]) -> list[Path]:
    """Write the files that are not there yet, if those that are there have the same content.

    Each gets its name when it is whole.
    """
    new = {name: write for name, write in files.items() if not (folder / name).exists()}
    _check_same({name: write for name, write in files.items() if name not in new}, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
            for name, write in new.items():
                write(made := Path(place, name))
                made.rename(folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return [folder / name for name in files]


def _check_same(files: Mapping[str, _Writer], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, write in files.items():
            write(made := Path(place, name))
            if not filecmp.cmp(made, folder / name, shallow=False):
                raise OutputError(
                    f"{folder / name}: is another file than `sample` writes, and would be lost: "
                    "choose another folder"
                )
            made.unlink()


def _blank(path: Path) -> None:
    """A plate that was not exposed."""
    noise = np.random.default_rng(_SEED).normal(6, 1, (900, 900))
    Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(path)


def _cut_off(path: Path) -> None:
    """A transfer that stopped half-way."""
    whole = io.BytesIO()
    Image.fromarray(draw_phantom(_SEED)).save(whole, "JPEG", quality=90)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def _photograph(path: Path) -> None:
    """A colour picture, of a meadow under the sky."""
    draw = np.random.default_rng(_SEED)
    rows = np.linspace(0, 1, 720, dtype=np.float32)[:, None]
    picture = np.empty((720, 960, 3), np.float32)
    picture[:] = np.where(rows[..., None] < 0.55, (90, 150, 225), (70, 140, 60))
    picture += (60 * rows + draw.normal(0, 8, (720, 960)).astype(np.float32))[..., None]
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    cv2.circle(pixels, (740, 140), 60, (250, 220, 80), -1, cv2.LINE_AA)
    Image.fromarray(pixels).save(path)


def _turned(path: Path) -> None:
    """A cassette that was read lying on its side."""
    Image.fromarray(np.ascontiguousarray(np.rot90(draw_phantom(_SEED), 3))).save(path)


def _lateral(path: Path) -> None:
    """A lateral view; its header says so, its pixels are not looked at."""
    pixels = draw_phantom(_SEED).astype(np.uint16) << 4
    write_dicom(path, pixels, DX, Modality="DX", ViewPosition="LL", BodyPartExamined="CHEST")


def _ct_slice(path: Path) -> None:
    """A slice of a CT that was sent to the wrong place."""
    rows, columns = np.ogrid[-1:1:512j, -1:1:512j]
    disc = np.where(rows**2 + columns**2 < 0.7, np.uint16(1000), np.uint16(0))
    write_dicom(path, disc, _CT, Modality="CT", BodyPartExamined="CHEST")


OTHERS: dict[str, _Writer] = {
    "blank.png": _blank,
    "ct_slice.dcm": _ct_slice,
    "cut_off.jpg": _cut_off,
    "lateral.dcm": _lateral,
    "photograph.png": _photograph,
    "turned.png": _turned,
}
"""File name -> what writes it: files that a clinic sends, too, and that cannot be assessed."""
