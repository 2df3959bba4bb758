"""Speed of DICOM: 3000 x 2500 pixels of 16 bits from the file to the model's input, on one core.

`image` is what `infer` does with a file before the network: read and hash it (`read`), eligibility
check, grey levels and exposure (`decode`), resize (`prepare`). `eligibility` is the equivalence
check alone. The file lies in the page cache. `compressed` are files of the same pixels, decoded in
the child process; its start is paid by an image before the first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.measure.measurement import store, summary
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
ENCODERS: dict[str, Callable[[NDArray[np.uint16]], bytes]] = {
    "1.2.840.10008.1.2.4.70": partial(imagecodecs.jpeg8_encode, lossless=True, bitspersample=BITS),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": partial(
        imagecodecs.jpeg2k_encode, codecformat="j2k", level=0, reversible=True
    ),
    "1.2.840.10008.1.2.4.201": partial(imagecodecs.htj2k_encode, reversible=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # children that decode stay on it too
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "image.dcm")
        write(path, image())
        compressed = {uid: Path(place, uid) for uid in ENCODERS}
        for uid, file in compressed.items():
            write(file, image(), uid)
        figures = {
            "rows": ROWS,
            "columns": COLUMNS,
            "bits": BITS,
            "file_bytes": path.stat().st_size,
            "goals_ms": GOALS_MS,
            "ms": measured(path, options.rounds),
            "compressed_ms": {
                SYNTAXES[uid].name: timed(partial(read_radiograph, file), options.rounds // 3)
                for uid, file in compressed.items()
            },
        }
    for name, value in {**figures["ms"], **figures["compressed_ms"]}.items():
        print(f"{name}: {value['median']:.2f} ms (least {value['min']:.2f})")
    os.sched_setaffinity(0, cores)
    store("dicom-speed", figures)


def image() -> NDArray[np.uint16]:
    """A phantom of that size, with the noise that a detector has."""
    drawn = cv2.resize(draw_phantom(0), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 200, drawn.shape)
    return np.clip(drawn * 257.0 + noise, 0, 65535).astype(np.uint16)


def write(
    path: Path, pixels: NDArray[np.uint16], syntax: str = str(ExplicitVRLittleEndian)
) -> None:
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
    header.file_meta.TransferSyntaxUID = syntax
    if syntax in ENCODERS:
        header.add_new(0x7FE00010, "OB", encapsulate([bytes(ENCODERS[syntax](pixels))]))
        header["PixelData"].is_undefined_length = True
    else:
        header.add_new(0x7FE00010, "OW", pixels.tobytes())
    dcmwrite(path, header, enforce_file_format=True)


def measured(path: Path, rounds: int) -> dict[str, dict[str, object]]:
    spec = InputSpec()
    file = read_bytes(path)
    radiograph = decode_radiograph(file)
    steps: dict[str, Callable[[], object]] = {
        "image": lambda: prepare(read_radiograph(path), spec),
        "eligibility": lambda: check_header(read_header(file.data)),
        "read": lambda: read_bytes(path),
        "decode": lambda: decode_radiograph(file),
        "prepare": lambda: prepare(radiograph, spec),
    }
    return {name: timed(step, rounds) for name, step in steps.items()}


def timed(step: Callable[[], object], rounds: int) -> dict[str, object]:
    samples = []
    for number in range(rounds + 2):  # the first two warm up
        started = time.perf_counter()
        step()
        if number > 1:
            samples.append((time.perf_counter() - started) * 1e3)
    return summary(samples)


if __name__ == "__main__":
    main()
