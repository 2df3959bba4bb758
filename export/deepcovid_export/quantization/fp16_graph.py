"""FP16 written into a graph: weights, and one cast for each tensor that changes precision."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deepcovid_edge.errors import ModelFileError
from deepcovid_export.onnx_export.graphs import (
    constants_of,
    find_layers,
    nodes_of,
    set_nodes,
    sorted_nodes,
)

_NEUTRAL = {"Relu", "MaxPool", "Concat", "Add"}
"""Operators that compute in whatever precision they are given."""
_LARGEST_FP16 = float(np.finfo(np.float16).max)


def to_fp16(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of a network in FP16; inputs, outputs and what lies next to them stay FP32.

    Args:
        model: The FP32 network.
        layers: Layers that become FP16, by name; what lies between any two layers does too.

    Raises:
        ModelFileError: A weight is too large for FP16.
    """
    every = find_layers(model)
    kept = _ends(model) | {every[name].name for name in set(every) - set(layers)}
    after = {node.output[0] for node in every.values() if node.name in kept}
    kept |= {node.name for node in nodes_of(model, "Relu") if node.input[0] in after}
    changed = onnx.shape_inference.infer_shapes(model)
    return _Halving(changed, {node.name for node in model.graph.node} - kept).model


def rest_to_fp16(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of a network with Q/DQ whose layers that are not INT8 become FP16.

    Q/DQ keep FP32 scales: with FP16 ones, ONNX Runtime (seen in 1.31) turns a convolution's bias
    into integers by a division that overflows FP16, whatever runs the graph afterwards.
    """
    halves = {node.name for name, node in find_layers(model).items() if name in layers}
    half = {node.output[0] for node in model.graph.node if node.name in halves}
    for node in sorted_nodes(model.graph):
        if node.op_type in _NEUTRAL and set(node.input) <= half:
            halves.add(node.name)
            half.add(node.output[0])
    return _Halving(onnx.shape_inference.infer_shapes(model), halves).model


class _Halving:
    """Makes nodes compute in FP16, with one cast for each tensor that changes precision."""

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        self.model = model
        graph = model.graph
        self._constants = constants_of(graph)
        known = (*graph.value_info, *graph.input, *graph.output)
        self._floats = {
            item.name for item in known if item.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._outputs = {item.name for item in graph.output}
        self._halves: set[str] = set()
        self._shared = {
            name for node in graph.node if node.name not in names for name in node.input
        } & set(self._constants)
        self._nodes: list[onnx.NodeProto] = []
        self._cast: dict[str, str] = {}
        for node in list(sorted_nodes(graph)):
            self._take(node, half=node.name in names)
        set_nodes(graph, self._nodes)
        del graph.value_info[:]  # the types in it are no longer true

    def _take(self, node: onnx.NodeProto, *, half: bool) -> None:
        for place, name in enumerate(node.input):
            if name in self._constants:
                node.input[place] = self._constant(name) if half else name
            elif name in self._floats and (name in self._halves) != half:
                node.input[place] = self._converted(name, half=half)
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if not half or name not in self._floats:
                continue
            if name in self._outputs:  # FP32 outside; inside it is FP16 under another name
                node.output[place] = f"{name}_fp16"
                self._cast[name] = f"{name}_fp16"
                self._add_cast(f"{name}_fp16", name, TensorProto.FLOAT)
            else:
                self._halves.add(name)

    def _converted(self, name: str, *, half: bool) -> str:
        if name not in self._cast:
            self._cast[name] = f"{name}_{'fp16' if half else 'fp32'}"
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._add_cast(name, self._cast[name], kind)
        return self._cast[name]

    def _add_cast(self, source: str, result: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [result], f"{result}_cast", to=kind))

    def _constant(self, name: str) -> str:
        item = self._constants[name]
        if item.data_type != TensorProto.FLOAT:
            return name
        values = numpy_helper.to_array(item)
        if np.abs(values).max(initial=0.0) > _LARGEST_FP16:
            raise ModelFileError(
                f"{name}: weights above {_LARGEST_FP16:.0f}: FP16 cannot hold them"
            )
        halved = numpy_helper.from_array(values.astype(np.float16), name)
        if name in self._shared:
            halved.name = f"{name}_fp16"
            if halved.name not in self._constants:
                self.model.graph.initializer.append(halved)
                self._constants[halved.name] = halved
            return halved.name
        item.CopyFrom(halved)
        return name


def _ends(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes before the first and after the last convolution.

    These are normalisation and the mean of the activation maps. FP32 costs nothing there.
    """
    before = {node.name for node in model.graph.node}
    after = set(before)
    reached: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv" or reached & set(node.input):
            reached |= set(node.output)
            before.discard(node.name)
    wanted: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or wanted & set(node.output):
            wanted |= set(node.input)
            after.discard(node.name)
    return before | after
