"""The published loop with the network through torch.compile, as PyTorch advises for speed.

The same reading and preparing as `published_loop`, no gradients. The first image compiles, so a
round that counts must come after one that does not. TorchInductor needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from deepcovid_export.networks import IMAGENET_MEAN, IMAGENET_STD, torchvision_models

THREADS = 2


def make(architecture: str, *, device: str = "cpu") -> Callable[[Sequence[Path]], list[float]]:
    """The loop over a network of torchvision with two classes; its speed needs no weights."""
    network = torchvision_models().get_model(architecture, num_classes=2).eval().to(device)
    network = torch.compile(network)
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def classify(paths: Sequence[Path]) -> list[float]:
        torch.set_num_threads(THREADS)
        with torch.inference_mode():
            return [
                float(torch.softmax(network(prepare(image).unsqueeze(0).to(device)), dim=1)[0, 0])
                for image in (Image.open(path).convert("RGB") for path in paths)
            ]

    return classify
