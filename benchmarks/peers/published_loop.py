"""The published Deep-COVID inference loop: PIL, torchvision, torch eager, one image at a time.

Written after the description in Minaee et al. 2020 and its published script: open, convert to
RGB, resize the shorter side, centre crop, to tensor, normalise, forward, softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from deepcovid_export.networks import IMAGENET_MEAN, IMAGENET_STD, torchvision_models

THREADS = 2


def make(architecture: str) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over a network of torchvision with two classes; its speed needs no weights."""
    network = torchvision_models().get_model(architecture, num_classes=2).eval()
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def judge(paths: Sequence[Path]) -> list[float]:
        torch.set_num_threads(THREADS)
        scores = []
        with torch.no_grad():
            for path in paths:
                image = prepare(Image.open(path).convert("RGB")).unsqueeze(0)
                scores.append(float(torch.softmax(network(image), dim=1)[0, 1]))
        return scores

    return judge
