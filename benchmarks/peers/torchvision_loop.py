"""ONNX Runtime behind torchvision's reading and preparing, one image at a time.

What is left of the published loop once its network is exported and nothing else is changed, in
torchvision's present variant: PIL, then `pil_to_tensor`, `resize` with antialias, `center_crop`.
Beside `onnxruntime_loop` it shows what reading and preparing alone cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from PIL import Image

from benchmarks.peers.onnxruntime_loop import first_probability
from deepcovid_export.networks import torchvision_models

THREADS = 2


def make(model: Path) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    torchvision_models()  # torchvision is imported here, see there
    from torchvision.transforms.v2 import functional

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def classify(paths: Sequence[Path]) -> list[float]:
        torch.set_num_threads(THREADS)
        scores = []
        for path in paths:
            image = functional.pil_to_tensor(Image.open(path).convert("L"))
            image = functional.resize(image, [224], antialias=True)
            prepared = functional.center_crop(image, [224, 224])
            (logits,) = session.run(["logits"], {"images": prepared.numpy()})
            scores.append(first_probability(logits))
        return scores

    return classify
