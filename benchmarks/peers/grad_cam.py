"""Class activation as a user of torch would get it: pytorch-grad-cam's `GradCAM` (jacobgil, 1.5).

Grad-CAM at the layer that makes the class maps: the gradients there are the same everywhere on the
positive class's map and zero on the others, so what is left is that map, without its negative part,
laid between 0 and 1, on the network's input.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from deepcovid_export.networks import Classifier, torchvision_models


class _LogitsAlone(torch.nn.Module):
    """What pytorch-grad-cam takes: one output."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images[:, 0])[0]


def make(network: Classifier, positive: int, *, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The positive class's map of an image, of the network's input shape, 0 to 1."""
    torchvision_models()  # pytorch-grad-cam imports torchvision, see there
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explain_with = GradCAM(_LogitsAlone(network), [network.maps])

    def explain(image: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)
        images = torch.from_numpy(image[None, None].astype(np.float32))
        with torch.enable_grad():
            return explain_with(images, [ClassifierOutputTarget(positive)])[0]

    return explain
