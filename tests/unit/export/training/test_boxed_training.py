"""Training with boxes, groups and soft labels: the losses, the small epochs, the temperature."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs extra export")

from torch import nn

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import ModelFileError, UsageError
from deepcovid_edge.manifest import InputSpec
from deepcovid_export.data.images import TrainingData
from deepcovid_export.data.training_set import NO_CLASS
from deepcovid_export.networks import build_network, map_shape, scale_logits
from deepcovid_export.networks.checkpoint import load_checkpoint
from deepcovid_export.recipe import (
    AugmentSettings,
    DataSettings,
    FitSettings,
    ImageGroup,
    Recipe,
)
from deepcovid_export.training.loss import map_loss, summed_loss
from deepcovid_export.training.temperature import fit_temperature
from deepcovid_export.training.train import STATE_NAME, RunSettings, Training, _operating_point

pytestmark = pytest.mark.usefixtures("one_thread")

FIT = FitSettings(
    epochs=2, batch_size=6, images=12, precision="fp32", start="scratch", average=0.5,
    balance="none", map_weight=0.5, map_offset=1.0, small_epochs=1, learning_rate=2e-3,
)  # fmt: skip
RECIPE = Recipe(
    *("boxed", "squeezenet1_1", "covid", {"non": ["clear"], "covid": ["covid"]}),
    soft_labels={"atypical": 0.3},
    sensitivity=0.9,
    temperature=True,
    data=DataSettings(
        groups=(
            ImageGroup("hazy", ("covid",), "", 0.4),
            ImageGroup("clear", ("clear",), "", 0.4),
            ImageGroup("soft", ("atypical",), "", 0.2),
        )
    ),
    input=InputSpec(84, 84),
    fit=FIT,
    augment=AugmentSettings(square=True, zoom=0.1, shift=0.05, border=True, soften=0.5, hide=0.1),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Dark fields; what is not clear has a bright square, and a box around it."""
    folder, made = tmp_path_factory.mktemp("images"), []
    for number in range(24):
        label = ("covid", "clear", "atypical" if number < 12 else "covid", "clear")[number % 4]
        draw = np.random.default_rng(number)
        pixels = draw.integers(30, 80, (120, 130), dtype=np.uint8)
        left, top = draw.uniform(0.1, 0.6, 2)
        boxes = () if label == "clear" else ((float(left), float(top), 0.3, 0.3),)
        if boxes:
            pixels[int(top * 120) : int(top * 120) + 36, int(left * 130) : int(left * 130) + 39] = (
                230
            )
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), pixels)
        made.append(LabelledImage(path, label, source="hospital", boxes=boxes))
    return TrainingData(made[:12], made[12:], {})


def test_soft_labels_pull_to_their_probability() -> None:
    soft, likely = torch.tensor([NO_CLASS]), torch.tensor([[0.7, 0.3]])
    losses = {
        share: float(
            summed_loss(
                torch.tensor([[math.log(1 - share), math.log(share)]]),
                soft, likely, torch.ones(2), 0.0,
            )[0]
        )
        for share in (0.1, 0.2, 0.3, 0.4, 0.5)
    }  # fmt: skip
    assert min(losses, key=lambda share: losses[share]) == 0.3


def test_the_map_loss_is_torchs_own_on_the_difference_and_skips_what_nobody_drew() -> None:
    maps = torch.randn(3, 2, 4, 4, generator=torch.manual_seed(1))
    grids = torch.rand(3, 4, 4)
    grids[1] = torch.nan
    loss, count = map_loss(maps, grids, 1, FIT)
    kept = [0, 2]
    expected = nn.functional.binary_cross_entropy_with_logits(
        (maps[kept, 1] - maps[kept, 0]) - 1.0, grids[kept], pos_weight=torch.tensor(2.0)
    )
    assert int(count) == 2
    torch.testing.assert_close(loss / count, expected)
    nothing, none = map_loss(maps, torch.full_like(grids, torch.nan), 1, FIT)
    assert (float(nothing), int(none)) == (0.0, 0)


@pytest.mark.slow
def test_a_run_learns_where_the_boxes_are_and_first_on_smaller_images(
    images: TrainingData, tmp_path: Path
) -> None:
    fit = replace(FIT, epochs=14, images=12, small_epochs=7)
    training = Training(replace(RECIPE, fit=fit), images, RunSettings(tmp_path, workers=0))
    assert next(iter(training.batches())).pixels.shape[1:] == (60, 60)
    before = _map_figure(training, images)
    while not training.finished:
        training.run_epoch()
    training.epoch = 13
    assert next(iter(training.batches())).pixels.shape[1:] == (84, 84)
    after = _map_figure(training, images)
    assert after > before + 0.5


