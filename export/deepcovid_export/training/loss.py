"""The loss of a batch in which some images have hidden lungs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepcovid_export.data.images import NO_CLASS


def summed_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and the weight by which to divide it.

    The target of an image with hidden lungs (`NO_CLASS`) is the uniform distribution over the
    classes; its weight is 1.

    Args:
        logits: Of shape (N, classes).
        targets: Class indices or `NO_CLASS`, of shape (N,), int64.
        weights: Weights of the classes, of shape (classes,).
        smoothing: Label smoothing of the other images, 0 to 1.

    Returns:
        Sum of the losses and sum of the weights, scalars.
    """
    known = targets != NO_CLASS
    options: Any = {"reduction": "sum", "ignore_index": NO_CLASS, "label_smoothing": smoothing}
    loss = nn.functional.cross_entropy(logits, targets, weights, **options)
    uniform = -logits[~known].log_softmax(dim=1).mean(dim=1).sum()
    return loss + uniform, weights[targets[known]].sum() + (~known).sum()
