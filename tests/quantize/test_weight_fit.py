"""Weights fitted, then rounded: on the quantiser's grid, and with less harm to the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

from onnx import helper, numpy_helper
from tiny_network import SPEC, fitted, graph, pixels, run, weights

from deepcovid_edge.dataset import load_dataset
from deepcovid_export.calibration import FilmBatches
from deepcovid_export.lowering import Lowered, Lowering
from deepcovid_export.weight_fit import fit_weights, on_grid

Array = NDArray[np.float64]


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def gram_of(inputs: int, seed: int) -> Array:
    """Of inputs that go together, as the pixels under a kernel do."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(0, 1, (4 * inputs, inputs // 4)) @ draw.normal(0, 1, (inputs // 4, inputs))
    seen = np.maximum(hidden + draw.normal(0, 0.3, hidden.shape), 0)
    return seen.T @ seen / len(seen)


def harm(change: Array, gram: Array) -> float:
    """Mean squared change of a layer's outputs."""
    return float(np.einsum("oi,ij,oj->", change, gram, change) / len(change))


def nearest(values: Array) -> Array:
    steps = np.abs(values).max(axis=1, keepdims=True) / 127
    return np.rint(values / steps) * steps


@pytest.mark.parametrize("inputs", [16, 144, 300])  # below, over and twice over a block
def test_rounding_stays_on_the_grid_and_harms_the_outputs_less(inputs: int) -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (12, inputs))
    gram = gram_of(inputs, seed=2)
    rounded = on_grid(kernel, gram)
    steps = np.abs(kernel).max(axis=1, keepdims=True) / 127
    multiples = rounded / steps
    assert np.abs(multiples - np.rint(multiples)).max() < 1e-9
    assert np.allclose(np.abs(multiples).max(axis=1), 127)  # a quantiser finds the same steps
    assert np.allclose(nearest(rounded), rounded)
    assert harm(rounded - kernel, gram) < harm(nearest(kernel) - kernel, gram) / 3


def test_blocks_are_only_a_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, gram = np.random.default_rng(1).normal(0, 1, (5, 40)), gram_of(40, seed=3)
    whole = on_grid(kernel, gram)
    monkeypatch.setattr("deepcovid_export.weight_fit._BLOCK", 7)
    assert np.allclose(on_grid(kernel, gram), whole)


def test_inputs_that_are_never_there_leave_the_nearest_multiples() -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (4, 9))
    assert np.allclose(on_grid(kernel, np.zeros((9, 9))), nearest(kernel))
    assert not on_grid(np.zeros((4, 9)), gram_of(9, seed=0)[:9, :9]).any()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_logits_come_nearer_to_the_networks_own(
    target: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(fitted(weights(), data))
    calibrated = Lowering(
        model, Lowered("int8", target, "fp32"), FilmBatches(load_dataset(data, split="train"), SPEC)
    )
    films = pixels(load_dataset(data, split="val"))  # none that the weights were fitted on
    expected = run(model, films)
    with_fit = np.abs(run(calibrated.write(calibrated.layers), films) - expected).mean()
    monkeypatch.setattr("deepcovid_export.lowering.fit_weights", lambda model, *_: model)
    without = np.abs(run(calibrated.write(calibrated.layers), films) - expected).mean()
    assert with_fit < 0.7 * without


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_files_hold_the_fitted_weights_to_the_last_step(
    target: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[onnx.ModelProto] = []

    def remembered(*arguments: Any) -> onnx.ModelProto:
        last.append(fit_weights(*arguments))
        return last[-1]

    monkeypatch.setattr("deepcovid_export.lowering.fit_weights", remembered)
    films = FilmBatches(load_dataset(data, split="train"), SPEC)
    lowering = Lowering(graph(fitted(weights(), data)), Lowered("int8", target, "fp32"), films)
    layers = [name for name in lowering.layers if name != "squeeze"]
    lowered = lowering.write(layers)
    expected, stored = constants_of(last[0]), constants_of(lowered)
    for name in layers:
        kept, steps = (stored[f"{name}.weight_{part}"] for part in ("quantized", "scale"))
        assert (np.abs(kept).max(axis=(1, 2, 3)) == 127).all()
        restored = kept.astype(np.float32) * steps[:, None, None, None]
        np.testing.assert_allclose(restored, expected[f"{name}.weight"], rtol=1e-5)
    original = graph(fitted(weights(), data))
    assert not np.array_equal(expected["main1.weight"], constants_of(original)["main1.weight"])
    assert lowering.write(layers).SerializeToString() == lowered.SerializeToString()


def test_an_input_that_hardly_changes_makes_no_weight_large(data: Path) -> None:
    arrays = fitted(weights(), data)
    arrays["squeeze.weight"] *= 1e-6  # what is left is the bias, and the rounding of sums
    arrays["squeeze.bias"][:] = 7.3
    films = [pixels(load_dataset(data, split="train"))]
    fit = fit_weights(graph(arrays), ["expand1"], lambda same: same, films)
    largest = np.abs(constants_of(fit)["expand1.weight"]).max(axis=(1, 2, 3))
    assert (largest < 1.2 * np.abs(arrays["expand1.weight"]).max(axis=(1, 2, 3))).all()


def test_what_is_no_plain_convolution_is_left_as_it_is(data: Path) -> None:
    arrays = fitted(weights(), data)
    arrays["main1.weight"] = arrays["main1.weight"][:, :8]  # two groups
    model = graph(arrays)
    (grouped,) = (node for node in model.graph.node if node.input[1:2] == ["main1.weight"])
    grouped.attribute.append(helper.make_attribute("group", 2))
    films = [pixels(load_dataset(data, split="train"))]
    changed = fit_weights(model, ["main1", "main2"], lambda same: same, films)
    before, after = constants_of(model), constants_of(changed)
    assert np.array_equal(before["main1.weight"], after["main1.weight"])
    assert not np.array_equal(before["main2.weight"], after["main2.weight"])
