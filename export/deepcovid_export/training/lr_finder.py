"""The learning-rate range test: at which rates does the loss fall, and at which does it grow?

Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3; the
rate grows by a constant factor a step, as in fastai (Howard and Gugger 2020, arXiv 2002.04688).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deepcovid_edge.errors import DataError
from deepcovid_export.data.images import TrainingData
from deepcovid_export.data.training_set import Sample
from deepcovid_export.recipe import Recipe
from deepcovid_export.training.train import RunSettings, Training

CURVE_NAME = "learning_rate.json"
RULE = "a tenth of the learning rate at which the smoothed loss is lowest"
SMOOTHING = 0.9
"""Decay of the moving average of the loss, a step."""
FALLEN = 0.98
"""The loss has fallen if the lowest smoothed loss is at most this share of the first."""
GROWN = 4.0
"""The test ends where the smoothed loss is this many times the lowest."""


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        learning_rates: Rate of each step.
        losses: Smoothed training loss of each step.
        suggestion: Learning rate to train with.
        rule: How the suggestion follows from the curve.
    """

    learning_rates: list[float]
    losses: list[float]
    suggestion: float
    rule: str = RULE

    def write(self, folder: Path) -> Path:
        """Write the curve as JSON into a run's folder."""
        path = folder / CURVE_NAME
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path) -> RangeTest:
        """Read the curve of a run.

        Raises:
            DataError: There is no curve, or it cannot be read.
        """
        path = folder / CURVE_NAME
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: cannot be read; start in another folder") from error


def find_learning_rate(
    recipe: Recipe,
    data: TrainingData,
    run: RunSettings,
    progress: Callable[[], object] = lambda: None,
) -> RangeTest:
    """Train for a few steps at a growing learning rate; the weights are not kept.

    Args:
        recipe: The recipe; its `find` has first and last rate and the number of steps.
        data: The images.
        run: Device and first weights.
        progress: Called after every step.

    Raises:
        DataError: The loss did not fall at any rate.
    """
    fit = replace(recipe.fit, learning_rate=recipe.find.lowest, schedule="constant", average=0.0)
    training = Training(replace(recipe, fit=fit), data, run)
    rates = _rates(recipe)
    tried: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, (rate, batch) in enumerate(zip(rates, _endless(training), strict=False), start=1):
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        average = SMOOTHING * average + (1 - SMOOTHING) * training.fit_batch(batch)
        smoothed = average / (1 - SMOOTHING**step)
        progress()
        if not math.isfinite(smoothed) or smoothed > GROWN * min(losses, default=smoothed):
            break
        tried.append(rate)
        losses.append(smoothed)
    return RangeTest(tried, losses, suggest(tried, losses))


def suggest(learning_rates: list[float], losses: list[float]) -> float:
    """The learning rate that a curve suggests, by `RULE`.

    Raises:
        DataError: The loss did not fall.
    """
    lowest = losses.index(min(losses)) if losses else 0
    if lowest == 0 or losses[lowest] > FALLEN * losses[0]:
        raise DataError(
            f"fit.learning_rate: the loss fell at none of {len(losses)} rates: set a number with "
            "--set fit.learning_rate=, or try other rates with --set find.lowest="
        )
    return float(f"{learning_rates[lowest] / 10:.2g}")


def _rates(recipe: Recipe) -> list[float]:
    find = recipe.find
    growth = (find.highest / find.lowest) ** (1 / (find.steps - 1))
    return [find.lowest * growth**step for step in range(find.steps)]


def _endless(training: Training) -> Iterator[Sample]:
    while True:
        yield from training.batches()
        training.epoch += 1
