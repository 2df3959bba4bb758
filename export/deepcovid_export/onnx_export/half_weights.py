"""Weights stored in FP16 at half the size, and computed with in FP32.

Runtimes fold the casts when they load the file, so inference is no slower. Only the rounding of the
weights tells the network from the trained one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deepcovid_edge.errors import ModelFileError
from deepcovid_export.onnx_export.graphs import QDQ, constants_of, copy_model, nodes_of, set_nodes

FEWEST = 256
"""Smaller tensors (biases, constants) are kept: they save nothing and are added, not averaged."""
_HALF = "_half"


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 network whose weights are stored in FP16, each with a cast to FP32.

    Raises:
        ModelFileError: A weight is beyond FP16's range, 65504.
    """
    halved = copy_model(model)
    casts = []
    for item in halved.graph.initializer:
        if item.data_type != TensorProto.FLOAT or np.prod(item.dims) < FEWEST:
            continue
        name, weights = item.name, numpy_helper.to_array(item)
        if np.abs(weights).max() > np.finfo(np.float16).max:
            raise ModelFileError(f"{name}: has weights beyond 65504, expected FP16's range")
        stored = name + _HALF
        item.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), stored))
        cast = f"{name}_to_float"
        casts.append(helper.make_node("Cast", [stored], [name], cast, to=TensorProto.FLOAT))
    set_nodes(halved.graph, [*casts, *halved.graph.node])
    return halved


def restore_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with those casts folded: the same numbers, all stored in FP32."""
    full = copy_model(model)
    stored = constants_of(full.graph)
    nodes = []
    for node in full.graph.node:
        item = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if item is None or item.data_type != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        weights = numpy_helper.to_array(item).astype(np.float32)
        item.CopyFrom(numpy_helper.from_array(weights, node.output[0]))
    set_nodes(full.graph, nodes)
    return full


def read_fp32(path: str, data: bytes) -> onnx.ModelProto:
    """Parse an FP32 network; weights stored in FP16 are widened.

    Raises:
        ModelFileError: The bytes are not an ONNX model, or its graph has other precisions.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises its own types
        raise ModelFileError(f"{path}: not an ONNX model ({error})") from error
    model = restore_float(model)
    typed = any(node.op_type in QDQ for node in model.graph.node)
    halved = _computes_in_half(model)
    if typed or halved:
        raise ModelFileError(
            f"{path}: its graph has {'Q/DQ' if typed else 'FP16'} in it already, expected FP32: "
            "quantise the file that `deepcovid-edge export` wrote"
        )
    for node in model.graph.node:  # the quantiser knows nodes by name
        node.name = node.name or f"node_{node.output[0]}"
    return model


def _computes_in_half(model: onnx.ModelProto) -> bool:
    stored = any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer)
    cast = any(
        item.name == "to" and item.i == TensorProto.FLOAT16
        for node in nodes_of(model, "Cast")
        for item in node.attribute
    )
    return stored or cast
