"""A file's bytes to a `Radiograph`: content decides the format, never the suffix."""

from __future__ import annotations

from deepcovid_edge.imaging.files import FileBytes, ImageSource, read_source
from deepcovid_edge.imaging.pictures import decode_picture
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.signatures import is_dicom


def read_radiograph(source: ImageSource) -> Radiograph:
    """Read an image file: a path, an open binary file, or `ImageBytes`.

    Raises:
        NotAssessedError: The file cannot be assessed; `reason` and `detail` say why.
    """
    return decode_radiograph(read_source(source))


def decode_radiograph(file: FileBytes) -> Radiograph:
    """Decode the bytes of an image file.

    Raises:
        NotAssessedError: The bytes cannot be assessed; `reason` and `detail` say why.
    """
    if is_dicom(file.data):
        from deepcovid_edge.imaging.dicom.reader import decode_dicom  # pydicom is an extra

        return decode_dicom(file)
    return decode_picture(file)
