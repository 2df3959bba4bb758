"""The out-of-distribution layer in a graph: pooled features of one stage, and a linear layer.

    tap -> (to float) -> average pool, 3 x 3 -> flatten -> linear -> ood_scores

The graph's structure decides where the tap is. Nodes and weights of the layer have names that start
with `ood.`, so that it can be taken off again and put on a variant of the network in lower
precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deepcovid_edge.decision.out_of_distribution import OUTPUT
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.models.graph.reader import (
    Graph,
    alive_behind,
    nodes_between,
    read_graph,
    varying,
)
from deepcovid_export.onnx_export.graphs import (
    constants_of,
    copy_model,
    nodes_of,
    set_nodes,
    sorted_nodes,
)

GRID = 3
"""Cells a side in which features are pooled: their place shows that an image was turned."""
REDUCTIONS = (8, 16)
"""A stage is the first tensor that is this many times smaller than an image."""
FEATURES = "ood.features"
_PREFIX = "ood."
_WEIGHT, _BIAS = "ood.weight", "ood.bias"
_MAPS = "activation_maps"
_LINEAR = {"Conv", "BatchNormalization", "Add"}
"""No stage ends with these: an activation follows them."""


@dataclass(frozen=True)
class OodLayer:
    """The linear layer: which features it reads, and the weights.

    Attributes:
        tap: Name of the tensor of shape (batch, channels, h, w).
        weight: Of shape (features, parts), float32; features are channels by rows by columns.
        bias: Of shape (parts,), float32.
    """

    tap: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the layer gives for features of shape (N, features), of shape (N, parts)."""
        scores: NDArray[np.float32] = features @ self.weight + self.bias
        return scores


def find_taps(model: onnx.ModelProto) -> list[str]:
    """The tensors whose features the layer could pool, the earlier first.

    For each of `REDUCTIONS`, of the tensors that everything passes through, the first that is that
    many times smaller than an image; the last one in a network without such a stage. These still
    show texture and place; a late tensor has lost what does not matter for the classes.

    Raises:
        ModelFileError: The network has no such tensor.
    """
    graph = read_graph(memoryview(model.SerializeToString()))
    shapes = shapes_of(model)
    image = shapes[graph.inputs[0]]
    stages = [name for name in _bottlenecks(graph) if min(shapes.get(name, ())[2:], default=0) > 0]
    if not stages:
        raise ModelFileError(
            "the network has no stage whose features out-of-distribution limits could pool"
        )
    taps = [
        next((name for name in stages if _is_smaller(shapes[name], image, times)), stages[-1])
        for times in REDUCTIONS
    ]
    return list(dict.fromkeys(taps))


def _is_smaller(shape: tuple[int, ...], image: tuple[int, ...], times: int) -> bool:
    return all(times * part <= whole for part, whole in zip(shape[2:], image[1:], strict=True))


def _bottlenecks(graph: Graph) -> Iterator[str]:
    """Tensors that everything on its way to the maps passes through, in their order."""
    (start,) = graph.inputs
    depends = varying(graph, [start])
    nodes = [it for it in nodes_between(graph, [start], _MAPS) if it.outputs[0] in depends]
    convolved = False
    for node, alive in alive_behind(nodes, start, _MAPS):
        convolved = convolved or node.operator == "Conv"
        made = node.outputs[0]
        if alive == (made,) and made != _MAPS and convolved and node.operator not in _LINEAR:
            yield made


def with_features(model: onnx.ModelProto, tap: str) -> onnx.ModelProto:
    """A copy of a network with the pooled features of a tap as the output `FEATURES`.

    Args:
        model: A network without the layer, in any precision.
        tap: One of `find_taps` of the FP32 network.
    """
    changed = copy_model(model)
    inferred = onnx.shape_inference.infer_shapes(changed)
    source, pooled = _in_float(changed, inferred, tap), f"{_PREFIX}pooled"
    sides = [_window(length, min(GRID, length)) for length in shapes_of(inferred)[tap][2:]]
    kernels, strides = zip(*sides, strict=True)
    window: dict[str, Any] = {"kernel_shape": kernels, "strides": strides}
    changed.graph.node.extend(
        [
            helper.make_node("AveragePool", [source], [pooled], f"{_PREFIX}pool", **window),
            helper.make_node("Flatten", [pooled], [FEATURES], f"{_PREFIX}flatten", axis=1),
        ]
    )
    output = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", None])
    changed.graph.output.append(output)
    return changed


