"""The optimiser and the schedule of its learning rate."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from deepcovid_edge.errors import UsageError
from deepcovid_export.recipe import FitSettings


def build_optimiser(network: nn.Module, fit: FitSettings) -> Optimizer:
    """The recipe's optimiser over all weights that are not frozen."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    rate = learning_rate(fit)
    if fit.optimiser == "sgd":
        return SGD(weights, lr=rate, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = Adam if fit.optimiser == "adam" else AdamW
    return kind(weights, lr=rate, weight_decay=fit.weight_decay)


def build_schedule(optimiser: Optimizer, fit: FitSettings, steps: int) -> LRScheduler:
    """The recipe's schedule, over all steps of the run."""
    if fit.schedule == "constant":
        return ConstantLR(optimiser, factor=1.0)
    # A warm-up of exactly one step would be divided by its length less one.
    warm_up = fit.warm_up * (1 + 1e-6) if fit.warm_up * steps == 1 else fit.warm_up
    return OneCycleLR(
        optimiser,
        max_lr=learning_rate(fit),
        total_steps=steps,
        pct_start=warm_up,
        cycle_momentum=fit.optimiser != "sgd",  # its momentum is the recipe's
    )


def learning_rate(fit: FitSettings) -> float:
    """The learning rate as a number.

    Raises:
        UsageError: It is `find`, which was not replaced by a number.
    """
    if fit.learning_rate == "find":
        raise UsageError("fit.learning_rate: got 'find', expected a number: find it first")
    return fit.learning_rate
