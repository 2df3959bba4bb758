"""Computing only what a window alters gives what the whole network gives, for every network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

import onnx
from exported_networks import SIZE, exported_network
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Partitionable
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.heatmaps.incremental import PartitionedNetwork
from deepcovid_edge.heatmaps.partition import divide
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.reader import cut, nodes_between, read_graph, varying
from deepcovid_edge.models.graph.receptive_field import Box, NotSpatialError
from deepcovid_export.networks import ARCHITECTURES

RESNET18 = Path(__file__).parents[3] / "benchmarks" / "models" / "resnet18.onnx"
SHIPPED = sorted(find_model("squeezenet1_1").parent.glob("*.onnx"))


def image(size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def both_ways(path: Path, windows: list[Box], shown: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Logits for every window by the whole network and by its parts, and the number of parts."""
    with load_backend(path) as backend:
        assert isinstance(backend, Partitionable)
        spec = backend.manifest.input
        whole = image(spec.height)
        divided = PartitionedNetwork(
            backend.content(), (spec.height, spec.width), windows, backend.run_part
        )
        opened = divided.begin(whole)
        parts = opened.classify(
            [np.full(_shape(box), shown, np.uint8) for box in windows], divided.routes
        )
        plain = []
        for (top, bottom), (left, right) in windows:
            changed = whole.copy()
            changed[top:bottom, left:right] = shown
            plain.append(backend.infer(changed[None]).logits[0])
        np.testing.assert_allclose(opened.logits, backend.infer(whole[None]).logits[0], atol=1e-4)
    return np.array(plain), parts, max(len(route.steps) for route in divided.routes)


def _shape(box: Box) -> tuple[int, int]:
    return box[0][1] - box[0][0], box[1][1] - box[1][0]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_parts_of_every_network_say_what_the_whole_says(architecture: str) -> None:
    windows = WindowGrid.over(SIZE, SIZE, OcclusionSettings(window=21, stride=15)).boxes
    windows += [((0, 1), (0, 1)), ((40, 43), (0, SIZE)), ((SIZE - 1, SIZE), (SIZE - 1, SIZE))]
    plain, parts, count = both_ways(exported_network(architecture).path, windows, 0)
    assert count >= 2
    assert np.ptp(plain[:, 0]) > 1e-3, "nothing was changed"
    np.testing.assert_allclose(parts, plain, atol=1e-4)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize(("window", "stride", "shown"), [(32, 24, 0), (50, 37, 200), (7, 61, 128)])
def test_parts_of_the_shipped_models_say_what_the_whole_says(
    path: Path, window: int, stride: int, shown: int
) -> None:
    """In INT8 too: its sums are of integers, so that parts round as the whole does."""
    spans = [(first, min(first + window, 224)) for first in range(0, 224, stride)]
    windows = [(rows, columns) for rows in spans for columns in spans]
    plain, parts, count = both_ways(path, windows, shown)
    assert count >= 4
    np.testing.assert_allclose(parts, plain, atol=1e-4)


def test_a_residual_block_is_cut_inside_and_computes_only_what_is_altered() -> None:
    """Between its two convolutions, where its input is alive too; padding comes with the crops."""
    content = memoryview(RESNET18.read_bytes())
    graph = read_graph(content)
    windows: list[Box] = [((0, 32), (0, 32)), ((96, 128), (104, 136)), ((192, 224), (96, 128))]
    parts = divide(graph, "activation_maps", (224, 224), windows)
    inside = [part for part in parts if len(part.starts) == 2]
    assert len(inside) >= 5
    assert not any(part.padded for part in inside)
    part = next(part for part in inside if part.margins == (0, 1))
    alone = onnx.load_from_string(cut(content, graph, part.starts, part.stop, padded=False))
    assert [item.name for item in alone.graph.input] == [*part.starts]
    attributes = [item.name for node in alone.graph.node for item in node.attribute]
    assert "kernel_shape" in attributes
    assert "pads" not in attributes

    plain, parted, _ = both_ways(RESNET18, windows, 0)
    np.testing.assert_allclose(parted, plain, atol=1e-4)


def test_a_part_is_a_model_of_its_own() -> None:
    content = memoryview(find_model("squeezenet1_1").read_bytes())
    graph = read_graph(content)
    part = onnx.load_from_string(cut(content, graph, ["relu_4"], "relu_7"))
    assert [item.name for item in part.graph.input] == ["relu_4"]
    assert [item.name for item in part.graph.output] == ["relu_7"]
    nodes = [node.op_type for node in part.graph.node]
    assert nodes == [node.operator for node in nodes_between(graph, ["relu_4"], "relu_7")]
    stored = {item.name for item in part.graph.initializer}
    assert stored == {name for name in stored if name.startswith("features.")}
    assert not part.metadata_props


def test_a_graph_is_read_as_onnx_reads_it() -> None:
    path = find_model("squeezenet1_1-int8-cpu")
    model = onnx.load(path)
    graph = read_graph(memoryview(path.read_bytes()))
    assert graph.inputs == ["images"]
    assert graph.outputs == [item.name for item in model.graph.output]
    assert len(graph.nodes) == len(model.graph.node)
    for own, other in zip(graph.nodes, model.graph.node, strict=True):
        assert (own.operator, own.name) == (other.op_type, other.name)
        assert (list(own.inputs), list(own.outputs)) == (list(other.input), list(other.output))
        known = {item.name: onnx.helper.get_attribute_value(item) for item in other.attribute}
        for name, values in own.numbers.items():
            assert list(values) == (known[name] if isinstance(known[name], list) else [known[name]])
    for tensor in model.graph.initializer:
        constant = graph.constants[tensor.name]
        assert (constant.data_type, constant.shape) == (tensor.data_type, tuple(tensor.dims))
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            assert constant.is_zero == (not onnx.numpy_helper.to_array(tensor).any())


def test_weights_do_not_vary_and_features_do() -> None:
    graph = read_graph(memoryview(find_model("squeezenet1_1-int8-cpu").read_bytes()))
    depends = varying(graph, graph.inputs)
    assert {"relu_4", "logits", "activation_maps"} <= depends
    assert not depends & graph.constants.keys()
    assert "features.6.squeeze.bias" not in depends, "a constant behind DequantizeLinear"


def test_notes_that_are_no_text_do_not_matter() -> None:
    """Exporters note traces at a node; a length above 127 makes them no UTF-8."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"], blob=b"\xff\xfe")
    node.metadata_props.add(key="trace", value="x" * 200)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    content = onnx.helper.make_model(graph).SerializeToString()
    (read,) = read_graph(memoryview(content)).nodes
    assert (read.operator, read.inputs, read.outputs) == ("Relu", ("x",), ("y",))


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        read_graph(memoryview(b"\x3a\x02\x0a\x7f"))


def test_a_network_with_a_flattening_layer_is_not_divided(tmp_path: Path) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=1),
        helper.make_node("Flatten", ["x"], ["activation_maps"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("images", 2, ["b", 8, 8])], [value("activation_maps", 1, None)]
    )
    content = memoryview(helper.make_model(graph).SerializeToString())
    with pytest.raises(NotSpatialError, match="Flatten"):
        PartitionedNetwork(content, (8, 8), [((0, 2), (0, 2))], lambda part: np.asarray)
