"""A synthetic radiograph as a DICOM file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def write_dicom(path: Path, pixels: NDArray[Any], sop_class: str, **elements: str) -> None:
    """Write pixels as a DICOM file of a patient that does not exist. It needs pydicom.

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
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
