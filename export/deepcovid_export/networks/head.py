"""The last layer: the shape of its maps, and its scale."""

from __future__ import annotations

import torch
from torch import nn

from deepcovid_edge.manifest import InputSpec
from deepcovid_export.networks.classifier import Classifier


def map_shape(network: Classifier, spec: InputSpec) -> tuple[int, int]:
    """Rows and columns of the activation maps for an input."""
    training = network.training
    device = next(network.parameters()).device
    with torch.inference_mode():
        empty = torch.zeros(1, spec.height, spec.width, dtype=torch.uint8, device=device)
        maps = network.eval()(empty)[1]
    network.train(training)
    return int(maps.shape[2]), int(maps.shape[3])


def scale_logits(network: Classifier, temperature: float) -> None:
    """Divide logits and maps by a temperature, and centre them over the classes.

    Both are done to the last layer's weights, so a map's mean stays its logit. Centring changes no
    probability, as softmax ignores what all logits share. It makes the positive class's map of two
    classes half of the difference of both, which is what decides.

    Raises:
        TypeError: The network does not end in a convolution.
    """
    last = [*network.maps.modules()][-1]
    if not isinstance(last, nn.Conv2d) or last.bias is None:
        raise TypeError(f"maps: got {type(last).__name__}, expected a convolution with a bias")
    with torch.no_grad():
        for part in (last.weight, last.bias):
            part.sub_(part.mean(dim=0, keepdim=True)).div_(temperature)
