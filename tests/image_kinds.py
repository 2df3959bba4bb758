"""A folder with a file for every reason, every warning and every decision, of every format."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from conftest import Pictures
from drawn_once import drawn_phantom, phantom_files
from test_dicom_refusals import REFUSALS as DICOM_REFUSALS
from test_dicom_refusals import WARNED as DICOM_WARNED
from test_refusals import REFUSALS, WARNED, placed

from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.reasons import Reason

ELSEWHERE = {Reason.RESULT, Reason.MODEL, Reason.DISK, Reason.DICOM, Reason.TURNED}
"""Reasons that no drawn file brings about with the shipped model and the extra `dicom`."""
COSTLY = {"deflate-bomb", "many-items", "many-elements"}
"""DICOM files at the limits of what is read: each takes a second or more, the others 20 ms."""


def folder_of_every_kind(folder: Path) -> Path:
    """Fill a folder; whatever a maker needs beside its file lies in folders of their own.

    Without the costly files, whose reasons others bring about as well.
    """
    for name, case in REFUSALS.items():
        own = folder / f"picture-{name}"
        own.mkdir()
        placed(case, Pictures, own)
    for number, make in enumerate(WARNED.values()):
        data, name = make(Pictures)
        (folder / f"warned-{number}-{name}").write_bytes(data)
    with warnings.catch_warnings():  # of pydicom, about what is written wrong here
        warnings.simplefilter("ignore", UserWarning)
        _write_dicom(folder)
        _write_refused(folder, set(DICOM_REFUSALS) - COSTLY)
    phantom_files(folder / "synthetic", count=6)
    save_phantom(drawn_phantom(10, opacities=3), folder / "synthetic" / "undecided.png")
    _turned(folder)
    return folder


def folder_of_costly_files(folder: Path) -> Path:
    """Make and fill a folder with the files at the limits of what is read."""
    folder.mkdir()
    _write_refused(folder, COSTLY)
    return folder


def _write_refused(folder: Path, names: set[str]) -> None:
    for name in sorted(names):
        (folder / f"dicom-{name}.dcm").write_bytes(DICOM_REFUSALS[name].make())


def _write_dicom(folder: Path) -> None:
    for number, (_, make_dicom, _) in enumerate(DICOM_WARNED.values()):
        (folder / f"dicom-warned-{number}.dcm").write_bytes(make_dicom())


def _turned(folder: Path) -> None:
    """A turned image and one that is no radiograph, without the mark of a synthetic one."""
    phantom = drawn_phantom(0)
    cv2.imwrite(str(folder / "upright.jpg"), phantom)
    cv2.imwrite(str(folder / "turned.jpg"), np.ascontiguousarray(np.rot90(phantom)))
    noise = np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8)
    cv2.imwrite(str(folder / "noise.jpg"), noise)
