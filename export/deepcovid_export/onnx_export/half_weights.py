"""Weights stored in FP16 at half the size, and computed with in FP32.

Runtimes fold the casts when they load the file, so nothing is slower for it. The network differs
from the one that was trained by the rounding of its weights alone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deepcovid_edge.errors import ModelFileError

FEWEST = 256
"""Smaller tensors (biases, constants) are kept: they save nothing and are added, not averaged."""
_HALF = "_half"


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 network whose weights are stored in FP16, each with a cast to FP32.

    Raises:
        ModelFileError: A weight is beyond FP16's range, 65504.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    casts = []
    for item in halved.graph.initializer:
        if item.data_type != TensorProto.FLOAT or np.prod(item.dims) < FEWEST:
            continue
        name, weights = item.name, numpy_helper.to_array(item)
        if np.abs(weights).max() > np.finfo(np.float16).max:
            raise ModelFileError(f"{name}: has weights beyond 65504, expected FP16's range")
        item.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), name + _HALF))
        casts.append(
            helper.make_node(
                "Cast", [name + _HALF], [name], f"{name}_to_float", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


def restore_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with those casts folded: the same numbers, all stored in FP32."""
    full = onnx.ModelProto()
    full.CopyFrom(model)
    stored = {item.name: item for item in full.graph.initializer}
    nodes = []
    for node in full.graph.node:
        item = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if item is None or item.data_type != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        weights = numpy_helper.to_array(item).astype(np.float32)
        item.CopyFrom(numpy_helper.from_array(weights, node.output[0]))
    del full.graph.node[:]
    full.graph.node.extend(nodes)
    return full
