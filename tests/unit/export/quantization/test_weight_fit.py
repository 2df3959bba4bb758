"""Weights fitted, then rounded: on the quantiser's grid, and with less harm to the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

import onnx
from onnx import helper, numpy_helper
from tiny_network import SPEC, fitted, graph, pixels, run, weights

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_export.quantization.calibration import ImageBatches
from deepcovid_export.quantization.int8_graph import STEPS, set_weights
from deepcovid_export.quantization.mixed_precision import Variant, VariantWriter
from deepcovid_export.quantization.weight_fit import fit_weights, on_grid

Array = NDArray[np.float64]


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def gram_of(inputs: int, seed: int) -> Array:
    """Of inputs that go together, as the pixels under a kernel do."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(0, 1, (4 * inputs, inputs // 4)) @ draw.normal(0, 1, (inputs // 4, inputs))
    seen = np.maximum(hidden + draw.normal(0, 0.3, hidden.shape), 0)
    gram: Array = seen.T @ seen / len(seen)
    return gram


def harm(change: Array, gram: Array) -> float:
    """Mean squared change of a layer's outputs."""
    return float(np.einsum("oi,ij,oj->", change, gram, change) / len(change))


def nearest(values: Array) -> Array:
    steps = np.abs(values).max(axis=1, keepdims=True) / 127
    rounded: Array = np.rint(values / steps) * steps
    return rounded


@pytest.mark.parametrize("inputs", [16, 144, 300])  # below, over and twice over a block
def test_rounding_stays_on_the_grid_and_harms_the_outputs_less(inputs: int) -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (12, inputs))
    gram = gram_of(inputs, seed=2)
    rounded = on_grid(kernel, gram, 127)
    steps = np.abs(kernel).max(axis=1, keepdims=True) / 127
    multiples = rounded / steps
    assert np.abs(multiples - np.rint(multiples)).max() < 1e-9
    assert np.allclose(np.abs(multiples).max(axis=1), 127)  # a quantiser finds the same steps
    assert np.allclose(nearest(rounded), rounded)
    assert harm(rounded - kernel, gram) < harm(nearest(kernel) - kernel, gram) / 3


def test_blocks_are_only_a_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, gram = np.random.default_rng(1).normal(0, 1, (5, 40)), gram_of(40, seed=3)
    whole = on_grid(kernel, gram, 127)
    monkeypatch.setattr("deepcovid_export.quantization.weight_fit._BLOCK", 7)
    assert np.allclose(on_grid(kernel, gram, 127), whole)


def test_inputs_that_are_never_there_leave_the_nearest_multiples() -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (4, 9))
    assert np.allclose(on_grid(kernel, np.zeros((9, 9)), 127), nearest(kernel))
    assert not on_grid(np.zeros((4, 9)), gram_of(9, seed=0)[:9, :9], 127).any()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_logits_come_nearer_to_the_networks_own(
    target: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(fitted(weights(), data))
    calibrated = VariantWriter(
        model,
        Variant("int8", target, "fp32"),
        ImageBatches(load_dataset(data, split="train"), SPEC),
    )
    images = pixels(load_dataset(data, split="val"))  # none that the weights were fitted on
    expected = run(model, images)
    with_fit = np.abs(run(calibrated.write(calibrated.layers), images) - expected).mean()
    monkeypatch.setattr(
        "deepcovid_export.quantization.mixed_precision.fit_weights", lambda model, *_: model
    )
    without = np.abs(run(calibrated.write(calibrated.layers), images) - expected).mean()
    assert with_fit < 0.7 * without


class Watched:
    """The constants that `VariantWriter.write` fits: as they were, and as they are."""

    def __init__(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = ImageBatches(load_dataset(data, split="train"), SPEC)
        self.before: dict[str, NDArray[Any]] = {}
        self.after: dict[str, NDArray[Any]] = {}
        monkeypatch.setattr(
            "deepcovid_export.quantization.mixed_precision.fit_weights", self._remember
        )

    def _remember(self, model: onnx.ModelProto, *arguments: Any) -> onnx.ModelProto:
        fit = fit_weights(model, *arguments)
        self.before, self.after = constants_of(model), constants_of(fit)
        return fit

    def lowering(self, model: onnx.ModelProto, target: str) -> VariantWriter:
        return VariantWriter(model, Variant("int8", target, "fp32"), self.images)


@pytest.fixture
def watched(data: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(data, monkeypatch)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_files_hold_the_fitted_weights_to_the_last_step(
    target: str, data: Path, watched: Watched
) -> None:
    lowering = watched.lowering(graph(fitted(weights(), data)), target)
    layers = [name for name in lowering.layers if name != "squeeze"]
    quantised = lowering.write(layers)
    expected, stored = watched.after, constants_of(quantised)
    for name in layers:
        kept, steps = (stored[f"{name}.weight_{part}"] for part in ("quantized", "scale"))
        assert (np.abs(kept).max(axis=(1, 2, 3)) == STEPS[target]).all()
        restored = kept.astype(np.float32) * steps[:, None, None, None]
        np.testing.assert_allclose(restored, expected[f"{name}.weight"], rtol=1e-5)
    assert not np.array_equal(expected["main1.weight"], watched.before["main1.weight"])
    assert lowering.write(layers).SerializeToString() == quantised.SerializeToString()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_weights_that_are_set_are_those_that_quantising_gives(
    target: str, data: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk through the layers sets weights in the graph; the file is quantised again."""
    walked: list[onnx.ModelProto] = []

    def noted(model: onnx.ModelProto, *arguments: Any) -> None:
        set_weights(model, *arguments)
        walked.append(model)

    monkeypatch.setattr("deepcovid_export.quantization.weight_fit.set_weights", noted)
    lowering = watched.lowering(graph(fitted(weights(), data)), target)
    again, walk = constants_of(lowering.write(lowering.layers)), constants_of(walked[-1])
    assert walk.keys() == again.keys()
    for name, values in again.items():
        exactly = values.dtype.kind == "i"
        np.testing.assert_allclose(walk[name], values, rtol=0 if exactly else 1e-6, err_msg=name)


def test_an_input_that_hardly_changes_makes_no_weight_large(data: Path, watched: Watched) -> None:
    arrays = fitted(weights(), data)
    arrays["squeeze.weight"] *= 1e-6  # what is left is the bias, and the rounding of sums
    arrays["squeeze.bias"][:] = 7.3
    watched.lowering(graph(arrays), "tensorrt").write(["expand1"])
    before, after = (
        np.abs(constants["expand1.weight"]).max(axis=(1, 2, 3))
        for constants in (watched.before, watched.after)
    )
    assert (after < 1.2 * before).all()


def test_what_is_no_plain_convolution_is_left_as_it_is(data: Path, watched: Watched) -> None:
    arrays = fitted(weights(), data)
    arrays["main1.weight"] = arrays["main1.weight"][:, :8]  # two groups
    model = graph(arrays)
    (grouped,) = (node for node in model.graph.node if node.input[1:2] == ["main1.weight"])
    grouped.attribute.append(helper.make_attribute("group", 2))
    watched.lowering(model, "cpu").write(["main1", "main2"])
    for name, same in (("main1.weight", True), ("main2.weight", False)):
        assert np.array_equal(watched.before[name], watched.after[name]) == same
