"""Which layers are quantised, whatever leads from the last one to the activation maps."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

from onnx import helper
from tiny_network import SPEC, fitted, graph, run, weights

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_export.quantization.calibration import ImageBatches
from deepcovid_export.quantization.mixed_precision import Variant, VariantWriter


def test_a_relu_behind_the_class_maps_stays_in_float_on_cpus(data: Path) -> None:
    """As torchvision's SqueezeNet has it, in a file of somebody else's that `export` took."""
    model = graph(fitted(weights(), data))
    (last,) = (node for node in model.graph.node if "activation_maps" in node.output)
    last.output[0] = "maps"
    model.graph.node.append(helper.make_node("Relu", ["maps"], ["activation_maps"], "node_relu"))
    batches = ImageBatches(load_dataset(data, split="train")[:8], SPEC)
    writer = VariantWriter(model, Variant("int8", "cpu"), batches)
    assert "maps" in writer.never
    images = next(iter(batches))
    for alone in (False, True):
        lower = writer.write(writer.layers, alone=alone)
        kinds = {node.output[0]: node.op_type for node in lower.graph.node}
        assert kinds["activation_maps"] == "Relu"
        apart = run(lower, images) - run(model, images)
        assert 0 < abs(apart).max() < 0.2
