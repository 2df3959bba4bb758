"""A network computed from layer to layer: the values of a whole run, each node run once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

import onnx
from tiny_network import SPEC, Made, fitted, graph, run, weights

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_export.onnx_export.session import open_session
from deepcovid_export.quantization import stepwise
from deepcovid_export.quantization.calibration import ImageBatches
from deepcovid_export.quantization.stepwise import Stepwise

LAYERS = ("node_first", "node_squeeze", "node_expand1", "node_expand3", "node_main1", "node_main2")
LAST = ("node_shortcut", "node_activation_maps")


@pytest.fixture
def images(data: Path) -> list[Any]:
    return list(ImageBatches(load_dataset(data, split="train"), SPEC))


def read_by(model: onnx.ModelProto, layer: str) -> str:
    (tensor,) = (node.input[0] for node in model.graph.node if node.name == layer)
    return str(tensor)


@pytest.mark.parametrize("variant", ["fp32", "int8-tensorrt", "int8-cpu"])
def test_values_are_those_of_a_whole_run(
    variant: str, data: Path, made: dict[str, Made], images: list[Any]
) -> None:
    model = graph(fitted(weights(), data)) if variant == "fp32" else made[variant].model
    walk = Stepwise(images)
    for tensor in (*(read_by(model, layer) for layer in LAYERS + LAST), "logits"):
        reached = list(walk.reach(model, tensor))
        assert len(reached) == len(images) == 3
        for values, batch in zip(reached, images, strict=True):
            np.testing.assert_allclose(values, run(model, batch, tensor), rtol=1e-5, atol=1e-5)


def test_no_layer_runs_twice_and_no_more_is_kept_than_is_read_later(
    made: dict[str, Made], images: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: Counter[str] = Counter()
    sizes: list[int] = []
    opened = open_session

    def counted(part: onnx.ModelProto) -> Any:
        ran.update(node.name for node in part.graph.node if node.op_type != "DequantizeLinear")
        return opened(part)

    monkeypatch.setattr(stepwise, "open_session", counted)
    model, walk = made["int8-cpu"].model, Stepwise(images)
    for layer in LAYERS + LAST:
        list(walk.reach(model, read_by(model, layer)))
        sizes.append(sum(values.nbytes for values in walk._kept[0].values()))
    assert set(ran.values()) == {1}
    one_map = images[0].shape[0] * 16 * 16  # of 16 x 16 places, as integers of one byte
    assert sizes[2:6] == [8 * one_map, 8 * one_map, 16 * one_map, 32 * one_map]


def test_what_lies_ahead_may_change(data: Path, images: list[Any]) -> None:
    arrays = fitted(weights(), data)
    walk = Stepwise(images)
    list(walk.reach(graph(arrays), "cat"))
    arrays["main1.weight"] = -arrays["main1.weight"]
    changed = graph(arrays)
    for values, batch in zip(walk.reach(changed, "features"), images, strict=True):
        np.testing.assert_allclose(values, run(changed, batch, "features"), rtol=1e-5, atol=1e-5)
