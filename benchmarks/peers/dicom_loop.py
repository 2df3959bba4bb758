"""What a user writes for DICOM: a reader, OpenCV's resize, ONNX Runtime, one file at a time.

`pydicom` is pydicom's pixels with its own modality and VOI functions, decoded by the plug-in that
it takes first of those that are installed. `monai` is MONAI's `PydicomReader`, whose pixels have
the rescale alone. Nothing is checked, hashed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from benchmarks.measure import Pixels
from benchmarks.peers.onnxruntime_loop import first_probability


def make(model: Path, *, reader: str) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    read = {"pydicom": by_pydicom, "monai": by_monai}[reader]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def classify(paths: Sequence[Path]) -> list[float]:
        found = (
            session.run(["logits"], {"images": prepared(read(path))[None]})[0] for path in paths
        )
        return [first_probability(logits) for logits in found]

    return classify


def by_pydicom(path: Path) -> Pixels:
    """Values as shown, MONOCHROME1 inverted."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    image = dcmread(path)
    values = np.asarray(apply_voi_lut(apply_modality_lut(image.pixel_array, image), image))
    inverted = image.PhotometricInterpretation == "MONOCHROME1"
    return np.asarray(values.max() - values if inverted else values)


def by_monai(path: Path) -> Pixels:
    """Values as MONAI reads them: (columns, rows), turned back."""
    from monai.data import PydicomReader  # type: ignore[import-not-found]

    reader = PydicomReader()
    values, _ = reader.get_data(reader.read(str(path)))
    turned: Pixels = np.asarray(values).squeeze().T
    return turned


def prepared(values: Pixels) -> Pixels:
    """The centre of an image, 224 x 224, from its lowest to its highest value."""
    side = min(values.shape)
    top, left = ((length - side) // 2 for length in values.shape)
    square = np.ascontiguousarray(values[top : top + side, left : left + side], np.float32)
    small = cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())
    return np.asarray((small - low) * (255.0 / (high - low)), np.uint8)
