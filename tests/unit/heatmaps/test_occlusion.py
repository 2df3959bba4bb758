"""Occlusion: the windows, the means, the budget, and equality with captum."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_once import drawn_phantom
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, Inference, softmax
from deepcovid_edge.decision.record import DECIMALS
from deepcovid_edge.errors import UsageError
from deepcovid_edge.heatmaps import occlusion
from deepcovid_edge.heatmaps.coarse_to_fine import Refinement
from deepcovid_edge.heatmaps.occlusion import BudgetError, Occluder, Occlusion
from deepcovid_edge.heatmaps.windows import BASELINES, OcclusionSettings, WindowGrid, occluded
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_edge.models import find_model

quick = settings(max_examples=60)


@pytest.fixture(scope="module")
def phantom() -> NDArray[np.uint8]:
    import cv2

    drawn: NDArray[Any] = cv2.resize(drawn_phantom(3), (224, 224), interpolation=cv2.INTER_AREA)
    return drawn


@pytest.fixture(scope="module")
def model() -> Iterator[Backend]:
    with load_backend(find_model("squeezenet1_1")) as backend:
        yield backend


def explain(backend: Backend, image: NDArray[np.uint8], **chosen: Any) -> Occlusion:
    with Occluder(backend, OcclusionSettings(**chosen)) as occluder:
        return occluder.explain(image)


class Counting:
    """A model whose positive logit is the sum of grey levels; it counts what it classifies."""

    name, sha256, warnings, on_cpu = "counting", "0" * 64, (), True

    def __init__(self, size: int = 32, *, seconds: float = 0.0) -> None:
        spec = InputSpec(height=size, width=size)
        self.manifest = ModelManifest("net", "none", ("non", "covid"), "covid", 0.5, input=spec)
        self.classified: list[int] = []

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        self.classified.append(len(batch))
        total = batch.reshape(len(batch), -1).sum(axis=1).astype(np.float32) / 255
        return Inference(np.stack([np.zeros_like(total), total], axis=1))


@quick
@given(
    length=st.integers(4, 60), window=st.integers(1, 40), stride=st.integers(1, 40), data=st.data()
)
def test_every_pixel_is_hidden_and_a_constant_drop_stays_what_it_is(
    length: int, window: int, stride: int, data: st.DataObject
) -> None:
    width = data.draw(st.integers(4, 60))
    assume(stride <= window <= min(length, width))
    grid = WindowGrid.over(length, width, OcclusionSettings(window=window, stride=stride))
    covered = np.zeros((length, width), int)
    total = np.zeros((length, width))
    values = np.random.default_rng(0).normal(size=grid.shape)
    for ((top, bottom), (left, right)), value in zip(grid.boxes, values.ravel(), strict=True):
        covered[top:bottom, left:right] += 1
        total[top:bottom, left:right] += value
    assert covered.min() >= 1
    np.testing.assert_allclose(grid.spread(values), total / covered, atol=1e-6)
    chosen = values > 0
    inside = grid.union(chosen)
    for index, ((top, bottom), (left, right)) in enumerate(grid.boxes):
        if chosen.ravel()[index]:
            assert inside[top:bottom, left:right].all()
    assert inside.any() == chosen.any()


@pytest.mark.parametrize(("window", "stride", "baseline"), [(64, 32, "black"), (75, 50, "mean")])
def test_occlusion_equals_captum(
    model: Backend, phantom: NDArray[np.uint8], window: int, stride: int, baseline: str
) -> None:
    """The same windows, also where the last one is cut off, and the same mean over them."""
    torch = pytest.importorskip("torch", reason="the workstation side needs extra export")
    attr = pytest.importorskip("captum.attr", reason="captum is in extra dev")
    stats = pytest.importorskip("scipy.stats", reason="needs extra export")
    network = shipped_in_torch()
    shown = 0 if baseline == "black" else round(float(phantom.mean()))
    with torch.inference_mode():
        theirs = (
            attr.Occlusion(lambda images: network(images)[0])
            .attribute(
                torch.from_numpy(phantom)[None].float(),
                sliding_window_shapes=(window, window),
                strides=stride,
                baselines=shown,
                target=model.manifest.positive_index,
                perturbations_per_eval=8,
            )[0]
            .numpy()
        )
    for incremental in (True, False):
        chosen = {"window": window, "stride": stride, "baseline": baseline}
        found = explain(model, phantom, **chosen, incremental=incremental)
        ours = found.grid.spread(found.logit_drop)
        assert stats.spearmanr(ours.ravel(), theirs.ravel()).statistic >= 0.999
        assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(theirs)


def shipped_in_torch() -> Any:
    """The shipped SqueezeNet with its own weights, in torch; images may be floating point."""
    import onnx
    import torch

    from deepcovid_export.networks import build_network

    network = build_network("squeezenet1_1", 2).eval()
    stored = onnx.load(find_model("squeezenet1_1")).graph.initializer
    weights = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in stored}
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network


def test_all_ways_to_hide_are_alike_with_and_without_parts(
    model: Backend, phantom: NDArray[np.uint8]
) -> None:
    for baseline in BASELINES:
        chosen: dict[str, Any] = {"window": 60, "stride": 45, "baseline": baseline}
        parts = explain(model, phantom, **chosen)
        whole = explain(model, phantom, **chosen, incremental=False)
        np.testing.assert_allclose(parts.logit_drop, whole.logit_drop, atol=1e-4)
        np.testing.assert_array_equal(parts.turned, whole.turned)


def test_baselines_show_what_they_say(phantom: NDArray[np.uint8]) -> None:
    black, mean, blurred = (
        occluded(phantom, OcclusionSettings(baseline=name)) for name in BASELINES
    )
    assert not black.any()
    assert set(mean.ravel()) == {round(float(phantom.mean()))}
    assert abs(float(blurred.mean()) - float(phantom.mean())) < 2
    assert np.abs(np.diff(blurred.astype(int), axis=0)).max() <= 8


def test_drops_are_those_of_the_hidden_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 9, (32, 32), dtype=np.uint8)
    counting = Counting()
    found = explain(counting, image, window=8, stride=8)  # type: ignore[arg-type]
    hidden = image.reshape(4, 8, 4, 8).sum(axis=(1, 3)) / 255
    np.testing.assert_allclose(found.logit_drop, hidden, atol=1e-4)
    whole = softmax(found.logits[None])[0, 1]
    without = softmax(np.stack([np.zeros(16), found.logits[1] - hidden.ravel()], axis=1))
    expected = whole - without[:, 1].reshape(4, 4)
    np.testing.assert_allclose(found.probability_drop, expected, atol=1e-5)
    assert not found.turned.any()
    assert sum(counting.classified) == 17, "each window once, and the image itself"
    assert max(counting.classified) == 8


def test_windows_that_turn_the_decision_are_told() -> None:
    image = np.zeros((32, 32), np.uint8)
    image[8:16, 16:24] = 255
    counting = Counting()
    with Occluder(counting, OcclusionSettings(8, 8), limits=[0.9]) as occluder:  # type: ignore[arg-type]
        turned = occluder.explain(image).turned
    assert list(zip(*np.nonzero(turned), strict=True)) == [(1, 2)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([0.8, 0.97], [(1, 2), (3, 3)]),  # positive becomes negative, or indeterminate
        ([0.8, 0.99], [(1, 2)]),  # indeterminate becomes negative, or stays so
        ([0.7, 0.99], []),
    ],
)
def test_any_change_of_the_decision_counts_where_there_is_an_indeterminate_range(
    limits: list[float], expected: list[tuple[int, int]]
) -> None:
    image = np.zeros((32, 32), np.uint8)
    image[8:16, 16:24], image[24:, 24:] = 12, 4  # logits of 3 and 1, from 0.98 to 0.73 and 0.95
    settings = OcclusionSettings(8, 8)
    with Occluder(Counting(), settings, limits=limits) as occluder:  # type: ignore[arg-type]
        found = occluder.explain(image)
    assert list(zip(*np.nonzero(found.turned), strict=True)) == expected


def test_a_budget_gives_the_whole_image_roughly_and_what_matters_exactly(
    model: Backend, phantom: NDArray[np.uint8]
) -> None:
    full = explain(model, phantom, window=32, stride=16)
    ample = explain(model, phantom, window=32, stride=16, budget_ms=60_000)
    assert ample.evaluated.all()
    np.testing.assert_allclose(ample.logit_drop, full.logit_drop, atol=1e-4)


def test_windows_that_the_budget_does_not_hold_turn_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every window would turn the decision; the budget holds the first pass alone."""
    counting = Counting()
    clock = SimpleNamespace(perf_counter=lambda: float(len(counting.classified)))
    monkeypatch.setattr(occlusion, "time", clock)  # a call takes a second
    chosen = OcclusionSettings(16, 8, budget_ms=2000)
    with Occluder(counting, chosen, limits=[0.97], workers=1) as occluder:  # type: ignore[arg-type]
        found = occluder.explain(np.ones((32, 32), np.uint8))  # 0.98 becomes 0.95
    assert found.evaluated.tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    np.testing.assert_array_equal(found.turned, found.evaluated)
    np.testing.assert_allclose(found.logit_drop, 256 / 255, atol=1e-4)