def features_alone(model: onnx.ModelProto, taps: Sequence[str]) -> onnx.ModelProto:
    """The part of a network that makes the features at some taps; outputs in their order."""
    part = copy_model(model)
    del part.graph.output[:]
    for number, tap in enumerate(taps):
        part = with_features(part, tap)
        for node in part.graph.node:
            if node.name.startswith(_PREFIX) and not node.name[-1].isdigit():
                _rename(node, f"_{number}")
        part.graph.output[-1].name += f"_{number}"
    wanted, kept = {output.name for output in part.graph.output}, []
    for node in reversed(list(sorted_nodes(part.graph))):
        if wanted & set(node.output):
            wanted.update(node.input)
            kept.append(node)
    set_nodes(part.graph, reversed(kept))
    return part


def _rename(node: onnx.NodeProto, ending: str) -> None:
    """Give a node of the layer and its tensors names that no other layer has."""
    node.name += ending
    for names in (node.input, node.output):
        names[:] = [name + ending if name.startswith(_PREFIX) else name for name in names]


def _window(length: int, cells: int) -> tuple[int, int]:
    """Kernel and stride of a pool that covers a length with this many cells."""
    stride = length // cells
    return length - (cells - 1) * stride, stride


def _in_float(model: onnx.ModelProto, inferred: onnx.ModelProto, tap: str) -> str:
    """The tap in FP32: as its quantised reader sees it, cast if it is FP16, else as it is."""
    name = f"{_PREFIX}tap"
    types = {item.name: item.type.tensor_type.elem_type for item in inferred.graph.value_info}
    readers = [node for node in nodes_of(model, "QuantizeLinear") if tap in node.input]
    if readers:
        inputs = [readers[0].output[0], *readers[0].input[1:]]
        node = helper.make_node("DequantizeLinear", inputs, [name], f"{name}_restored")
    elif types.get(tap) == TensorProto.FLOAT16:
        node = helper.make_node("Cast", [tap], [name], f"{name}_cast", to=TensorProto.FLOAT)
    else:
        return tap
    model.graph.node.append(node)
    return name


def put_on(model: onnx.ModelProto, layer: OodLayer) -> onnx.ModelProto:
    """A copy of a network with the output `ood_scores` of shape (batch, parts)."""
    changed = with_features(model, layer.tap)
    graph = changed.graph
    del graph.output[-1]
    gemm = helper.make_node("Gemm", [FEATURES, _WEIGHT, _BIAS], [OUTPUT], f"{_PREFIX}linear")
    graph.node.append(gemm)
    for values, name in ((layer.weight, _WEIGHT), (layer.bias, _BIAS)):
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    scores = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(layer.bias)])
    graph.output.append(scores)
    set_nodes(graph, sorted_nodes(graph))
    return changed


def take_off(model: onnx.ModelProto) -> tuple[onnx.ModelProto, OodLayer | None]:
    """A copy of a network without its out-of-distribution layer, and that layer if it has one."""
    bare = copy_model(model)
    graph = bare.graph
    own = [node for node in graph.node if node.name.startswith(_PREFIX)]
    if not own:
        return bare, None
    made = {name for node in own for name in node.output}
    constants = constants_of(graph)
    tap = next(name for node in own for name in node.input if name not in made | constants.keys())
    weight, bias = (
        numpy_helper.to_array(constants[name]).astype(np.float32) for name in (_WEIGHT, _BIAS)
    )
    for part, removed in (
        (graph.node, own),
        (graph.initializer, [it for it in graph.initializer if it.name.startswith(_PREFIX)]),
        (graph.output, [item for item in graph.output if item.name == OUTPUT]),
    ):
        for item in removed:
            part.remove(item)
    return bare, OodLayer(tap, weight, bias)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor as far as they are known; 0 for an unknown side, such as the batch."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        item.name: tuple(side.dim_value for side in item.type.tensor_type.shape.dim)
        for item in (*graph.input, *graph.value_info, *graph.output)
    }
