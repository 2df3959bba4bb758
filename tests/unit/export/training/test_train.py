"""What moves the weights: optimisers, schedules, frozen layers, rare classes, the range test."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from drawn_once import drawn_phantom
from torch import nn

from deepcovid_edge.cli.main import run as main
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import DataError, UsageError
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import InputSpec
from deepcovid_export.data.balance import images_of_an_epoch, loss_weights, unknown_sources
from deepcovid_export.data.images import TrainingData
from deepcovid_export.data.training_set import ImageDataset
from deepcovid_export.recipe import FindSettings, FitSettings, Recipe, load_recipe
from deepcovid_export.training.lr_finder import CURVE_NAME, RangeTest, find_learning_rate, suggest
from deepcovid_export.training.optimisers import build_optimiser, build_schedule, learning_rate
from deepcovid_export.training.processes import Processes, check_device
from deepcovid_export.training.train import RunSettings, Training

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = load_recipe("paper_squeezenet1_1")


def named_images(counts: dict[str, int]) -> list[LabelledImage]:
    return [
        LabelledImage(Path(f"{label}{number}.png"), label)
        for label, count in counts.items()
        for number in range(count)
    ]


def small_recipe(**fit: Any) -> Recipe:
    settings = {"epochs": 1, "batch_size": 4, "precision": "fp32", "start": "scratch", **fit}
    return Recipe(
        "small",
        "squeezenet1_1",
        "covid",
        {"non": ["normal"], "covid": ["covid"]},
        input=InputSpec(64, 64),
        fit=FitSettings(**settings),
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Eight images to fit on and four to choose on; positives are brighter."""
    folder = tmp_path_factory.mktemp("images")
    drawn = []
    for seed in range(12):
        label = ("normal", "covid")[seed % 2]
        pixels = drawn_phantom(seed, opacities=6 * (seed % 2))[::8, ::8]
        tone = 1.0 if seed % 2 else 0.4
        path = folder / f"{seed}.png"
        save_phantom((pixels * tone).astype(np.uint8), path)
        drawn.append(LabelledImage(path, label))
    return TrainingData(drawn[:8], drawn[8:], {})


def started(recipe: Recipe, images: TrainingData, folder: Path) -> Training:
    return Training(recipe, images, RunSettings(folder, workers=0))


def test_the_papers_84_positive_images_become_420() -> None:
    images = named_images({"non": 2000, "covid": 84})
    epoch = images_of_an_epoch(images, PAPER)
    assert Counter(image.label for image in epoch) == {"non": 2000, "covid": 420}
    assert Counter(Counter(epoch).values()) == {1: 2000, 5: 84}
    assert epoch[: len(images)] == images


def test_upsampling_without_numbers_makes_all_classes_equally_frequent() -> None:
    recipe = replace(PAPER, fit=FitSettings(balance="upsample", seed=4))
    images = named_images({"non": 25, "covid": 10})
    epoch = images_of_an_epoch(images, recipe)
    assert Counter(image.label for image in epoch) == {"non": 25, "covid": 25}
    times = Counter(epoch)
    assert {times[image] for image in images if image.label == "covid"} == {2, 3}
    assert images_of_an_epoch(images, recipe) == epoch


def test_images_of_a_rare_source_are_drawn_again_and_count_in_the_weights() -> None:
    images = [
        *named_images({"non": 6}),
        *(
            replace(image, source="ours (web.org) of all")
            for image in named_images({"non": 2, "covid": 4})
        ),
    ]
    recipe = replace(PAPER, fit=FitSettings(repeat_sources={"web.org": 3, "nowhere": 9}))
    assert unknown_sources(images, recipe) == ["nowhere"]
    epoch = images_of_an_epoch(images, recipe)
    assert epoch[: len(images)] == images
    assert Counter(image.source for image in epoch) == {"": 6, images[-1].source: 18}
    fit, _ = loss_weights(images, recipe)
    assert fit.tolist() == [1.0, 1.0]  # 12 of each class are drawn


def test_an_image_that_is_drawn_again_is_changed_differently(images: TrainingData) -> None:
    recipe = small_recipe(balance="upsample", repeat={"covid": 2})
    epoch = images_of_an_epoch(images.train, recipe)
    assert len(epoch) == 12
    again = ImageDataset(epoch, recipe, training=True)
    assert epoch[8] == epoch[1]
    assert not torch.equal(again[8][0], again[1][0])


