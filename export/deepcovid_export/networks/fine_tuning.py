"""Which layers a training run may change."""

from __future__ import annotations

from deepcovid_edge.errors import UsageError
from deepcovid_export.networks.classifier import Classifier

LAYERS = ("last", "last_stage", "all")
"""Last layer alone (Minaee et al. 2020, section 3.2), last stage and last layer, or all."""


def train_only(network: Classifier, layers: str) -> None:
    """Freeze what is not to be trained.

    A frozen parameter gets no gradient, so no optimiser changes it. Frozen batch normalisation
    stays in evaluation mode through every later `network.train()`.

    Args:
        network: The network; an earlier call has no effect on this one.
        layers: `last` trains the class activation maps; `last_stage` also the last stage of
            the features (SqueezeNet fire9, ResNet layer4, DenseNet denseblock4 and norm5, the small
            CNN's dense layers); `all` trains everything.

    Raises:
        UsageError: There is no such choice.
    """
    if layers not in LAYERS:
        raise UsageError(f"layers: got {layers!r}, expected {', '.join(LAYERS[:-1])} or all")
    for name, child in network.features.named_children():
        child.requires_grad_(
            layers == "all" or (layers == "last_stage" and name in network.last_stage)
        )
    network.maps.requires_grad_(True)
    network.train(network.training)
