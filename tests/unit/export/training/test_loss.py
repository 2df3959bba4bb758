"""The loss: torch's own where images have a class, uniform where they have none."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs extra export")

from deepcovid_export.data.training_set import NO_CLASS
from deepcovid_export.training.loss import summed_loss

WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
EVEN = torch.full((1, 3), 1 / 3)


def test_it_is_torch_s_weighted_mean_where_every_image_has_a_class() -> None:
    logits, targets = torch.randn(8, 3, generator=torch.manual_seed(1)), torch.arange(8) % 3
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(
            logits, targets, WEIGHTS, label_smoothing=smoothing
        )
        loss, weight = summed_loss(logits, targets, EVEN, WEIGHTS, smoothing)
        torch.testing.assert_close(loss / weight, expected)


def test_an_image_without_class_is_best_answered_evenly() -> None:
    nothing = torch.tensor([NO_CLASS])
    even, weight = summed_loss(torch.zeros(1, 3), nothing, EVEN, WEIGHTS, 0.0)
    torch.testing.assert_close(even, torch.tensor(3.0).log())
    assert float(weight) == 1
    sure, _ = summed_loss(torch.tensor([[4.0, 0.0, 0.0]]), nothing, EVEN, WEIGHTS, 0.0)
    assert sure > even


def test_images_with_and_without_class_add_up() -> None:
    logits = torch.randn(4, 3, generator=torch.manual_seed(2))
    targets = torch.tensor([2, NO_CLASS, 0, NO_CLASS])
    parts = [
        summed_loss(logits[place : place + 1], targets[place : place + 1], EVEN, WEIGHTS, 0.0)
        for place in range(4)
    ]
    loss, weight = summed_loss(logits, targets, EVEN, WEIGHTS, 0.0)
    torch.testing.assert_close(loss, sum(part[0] for part in parts))
    torch.testing.assert_close(weight, sum(part[1] for part in parts))