def test_a_decision_is_that_of_the_rounded_probability() -> None:
    """As in a record: one that lies below the limit by less than its last digit is on it."""
    image = np.zeros((32, 32), np.uint8)
    image[8:16, 16:24], image[24:, 24:] = 12, 4
    with Occluder(Counting(), OcclusionSettings(8, 8)) as occluder:  # type: ignore[arg-type]
        found = occluder.explain(image)
    hidden = softmax(found.logits[None])[0, 1] - found.probability_drop.astype(float)
    turned = []
    for limit in (np.round(hidden[1, 2], DECIMALS), np.round(hidden[1, 2], DECIMALS) + 1e-6):
        with Occluder(Counting(), OcclusionSettings(8, 8), limits=[limit]) as occluder:  # type: ignore[arg-type]
            turned.append(occluder.explain(image).turned[1, 2])
    assert turned == [False, True]


def test_a_budget_that_holds_no_first_pass_is_said_with_the_time_it_takes(
    model: Backend, phantom: NDArray[np.uint8]
) -> None:
    with pytest.raises(BudgetError, match=r"the first pass takes about \d+ ms") as caught:
        explain(model, phantom, budget_ms=0.01)
    assert caught.value.needed_ms > 0.01


@quick
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), halvings=st.integers(0, 3))
def test_refinement_ends_with_every_window_judged_once(
    rows: int, columns: int, halvings: int
) -> None:
    """A plane is interpolated without error, whatever was classified so far."""
    y, x = np.mgrid[0:rows, 0:columns]
    plane = np.stack([0.5 * x - 0.25 * y, 3.0 - x], axis=-1).astype(np.float32)
    refinement = Refinement((rows, columns), 1 << halvings, np.zeros(2, np.float32), 0)
    windows, classified = refinement.first_pass(), []
    while windows:
        classified += windows[:7]
        values = plane.reshape(-1, 2)[windows[:7]]
        refinement.add(windows[:7], values)
        windows = windows[7:] if windows[7:] and not classified[7:] else refinement.next()
        if refinement.evaluated.ravel()[refinement.first_pass()].all():
            np.testing.assert_allclose(refinement.estimate(), plane, atol=1e-4)
    assert sorted(classified) == list(range(rows * columns))


