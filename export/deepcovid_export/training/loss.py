"""The losses of a batch: of the classes, and of the activation map against readers' boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepcovid_export.data.training_set import NO_CLASS
from deepcovid_export.recipe import FitSettings


def summed_loss(
    logits: Tensor, targets: Tensor, likely: Tensor, weights: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and the weight by which to divide it.

    The target of an image without a class (`NO_CLASS`: its lungs are hidden, or its label is a soft
    one) is a distribution over the classes; its weight is 1.

    Args:
        logits: Of shape (N, classes).
        targets: Class indices or `NO_CLASS`, of shape (N,), int64.
        likely: Distributions over the classes, of shape (N, classes); read where there is no class.
        weights: Weights of the classes, of shape (classes,).
        smoothing: Label smoothing of the images with a class, 0 to 1.

    Returns:
        Sum of the losses and sum of the weights, scalars.
    """
    known = targets != NO_CLASS
    options: Any = {"reduction": "sum", "ignore_index": NO_CLASS, "label_smoothing": smoothing}
    loss = nn.functional.cross_entropy(logits, targets, weights, **options)
    unsure = -(likely * logits.log_softmax(dim=1))[~known].sum()
    return loss + unsure, weights[targets[known]].sum() + (~known).sum()


def map_loss(maps: Tensor, grids: Tensor, positive: int, fit: FitSettings) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the positive class's map against boxes, and its number of images.

    What is compared is the logit of a cell, less `fit.map_offset`: the positive class's value less
    the others' log-sum-exp, which for two classes is the difference of the maps.

    Args:
        maps: Activation maps, of shape (N, classes, h, w).
        grids: Shares of the cells that lie in a box, of shape (N, h, w); NaN for an image that
            nobody drew boxes on.
        positive: Index of the positive class.
        fit: Offset, and weight of what lies in a box.

    Returns:
        Sum over the images of the mean over the cells, and the number of images, scalars.
    """
    drawn = ~grids.isnan().any(dim=2).any(dim=1)
    others = [index for index in range(maps.shape[1]) if index != positive]
    cells = maps[:, positive] - maps[:, others].logsumexp(dim=1) - fit.map_offset
    loss = nn.functional.binary_cross_entropy_with_logits(
        cells[drawn],
        grids[drawn],
        pos_weight=cells.new_tensor(fit.map_positive),
        reduction="none",
    )
    return loss.mean(dim=(1, 2)).sum(), drawn.sum()