def _map_figure(training: Training, images: TrainingData) -> float:
    """How much higher the difference map is in boxes than beside them, in spreads of the map."""
    from deepcovid_edge.imaging.prepare import prepare
    from deepcovid_edge.imaging.reading import read_radiograph
    from deepcovid_export.evaluation.boxes import cells_of, mask_of

    network, spec = training.network.eval(), training.recipe.input
    found = []
    for image in (it for it in images.train if it.boxes):
        whole = read_radiograph(image.path)
        cells = cells_of(mask_of(image.boxes, whole.pixels.shape, spec), map_shape(network, spec))
        with torch.inference_mode():
            maps = network(torch.from_numpy(prepare(whole, spec))[None])[1][0]
        values = (maps[1] - maps[0]).numpy()
        inside = cells > 0.5
        if inside.any():
            gap = values[inside].mean() - values[cells < 0.1].mean()
            found.append(gap / (values.std() + 1e-9))
    return float(np.mean(found))


def test_a_killed_run_ends_as_one_that_was_not(images: TrainingData, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    one = Training(RECIPE, images, RunSettings(whole, workers=0))
    one.run_epoch()
    one.run_epoch()
    first = Training(RECIPE, images, RunSettings(parts, workers=0))
    first.run_epoch()
    again = Training(RECIPE, images, RunSettings(parts, workers=0, resume=True))
    again.restore()
    again.run_epoch()
    for name, value in one.kept_network.state_dict().items():
        assert torch.equal(value, again.kept_network.state_dict()[name]), name


def test_a_run_continues_only_with_its_own_classes_boxes_and_sources(
    images: TrainingData, tmp_path: Path
) -> None:
    Training(RECIPE, images, RunSettings(tmp_path, workers=0)).save()

    def resumed(recipe: Recipe, data: TrainingData) -> None:
        Training(recipe, data, RunSettings(tmp_path, workers=0, resume=True)).restore()

    resumed(RECIPE, images)
    turned = replace(RECIPE, classes=dict(reversed(RECIPE.classes.items())))
    assert turned == RECIPE  # to Python, which does not compare the order of a dictionary
    with pytest.raises(UsageError, match="was made by another recipe"):
        resumed(turned, images)
    first, *others = images.train
    for other in (replace(first, boxes=((0.1, 0.1, 0.2, 0.2),)), replace(first, source="web")):
        with pytest.raises(UsageError, match="was made of images with other sources or boxes"):
            resumed(RECIPE, replace(images, train=[other, *others]))


def test_a_state_that_does_not_say_what_it_is_made_of_is_not_continued(
    images: TrainingData, tmp_path: Path
) -> None:
    training = Training(RECIPE, images, RunSettings(tmp_path, workers=0))
    training.save()
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    del state["images"]
    torch.save(state, tmp_path / STATE_NAME)
    with pytest.raises(ModelFileError, match="cannot be read; start in another folder"):
        training.restore()


def test_the_temperature_is_in_the_weights_and_a_maps_mean_is_still_its_logit(
    images: TrainingData, tmp_path: Path
) -> None:
    training = Training(RECIPE, images, RunSettings(tmp_path, workers=0))
    training.run_epoch()
    network, manifest = load_checkpoint(training.finish())
    pixels = torch.randint(0, 255, (2, 84, 84), dtype=torch.uint8)
    logits, maps = network(pixels)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), logits)
    torch.testing.assert_close(maps[:, 0], -maps[:, 1])  # centred over two classes
    assert manifest.training["temperature"] == training.temperature
    assert manifest.threshold_origin["by_source"].keys() <= {"hospital"}
    assert manifest.known_labels == {"non", "clear", "covid"}


def test_a_threshold_of_the_worst_source_says_what_is_expected_and_of_which_sources(
    images: TrainingData, tmp_path: Path
) -> None:
    """6 positive images promise 6 / 7: enough for 0.8, too few for 0.9."""
    positive = np.array([image.label == "covid" for image in images.val])
    scores = np.where(positive, 0.8, 0.2)
    rules = {}
    for asked in (0.8, 0.9):
        recipe = replace(RECIPE, sensitivity=asked)
        training = Training(recipe, images, RunSettings(tmp_path, workers=0))
        _, origin = _operating_point(training, scores, positive)
        assert origin["expected_sensitivity"] == round(6 / 7, 4)
        rules[asked] = origin["rule"]
    assert "finds 80% of new positive images" in rules[0.8]
    assert rules[0.8].endswith(", at each of hospital; the lowest is taken")
    assert "finds 85.7% of new positive images" in rules[0.9]
    assert rules[0.9].endswith(", over all sources together, as none has enough images")


def test_scaling_changes_no_order_and_divides_the_log_odds() -> None:
    torch.manual_seed(2)
    network = build_network("squeezenet1_1", 3).eval()
    pixels = torch.randint(0, 255, (4, 64, 64), dtype=torch.uint8)
    before = network(pixels)[0].detach()
    scale_logits(network, 2.0)
    after = network(pixels)[0].detach()
    torch.testing.assert_close(
        after, (before - before.mean(dim=1, keepdim=True)) / 2, atol=1e-5, rtol=1e-4
    )


def test_a_temperature_undoes_overconfidence() -> None:
    draw = torch.manual_seed(3)
    honest = torch.randn(4000, 2, generator=draw)
    truth = torch.multinomial(honest.softmax(dim=1), 1, generator=draw)[:, 0]
    assert fit_temperature(3 * honest, truth, torch.ones(4000)) == pytest.approx(3, rel=0.1)
