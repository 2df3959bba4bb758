"""The out-of-distribution limits in a graph: pooled features of one stage, and a linear layer.

    tap -> (to float) -> average pool, 3 x 3 -> flatten -> linear -> ood_scores

The tap is found by the graph's structure. Nodes and weights of the out-of-distribution limits start
with `ood.`, so that it can be taken off again, and put on a variant of the network in lower
precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deepcovid_edge.decision.out_of_distribution import OUTPUT
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.graph.reader import Graph, alive_behind, nodes_between, read_graph, varying
from deepcovid_export.onnx_export.graphs import sorted_nodes

GRID = 3
"""Cells a side in which features are pooled: where something is tells an image that was turned."""
REDUCTIONS = (8, 16)
"""A stage is the first tensor that is this many times smaller than an image."""
FEATURES = "ood.features"
_PREFIX = "ood."
_WEIGHT, _BIAS = "ood.weight", "ood.bias"
_MAPS = "activation_maps"
_LINEAR = {"Conv", "BatchNormalization", "Add"}
"""What an activation follows: no stage ends with these."""


@dataclass(frozen=True)
class OodLayer:
    """A out-of-distribution limits: where it reads, and what it makes of that.

    Attributes:
        tap: Name of the tensor of shape (batch, channels, h, w).
        weight: Of shape (features, parts), float32; features are channels by rows by columns.
        bias: Of shape (parts,), float32.
    """

    tap: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def find_taps(model: onnx.ModelProto) -> list[str]:
    """The tensors whose features out-of-distribution limits could pool, the earlier first.

    Of the tensors that everything passes through, for each of `REDUCTIONS` the first that is so
    many times smaller than an image, or, in a network without such a stage, the last. These still
    see texture and place; a late one has forgotten what does not matter for its classes.

    Raises:
        ModelFileError: The network has no such tensor.
    """
    graph = read_graph(memoryview(model.SerializeToString()))
    shapes = shapes_of(model)
    image = shapes[graph.inputs[0]]
    stages = [name for name in _places(graph) if min(shapes.get(name, ())[2:], default=0) > 0]
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


def _places(graph: Graph) -> Iterator[str]:
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
        model: A network without out-of-distribution limits, in any precision.
        tap: One of `find_taps` of the FP32 network.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(changed)
    source = _in_float(changed, inferred, tap)
    rows, columns = shapes_of(inferred)[tap][2:]
    sides = [_window(length, min(GRID, length)) for length in (rows, columns)]
    pooled = f"{_PREFIX}pooled"
    changed.graph.node.extend(
        [
            helper.make_node(
                "AveragePool",
                [source],
                [pooled],
                f"{_PREFIX}pool",
                kernel_shape=[kernel for kernel, _ in sides],
                strides=[stride for _, stride in sides],
            ),
            helper.make_node("Flatten", [pooled], [FEATURES], f"{_PREFIX}flatten", axis=1),
        ]
    )
    changed.graph.output.append(
        helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", None])
    )
    return changed


def features_alone(model: onnx.ModelProto, taps: Sequence[str]) -> onnx.ModelProto:
    """The part of a network that makes the features at some taps, and nothing beyond.

    Its outputs are in the order of the taps.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    for number, tap in enumerate(taps):
        part = with_features(part, tap)
        for node in part.graph.node:
            if node.name.startswith(_PREFIX) and not node.name[-1].isdigit():
                _rename(node, f"_{number}")
        part.graph.output[-1].name += f"_{number}"
    graph = part.graph
    wanted, kept = {output.name for output in graph.output}, []
    for node in reversed(list(sorted_nodes(graph))):
        if wanted & set(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return part


def _rename(node: onnx.NodeProto, ending: str) -> None:
    """Give the layer's node and tensors names that no other layer has."""
    node.name += ending
    for names in (node.input, node.output):
        names[:] = [name + ending if name.startswith(_PREFIX) else name for name in names]


def _window(length: int, cells: int) -> tuple[int, int]:
    """Kernel and stride of a pool that makes so many cells of a length and leaves nothing out."""
    stride = length // cells
    return length - (cells - 1) * stride, stride


def _in_float(model: onnx.ModelProto, inferred: onnx.ModelProto, tap: str) -> str:
    """The tap in FP32: as its quantised reader sees it, cast if it is FP16, else as it is."""
    name = f"{_PREFIX}tap"
    quantised = [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and tap in node.input
    ]
    if quantised:
        node = quantised[0]
        model.graph.node.append(
            helper.make_node(
                "DequantizeLinear", [node.output[0], *node.input[1:]], [name], f"{name}_restored"
            )
        )
        return name
    types = {item.name: item.type.tensor_type.elem_type for item in inferred.graph.value_info}
    if types.get(tap) == TensorProto.FLOAT16:
        model.graph.node.append(
            helper.make_node("Cast", [tap], [name], f"{name}_cast", to=TensorProto.FLOAT)
        )
        return name
    return tap


def put_on(model: onnx.ModelProto, ood: OodLayer) -> onnx.ModelProto:
    """A copy of a network with the output `ood_scores` of shape (batch, parts)."""
    changed = with_features(model, ood.tap)
    graph = changed.graph
    del graph.output[-1]
    graph.node.append(
        helper.make_node("Gemm", [FEATURES, _WEIGHT, _BIAS], [OUTPUT], f"{_PREFIX}linear")
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(ood.weight.astype(np.float32), _WEIGHT),
            numpy_helper.from_array(ood.bias.astype(np.float32), _BIAS),
        ]
    )
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(ood.bias)])
    )
    nodes = list(sorted_nodes(graph))
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def take_off(model: onnx.ModelProto) -> tuple[onnx.ModelProto, OodLayer | None]:
    """A copy of a network without its layer for `ood_scores`, and that layer, if it has one."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    own = [node for node in graph.node if node.name.startswith(_PREFIX)]
    if not own:
        return bare, None
    made = {name for node in own for name in node.output}
    constants = {item.name: item for item in graph.initializer}
    read = [name for node in own for name in node.input if name not in made | constants.keys()]
    ood = OodLayer(
        read[0],
        numpy_helper.to_array(constants[_WEIGHT]).astype(np.float32),
        numpy_helper.to_array(constants[_BIAS]).astype(np.float32),
    )
    for part, kept in (
        (graph.node, [node for node in graph.node if node not in own]),
        (graph.initializer, [it for it in graph.initializer if not it.name.startswith(_PREFIX)]),
        (graph.output, [item for item in graph.output if item.name != OUTPUT]),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]
        del part[:]
        part.extend(copies)
    return bare, ood


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor, as far as they can be told; 0 for what is not known, such as the batch."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        item.name: tuple(side.dim_value for side in item.type.tensor_type.shape.dim)
        for item in (*graph.input, *graph.value_info, *graph.output)
    }