@pytest.mark.parametrize(
    ("balance", "fitted", "chosen"),
    [
        ("weights", [0.625, 2.5], [0.625, 2.5]),
        ("upsample", [1.0, 1.0], [0.625, 2.5]),
        ("none", [1.0, 1.0], [1.0, 1.0]),
    ],
)
def test_weights_are_inverse_frequencies_where_nothing_else_evens_classes_out(
    balance: Any, fitted: list[float], chosen: list[float]
) -> None:
    recipe = replace(PAPER, fit=FitSettings(balance=balance))
    fit, val = loss_weights(named_images({"non": 8, "covid": 2}), recipe)
    assert (fit.tolist(), val.tolist()) == (fitted, chosen)


def test_a_soft_label_is_of_no_class_in_an_epoch_and_in_the_weights() -> None:
    counts = {"non": 8, "covid": 2, "atypical": 7}
    images = named_images(counts)
    recipe = replace(PAPER, soft_labels={"atypical": 0.3}, fit=FitSettings(balance="weights"))
    fit, val = loss_weights(images, recipe)
    assert fit.tolist() == val.tolist() == [0.625, 2.5]
    again = replace(recipe, fit=FitSettings(balance="upsample"))
    epoch = Counter(image.label for image in images_of_an_epoch(images, again))
    assert epoch == {"non": 8, "covid": 8, "atypical": 7}
    often = replace(recipe, fit=FitSettings(balance="upsample", repeat={"non": 2}))
    epoch = Counter(image.label for image in images_of_an_epoch(images, often))
    assert epoch == {"non": 16, "covid": 2, "atypical": 7}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_the_optimiser_is_the_recipes_and_moves_free_weights_alone(name: Any, kind: type) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    fit = FitSettings(optimiser=name, learning_rate=0.3, momentum=0.7, weight_decay=0.1)
    optimiser = build_optimiser(network, fit)
    assert type(optimiser) is kind
    (group,) = optimiser.param_groups
    assert group["params"] == [*network[1].parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
    if name == "sgd":
        assert group["momentum"] == 0.7


def test_schedules_stay_or_rise_to_the_peak_and_fall() -> None:
    def rates(**settings: Any) -> list[float]:
        fit = FitSettings(learning_rate=0.1, optimiser="sgd", **settings)
        optimiser = build_optimiser(nn.Linear(1, 1), fit)
        schedule = build_schedule(optimiser, fit, 20)
        seen = []
        for _ in range(20):
            seen.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return seen

    assert rates(schedule="constant") == [0.1] * 20
    cycle = rates(schedule="one_cycle", warm_up=0.4)
    assert cycle.index(max(cycle)) == 7  # step 8 of 20
    assert max(cycle) == pytest.approx(0.1)
    assert cycle[0] == pytest.approx(0.1 / 25)  # Smith and Topin 2018, as torch has it
    assert cycle[-1] < 1e-5


def test_a_step_moves_the_weights_no_further_than_clip_allows(
    images: TrainingData, tmp_path: Path
) -> None:
    recipe = small_recipe(
        optimiser="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip=1e-3,
        schedule="constant",
    )  # fmt: skip
    training = started(recipe, images, tmp_path)
    before = [weight.detach().clone() for weight in training.network.parameters()]
    training.fit_batch(next(iter(training.batches())))
    after = [weight.detach() for weight in training.network.parameters()]
    moved = [((now - was) ** 2).sum() for now, was in zip(after, before, strict=True)]
    distance = math.sqrt(float(sum(moved)))
    assert distance == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_an_epoch_changes_the_layers_that_the_recipe_names(
    layers: Any, images: TrainingData, tmp_path: Path
) -> None:
    recipe = replace(small_recipe(layers=layers, average=0.5), architecture="resnet18")
    training = started(recipe, images, tmp_path)
    before = {name: value.clone() for name, value in training.kept_network.state_dict().items()}
    training.run_epoch()
    changed = {
        name
        for name, value in training.kept_network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    features = {name for name in before if name.startswith("features.")}
    assert {"maps.0.weight", "maps.0.bias"} <= changed
    assert changed & features == (features if layers == "all" else set())


@pytest.mark.parametrize(
    ("architecture", "layers", "steps"),
    [("resnet18", "all", 1), ("resnet18", "last", 2), ("small_cnn", "all", 2)],
)
def test_a_last_batch_of_one_image_is_dropped_where_batches_are_normalised(
    architecture: str, layers: Any, steps: int, images: TrainingData, tmp_path: Path
) -> None:
    recipe = replace(
        small_recipe(batch_size=7, layers=layers),  # of eight images
        architecture=architecture,
        input=InputSpec(32, 32),  # ResNet18's last stage has one cell, which torch refuses
    )
    training = started(recipe, images, tmp_path)
    assert training.steps_per_epoch == steps
    done: list[None] = []
    training.run_epoch(lambda: done.append(None))
    assert len(done) == steps


def test_a_rate_that_is_still_to_be_found_is_refused(images: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fit\.learning_rate: got 'find', expected a number"):
        started(small_recipe(learning_rate="find"), images, tmp_path)


def test_a_range_test_suggests_a_tenth_of_the_rate_of_the_lowest_loss() -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert suggest(rates, [1.0, 0.8, 0.5, 3.0]) == 1e-3
    for flat in ([0.7, 0.7, 0.699, 2.8], [0.5, 0.8, 0.9, 1.0], []):
        with pytest.raises(DataError, match="the loss fell at none of"):
            suggest(rates[: len(flat)], flat)


def test_a_range_test_finds_a_rate_that_learns_and_its_curve_is_kept(
    images: TrainingData, tmp_path: Path
) -> None:
    recipe = replace(
        small_recipe(learning_rate="find"),
        architecture="small_cnn",
        find=FindSettings(lowest=1e-4, highest=10.0, steps=30),
    )
    steps = []
    run = RunSettings(tmp_path, workers=0)
    found = find_learning_rate(recipe, images, run, lambda: steps.append(1))
    assert found == find_learning_rate(recipe, images, run)  # the same seed, the same curve
    assert len(found.learning_rates) == len(found.losses) <= len(steps) <= 25
    growth = np.diff(np.log(found.learning_rates))
    assert np.allclose(growth, growth[0])
    lowest = found.learning_rates[int(np.argmin(found.losses))]
    assert found.suggestion == pytest.approx(lowest / 10, rel=0.05)
    path = found.write(tmp_path)
    assert path.name == CURVE_NAME
    assert {"rule", "suggestion"} < set(json.loads(path.read_text()))
    assert RangeTest.read(tmp_path) == found
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        RangeTest.read(tmp_path)


def test_a_batch_is_shared_out_evenly_or_not_at_all() -> None:
    assert Processes(1, 3).share_of(12) == 4
    with pytest.raises(UsageError, match=r"got 20, expected a multiple of the 3 .*batch_size=21"):
        Processes(0, 3).share_of(20)


def test_the_loss_of_a_step_is_torchs_own_weighted_mean(
    images: TrainingData, tmp_path: Path
) -> None:
    training = started(small_recipe(label_smoothing=0.1), images, tmp_path)
    batch = next(iter(training.batches()))
    with torch.random.fork_rng():
        logits, _ = training.network(batch.pixels)
        expected = nn.functional.cross_entropy(
            logits, batch.target, training.class_weights, label_smoothing=0.1
        )
    assert training.fit_batch(batch) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_run_that_never_had_a_finite_loss_says_so(images: TrainingData, tmp_path: Path) -> None:
    recipe = small_recipe(optimiser="sgd", learning_rate=1e30, schedule="constant")
    training = started(recipe, images, tmp_path)
    while not training.finished:
        training.run_epoch()
    with pytest.raises(UsageError, match=r"fit\.learning_rate: got 1e\+30, .* set a lower rate"):
        training.finish()
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("device", ["xyz", "meta", "mps", "", "cpu:0", "cuda:", "cuda:-1", "CPU"])
def test_a_device_of_another_kind_is_refused_before_anything_is_written(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path), "--device", device, "-o", str(tmp_path / "run")]) == 2
    assert f"--device: got {device!r}, expected cpu, cuda or cuda:N" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_gpu_beyond_those_that_torch_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        check_device(device)
    with pytest.raises(UsageError, match="got cuda:2, but torch sees cuda:0, cuda:1"):
        check_device("cuda:2")


def test_one_cycle_leaves_the_momentum_of_sgd_to_the_recipe() -> None:
    fit = FitSettings(optimiser="sgd", learning_rate=0.1, momentum=0.3, schedule="one_cycle")
    optimiser = build_optimiser(nn.Linear(2, 2), fit)
    schedule = build_schedule(optimiser, fit, 10)
    for _ in range(5):
        optimiser.step()
        schedule.step()
        assert optimiser.param_groups[0]["momentum"] == 0.3


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_one_cycle_takes_any_number_of_steps(steps: int) -> None:
    fit = FitSettings(schedule="one_cycle", warm_up=0.2)
    optimiser = build_optimiser(nn.Linear(2, 2), fit)
    schedule = build_schedule(optimiser, fit, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    peak = learning_rate(fit)
    assert max(rates) <= peak * (1 + 1e-9)
    assert rates[-1] == pytest.approx(peak / 25 / 10_000)  # as torch ends a cycle
    if steps >= 5:  # fewer have no warm-up of a whole step
        assert rates[0] == pytest.approx(peak / 25)
        assert max(rates) == rates[1] > 0.8 * peak
        assert rates[1:] == sorted(rates[1:], reverse=True)
