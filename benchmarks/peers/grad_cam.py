"""Class activation as a user of torch would get it, on the network's input.

`pytorch_grad_cam` is jacobgil's `GradCAM` (1.5), `captum_layer_grad_cam` is captum's `LayerGradCam`
(0.9). Both work at the layer that makes the class maps. The gradients there are constant on the
positive class's map and zero on the others, so what is left is that map without its negative part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measure import Pixels
from deepcovid_export.networks import Classifier, torchvision_models

Explain = Callable[[Pixels], Pixels]
"""From a prepared image to the positive class's map, both of the network's input shape."""


class _LogitsAlone(torch.nn.Module):
    """What pytorch-grad-cam takes: one output."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images[:, 0])[0]
        return logits


def pytorch_grad_cam(network: Classifier, positive: int, *, threads: int) -> Explain:
    """Maps between 0 and 1."""
    torchvision_models()  # pytorch-grad-cam imports torchvision, see there
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explain_with = GradCAM(_LogitsAlone(network), [network.maps])

    def explain(image: Pixels) -> Pixels:
        torch.set_num_threads(threads)
        images = torch.from_numpy(image[None, None].astype(np.float32))
        with torch.enable_grad():
            found: Pixels = explain_with(images, [ClassifierOutputTarget(positive)])[0]
        return found

    return explain


def captum_layer_grad_cam(network: Classifier, positive: int, *, threads: int) -> Explain:
    """Maps in units of the logit."""
    from captum.attr import LayerAttribution, LayerGradCam

    layer = LayerGradCam(lambda images: network(images)[0], network.maps)

    def explain(image: Pixels) -> Pixels:
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(image[None].astype(np.float32)).requires_grad_()
        found = layer.attribute(inputs, target=positive, relu_attributions=True)
        shown = LayerAttribution.interpolate(found, image.shape, interpolate_mode="bilinear")
        values: Pixels = shown[0, 0].detach().numpy()
        return values

    return explain


PEERS: dict[str, Callable[..., Explain]] = {
    "pytorch_grad_cam": pytorch_grad_cam,
    "captum_layer_grad_cam": captum_layer_grad_cam,
}
