"""A file to the network's input with torchvision: what `read_radiograph` and `prepare` do here.

`published`: PIL to RGB and `transforms`, as the published code does it, then one grey channel of
it. `present`: torchvision's present variant, tensors from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepcovid_export.networks import torchvision_models

Prepare = Callable[[Path], np.ndarray]
WAYS = ("published", "present")


def make(way: str, side: int = 224, *, threads: int = 1) -> Prepare:
    """From a file to grey pixels of shape (side, side), uint8."""
    torchvision_models()  # torchvision is imported here, see there
    from torchvision import transforms
    from torchvision.transforms.v2 import functional

    steps = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])

    def published(path: Path) -> np.ndarray:
        return np.asarray(steps(Image.open(path).convert("RGB")))[..., 0]

    def present(path: Path) -> np.ndarray:
        image = functional.pil_to_tensor(Image.open(path).convert("L"))
        resized = functional.resize(image, [side], antialias=True)
        return functional.center_crop(resized, [side, side])[0].numpy()

    def prepare(path: Path) -> np.ndarray:
        torch.set_num_threads(threads)
        return published(path) if way == "published" else present(path)

    return prepare
