"""Class activation with captum's `LayerGradCam` (pytorch.org, 0.9), on the network's input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam

from deepcovid_export.networks import Classifier


def make(network: Classifier, positive: int, *, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The positive class's map of an image, of the network's input shape, without its negative."""
    layer = LayerGradCam(lambda images: network(images)[0], network.maps)

    def explain(image: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(image[None].astype(np.float32)).requires_grad_()
        found = layer.attribute(inputs, target=positive, relu_attributions=True)
        shown = LayerAttribution.interpolate(found, image.shape, interpolate_mode="bilinear")
        return shown[0, 0].detach().numpy()

    return explain