def test_refinement_goes_where_the_drop_is_largest_first() -> None:
    refinement = Refinement((9, 9), 4, np.array([0.0, 5.0], np.float32), 1)
    first = refinement.first_pass()
    assert first == [0, 4, 8, 36, 40, 44, 72, 76, 80]
    logits = np.full((9, 2), 5.0, np.float32)
    logits[8, 1] = 1.0  # hiding the last corner takes 4 of 5
    refinement.add(first, logits)
    rows, columns = np.unravel_index(refinement.next()[:3], (9, 9))
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(8, 6), (6, 8), (6, 6)}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"window": 0}, "window: got 0"),
        ({"stride": 0}, "stride: got 0"),
        ({"window": 8, "stride": 9}, "parts of the image would never be hidden"),
        ({"baseline": "white"}, "baseline: got 'white', expected one of black, mean, blurred"),
        ({"budget_ms": 0.0}, "budget: got 0 s, expected more than 0"),
        ({"budget_ms": float("nan")}, "budget: got nan s, expected more than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        OcclusionSettings(**chosen)


def test_a_window_larger_than_the_image_is_refused(model: Backend) -> None:
    with pytest.raises(UsageError, match="window: got 300, the network sees images of 224 x 224"):
        Occluder(model, OcclusionSettings(window=300, stride=8))


def test_parts_are_used_on_the_cpu_and_the_whole_network_where_they_cannot_be(
    model: Backend, phantom: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "infer", None)
    assert explain(model, phantom, window=112, stride=112).evaluated.all()
    counting = Counting()
    explain(counting, phantom[:32, :32], window=16, stride=16)  # type: ignore[arg-type]
    assert sum(counting.classified) == 1 + 4


def test_windows_of_several_images_share_calls() -> None:
    images = np.random.default_rng(1).integers(0, 9, (3, 32, 32), dtype=np.uint8)
    counting = Counting()
    with Occluder(counting, OcclusionSettings(12, 12)) as occluder:  # type: ignore[arg-type]
        together = occluder.explain_all(images)
        images_first, *windows = counting.classified
        assert images_first == 3
        assert sorted(windows) == [3, 8, 8, 8], "27 windows of three images in batches of 8"
        for image, found in zip(images, together, strict=True):
            alone = occluder.explain(image)
            np.testing.assert_array_equal(found.logit_drop, alone.logit_drop)
            np.testing.assert_array_equal(found.logits, alone.logits)


def test_several_images_in_parts_are_as_one_by_one(
    model: Backend, phantom: NDArray[np.uint8]
) -> None:
    images = np.stack([phantom, phantom[:, ::-1]])
    with Occluder(model, OcclusionSettings(64, 40)) as occluder:
        together = occluder.explain_all(images)
        for image, found in zip(images, together, strict=True):
            np.testing.assert_allclose(
                found.logit_drop, occluder.explain(image).logit_drop, atol=1e-4
            )
