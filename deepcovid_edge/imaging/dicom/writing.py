"""Synthetic images as DICOM files. They need pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK

DX = "1.2.840.10008.5.1.4.1.1.1.1"
"""Digital X-Ray Image Storage - For Presentation (DICOM PS3.4, B.5)."""


def write_radiograph(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a frontal chest radiograph as a console sends it, in a study of its own.

    Args:
        path: The file; its name decides on the UIDs.
        pixels: Of shape (rows, columns), 8 bits.
    """
    from pydicom.uid import generate_uid

    write_dicom(
        path,
        pixels.astype(np.uint16) << 4,
        DX,
        Modality="DX",
        StudyInstanceUID=generate_uid(entropy_srcs=["study", path.name]),
        SeriesInstanceUID=generate_uid(entropy_srcs=["series", path.name]),
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        PresentationIntentType="FOR PRESENTATION",
    )


def write_dicom(path: Path, pixels: NDArray[Any], sop_class: str, **elements: str) -> None:
    """Write pixels as a DICOM file of a patient that does not exist.

    Args:
        path: The file.
        pixels: Of shape (rows, columns), uint16, of which 12 bits are used.
        sop_class: UID of the SOP class.
        elements: Keyword of PS3.6 to value.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = UID(sop_class), generate_uid(entropy_srcs=[path.name])
    data.PatientName, data.PatientID, data.PatientAge = "Synthetic^Phantom", "SYNTHETIC", "050Y"
    data.StudyDate = "20200101"
    data.ImageComments = f"{SYNTHETIC_MARK.decode()}, not a patient's image"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
