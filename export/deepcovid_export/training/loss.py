"""The loss of a batch in which some images say nothing of their class."""

from __future__ import annotations

from torch import Tensor, nn

from deepcovid_export.data.images import NO_CLASS


def summed_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and the weight by which to divide it.

    An image of `NO_CLASS` (its lungs were hidden) asks for equal probabilities of all classes: its
    loss is the cross-entropy with the uniform distribution, and its weight is 1.

    Args:
        logits: Of shape (N, classes).
        targets: Class indices or `NO_CLASS`, of shape (N,), int64.
        weights: Weights of the classes, of shape (classes,).
        smoothing: Label smoothing of the other images, 0 to 1.

    Returns:
        Sum of the losses and sum of the weights, scalars.
    """
    told = targets != NO_CLASS
    loss = nn.functional.cross_entropy(
        logits,
        targets,
        weights,
        reduction="sum",
        ignore_index=NO_CLASS,
        label_smoothing=smoothing,
    )
    evenly = -logits[~told].log_softmax(dim=1).mean(dim=1).sum()
    return loss + evenly, weights[targets[told]].sum() + (~told).sum()
