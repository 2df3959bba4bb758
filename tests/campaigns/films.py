"""Drawn films that are cheap to make and to judge; each has UIDs of its own."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from dicom_files import EXPLICIT, dataset
from pydicom.dataset import Dataset, FileMetaDataset

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

_PICTURES = 4
"""Chests that are drawn; films share them."""
_EACH_LATERAL = 7
"""One film in so many is a lateral view, which is refused."""
_BITS = 12


class DrawnFilms:
    """Films by number, always the same for a seed.

    Args:
        seed: Decides their UIDs.
        rows: Rows of a film.
        columns: Columns of a film.
    """

    def __init__(self, seed: int, *, rows: int = 256, columns: int = 256) -> None:
        self._base = (seed + 1) * 10**9
        self._pictures = [
            cv2.resize(draw_phantom(number, opacities=9 * (number % 2)), (columns, rows)).astype(
                np.uint16
            )
            << (_BITS - 8)
            for number in range(_PICTURES)
        ]

    def film(self, number: int) -> Dataset:
        """A film as a data set that can be sent."""
        whole: dict[str, Any] = {
            "SOPInstanceUID": f"2.25.{self._base + number}1",
            "StudyInstanceUID": f"2.25.{self._base + number}2",
            "SeriesInstanceUID": f"2.25.{self._base + number}3",
            "AccessionNumber": f"A{number}",
        }
        if number % _EACH_LATERAL == _EACH_LATERAL - 1:
            whole |= {"ViewPosition": "LL", "PatientOrientation": ["P", "F"]}
        image = dataset(self._pictures[number % _PICTURES], stored=_BITS, **whole)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = EXPLICIT  # type: ignore[assignment]
        return image
