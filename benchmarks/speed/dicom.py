"""Speed of DICOM: 3000 x 2500 pixels of 16 bits from the file to the model's input, on one core.

`image` is what `infer` does with a file before the network: read and hash it (`read`), eligibility
check, grey levels and exposure (`decode`), resize (`prepare`). `eligibility` is that check alone.
The file lies in the page cache. `compressed` are files of the same pixels, decoded in the child
process, which an image before the first one has started.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

from benchmarks import measure
from benchmarks.measure import Summary
from benchmarks.measure.options import parser_of
from deepcovid_edge.imaging.dicom.eligibility import check_header
from deepcovid_edge.imaging.dicom.header import read_header
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.imaging.files import read_bytes
from deepcovid_edge.imaging.phantom import draw_phantom
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import decode_radiograph, read_radiograph
from deepcovid_edge.manifest import InputSpec

ROWS, COLUMNS, BITS = 3000, 2500, 16
GOALS_MS = {"image": 40.0, "eligibility": 1.0}
ENCODERS: dict[str, Callable[..., bytes | bytearray]] = {
    "1.2.840.10008.1.2.4.70": partial(imagecodecs.jpeg8_encode, lossless=True, bitspersample=BITS),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": partial(
        imagecodecs.jpeg2k_encode, codecformat="j2k", level=0, reversible=True
    ),
    "1.2.840.10008.1.2.4.201": partial(imagecodecs.htj2k_encode, reversible=True),
}


def main() -> None:
    """Measure on one core, and store the result."""
    options = parser_of(__doc__, rounds=31).parse_args()
    with measure.on_one_core(), tempfile.TemporaryDirectory() as place:
        path = Path(place, "image.dcm")
        write(path, image())
        compressed = {uid: Path(place, uid) for uid in ENCODERS}
        for uid, file in compressed.items():
            write(file, image(), uid)
        figures: dict[str, Any] = {
            "rows": ROWS,
            "columns": COLUMNS,
            "bits": BITS,
            "file_bytes": path.stat().st_size,
            "goals_ms": GOALS_MS,
            "ms": time_steps(path, options.rounds),
            "compressed_ms": {
                SYNTAXES[uid].name: milliseconds(
                    partial(read_radiograph, file), options.rounds // 3
                )
                for uid, file in compressed.items()
            },
        }
    measure.print_medians("", {**figures["ms"], **figures["compressed_ms"]}, " ms")
    measure.store("dicom-speed", figures)


def image() -> NDArray[np.uint16]:
    """A phantom of that size, with the noise that a detector has."""
    drawn = cv2.resize(draw_phantom(0), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 200, drawn.shape)
    return np.asarray(np.clip(drawn * 257.0 + noise, 0, 65535), np.uint16)


def write(
    path: Path, pixels: NDArray[np.uint16], syntax: str = str(ExplicitVRLittleEndian)
) -> None:
    """Write a file of an adult's chest in a transfer syntax."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4.5"
    header.Modality, header.BodyPartExamined, header.ViewPosition = "DX", "CHEST", "PA"
    header.PatientAge = "050Y"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME1"
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated = header.BitsStored = BITS
    header.HighBit, header.PixelRepresentation = BITS - 1, 0
    header.WindowCenter, header.WindowWidth = 32768, 50000
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(syntax)
    if syntax in ENCODERS:
        header.add_new(0x7FE00010, "OB", encapsulate([bytes(ENCODERS[syntax](pixels))]))
        header["PixelData"].is_undefined_length = True
    else:
        header.add_new(0x7FE00010, "OW", pixels.tobytes())
    dcmwrite(path, header, enforce_file_format=True)


def time_steps(path: Path, rounds: int) -> dict[str, Summary]:
    """Milliseconds of the whole way, and of its steps."""
    spec = InputSpec()
    file = read_bytes(path)
    radiograph = decode_radiograph(file)
    steps: dict[str, Callable[[], object]] = {
        "image": partial(measure.prepared, path, spec),
        "eligibility": lambda: check_header(read_header(file.data)),
        "read": partial(read_bytes, path),
        "decode": partial(decode_radiograph, file),
        "prepare": partial(prepare, radiograph, spec),
    }
    return {name: milliseconds(step, rounds) for name, step in steps.items()}


def milliseconds(step: Callable[[], object], rounds: int) -> Summary:
    """Milliseconds of a step, after two rounds that warm up."""
    (seconds,) = measure.in_turn({"": step}, repeat((), rounds + 2), warm_up=2).values()
    return measure.summary([1e3 * one for one in seconds])


if __name__ == "__main__":
    main()
