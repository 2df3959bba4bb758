"""The inference loop that Deep-COVID's authors published (shervinmin/DeepCovid, Inference.py).

One image at a time through PIL, torchvision and torch eager: open, convert to RGB, resize the
shorter side, centre crop, to tensor, normalise, forward, the larger class, softmax. The published
script records gradients, because its input requires them and nothing switches them off.
`gradients=False` is the same loop as a careful user would run it. `compiled=True` adds
torch.compile, as PyTorch advises for speed: the first image compiles, which takes a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.measure import CORES
from deepcovid_export.networks import IMAGENET_MEAN, IMAGENET_STD, torchvision_models


def make(
    architecture: str, *, gradients: bool = True, compiled: bool = False, device: str = "cpu"
) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over a network of torchvision with two classes; its speed needs no weights."""
    network = torchvision_models().get_model(architecture, num_classes=2).eval().to(device)
    network = torch.compile(network) if compiled else network
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
        torch.set_num_threads(CORES)
        scores = []
        with torch.inference_mode() if compiled else torch.set_grad_enabled(gradients):
            for path in paths:
                image = prepare(Image.open(path).convert("RGB")).float().to(device)
                output = network(image.requires_grad_(gradients).unsqueeze(0))
                output.max(1)
                scores.append(float(torch.softmax(output, dim=1).detach().cpu().numpy()[0, 0]))
        return scores

    return classify
