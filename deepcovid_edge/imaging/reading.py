"""A file's bytes to a `Radiograph`: content decides the format, never the suffix."""

from __future__ import annotations

from deepcovid_edge.imaging.files import FileBytes, ImageSource, read_source
from deepcovid_edge.imaging.pictures import decode_picture
from deepcovid_edge.imaging.radiograph import DicomFacts, Radiograph
from deepcovid_edge.imaging.signatures import is_dicom
from deepcovid_edge.manifest import InputSpec


def read_radiograph(source: ImageSource, spec: InputSpec | None = None) -> Radiograph:
    """Read an image file: a path, an open binary file, or `ImageBytes`.

    Args:
        source: Where the file comes from.
        spec: See `decode_radiograph`.

    Raises:
        NotAssessedError: The file cannot be assessed; `reason` and `detail` say why.
        UsageError: It is no source of images.
    """
    return decode_radiograph(read_source(source), spec)


def decode_radiograph(file: FileBytes, spec: InputSpec | None = None) -> Radiograph:
    """Decode the bytes of an image file.

    Args:
        file: The file.
        spec: The only model input that is made of it: a picture that holds smaller versions of
            itself is then not decoded to its full size. None for all pixels.

    Raises:
        NotAssessedError: The bytes cannot be assessed; `reason` and `detail` say why.
    """
    if is_dicom(file.data):
        from deepcovid_edge.imaging.dicom.reader import decode_dicom  # pydicom is an extra

        return decode_dicom(file, spec)
    return decode_picture(file)


def dicom_facts(file: FileBytes) -> DicomFacts | None:
    """What is kept of a DICOM file's header, whether or not the image can be assessed.

    Returns:
        None for other formats, and for a header that cannot be read.
    """
    if not is_dicom(file.data):
        return None
    from deepcovid_edge.imaging.dicom.header import stated_facts  # pydicom is an extra

    return stated_facts(file.data)
