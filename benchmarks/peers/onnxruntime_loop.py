"""What a user writes with ONNX Runtime, simplejpeg and OpenCV: read, resize, run, softmax.

`threads=None` takes one image at a time, with ONNX Runtime's own threads (its default). A number is
a thread pool of that size, each thread with an image of its own and one thread inside ONNX Runtime:
the fastest way with the same decoder and a pool alone. Nothing is checked, hashed or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import simplejpeg

from benchmarks.measure import Pixels


def make(model: Path, *, threads: int | None = None) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def classify_one(path: Path) -> float:
        (logits,) = session.run(["logits"], {"images": prepared(path)[None]})
        return first_probability(logits)

    def classify(paths: Sequence[Path]) -> list[float]:
        if threads is None:
            return [classify_one(path) for path in paths]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(classify_one, paths))

    return classify


def prepared(path: Path) -> Pixels:
    """The centre of an image, 224 x 224, as the published code crops it."""
    if simplejpeg.is_jpeg(data := path.read_bytes()):
        image = simplejpeg.decode_jpeg(data, "GRAY")[..., 0]
    else:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    rows, columns = image.shape
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    square = image[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA))


def first_probability(logits: Pixels) -> float:
    """Softmax of the first class."""
    weights = np.exp(logits[0] - logits[0].max())
    return float(weights[0] / weights.sum())
