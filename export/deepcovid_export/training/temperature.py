"""One factor that calibrates probabilities: temperature scaling (Guo et al. 2017, ICML, 4.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

_LOWEST, _HIGHEST, _STEPS = 0.1, 10.0, 921
"""Temperatures that are tried, 0.5 % apart."""


def fit_temperature(logits: Tensor, targets: Tensor, weights: Tensor) -> float:
    """The temperature with the lowest weighted log loss; logits are to be divided by it.

    Args:
        logits: Of validation images, of shape (N, classes).
        targets: Class indices, of shape (N,).
        weights: Weights of the images, of shape (N,).
    """
    tried = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    losses = [_loss(logits / float(one), targets, weights) for one in tried]
    return float(tried[int(np.argmin(losses))])


def _loss(logits: Tensor, targets: Tensor, weights: Tensor) -> float:
    each = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    return float((each * weights).sum() / torch.sum(weights))
