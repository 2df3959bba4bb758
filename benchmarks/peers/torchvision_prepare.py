"""A file to the network's input with torchvision: what `read_radiograph` and `prepare` do here.

`published` is PIL to RGB and `transforms`, as the published code does it, then one grey channel of
the result. `present` is torchvision's present API, on tensors from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Pixels
from deepcovid_export.networks import torchvision_models

WAYS = ("published", "present")


def make(way: str, side: int = 224, *, threads: int = 1) -> Callable[[Path], Pixels]:
    """From a file to grey pixels of shape (side, side), uint8."""
    torchvision_models()  # torchvision is imported here, see there
    from torchvision import transforms
    from torchvision.transforms.v2 import functional

    steps = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])

    def prepare(path: Path) -> Pixels:
        torch.set_num_threads(threads)
        if way == "published":
            return np.asarray(steps(Image.open(path).convert("RGB")))[..., 0]
        image = functional.pil_to_tensor(Image.open(path).convert("L"))
        resized = functional.resize(image, [side], antialias=True)
        return np.asarray(functional.center_crop(resized, [side, side])[0])

    return prepare
