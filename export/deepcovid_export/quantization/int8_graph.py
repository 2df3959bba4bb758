"""INT8 written into a graph as Q/DQ: for TensorRT, and for CPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from deepcovid_export.onnx_export.graphs import (
    QDQ,
    constants_of,
    find_layers,
    makers_of,
    nodes_of,
    quiet,
)
from deepcovid_export.quantization.calibration import Ranges

CPU_OPERATORS = ["Conv", "Relu", "MaxPool", "Concat", "Add"]
"""Operators that CPUs run in INT8."""
_BEYOND = 1e30
"""The ends of a Clip that clips nothing."""
STEPS = {"tensorrt": 127, "cpu": 64}
"""Target -> steps of the grid of the weights on each side of zero.

x86 without VNNI adds two products of uint8 and int8 in 16 bits (VPMADDUBSW), which saturates at
32,767. With 64 steps, 2 x 255 x 64 = 32,640 is the most, so every processor computes the same.
"""
WEIGHT_BITS = {"tensorrt": 8, "cpu": 7}
_ALMOST = 0.999
"""Share of a uint8 range whose end still rounds to the last step."""


def to_int8_tensorrt(
    model: onnx.ModelProto, ranges: Ranges, layers: Collection[str], *, fused_adds: bool
) -> onnx.ModelProto:
    """A copy of a network with Q/DQ for TensorRT: int8, symmetric, bias in float.

    Args:
        model: The FP32 network.
        ranges: Ranges of the convolutions' inputs, and of what residual additions read.
        layers: Layers to quantise, by name.
        fused_adds: Quantise the skip input of residual additions, so that TensorRT computes
            convolution and addition in one INT8 kernel (TensorRT guide, Working with Quantized
            Types, Q/DQ Layer-Placement Recommendations: "Quantize the residual input in skip
            connections").
    """
    chosen = [node.name for name, node in find_layers(model).items() if name in layers]
    options: dict[str, bool | list[str]] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv"],
    }
    changed = _quantise(model, ranges, chosen, ["Conv"], QuantType.QInt8, options)
    _read_floats(changed, chosen)
    if fused_adds:
        _quantise_skips(changed, ranges, chosen, residual_adds(model))
    return changed


def residual_adds(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Additions of two activations: node name to (main convolution's node name, skip's place).

    The main path ends in a convolution; of two, the larger kernel is the main path (ResNet's
    shortcut is 1 x 1).
    """
    makers = makers_of(model.graph)
    kernels = {item.name: item.dims for item in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        sources = [makers.get(name) for name in node.input]
        if node.op_type != "Add" or None in sources:
            continue
        areas = [
            int(np.prod(kernels[maker.input[1]][2:])) if maker and maker.op_type == "Conv" else 0
            for maker in sources
        ]
        main = sources[int(np.argmax(areas))]
        if main and max(areas):
            found[node.name] = (main.name, 1 - int(np.argmax(areas)))
    return found


def _read_floats(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Let layers that stay in float read the unrounded tensor; the quantiser redirects them too."""
    quantised = {node.output[0]: node.input[0] for node in nodes_of(model, "QuantizeLinear")}
    plain = {
        node.output[0]: quantised[node.input[0]]
        for node in nodes_of(model, "DequantizeLinear")
        if node.input[0] in quantised
    }
    for node in model.graph.node:
        if node.name not in chosen and node.op_type not in QDQ:
            for place, name in enumerate(node.input):
                node.input[place] = plain.get(name, name)


def _quantise_skips(
    model: onnx.ModelProto,
    ranges: Ranges,
    chosen: Collection[str],
    adds: Mapping[str, tuple[str, int]],
) -> None:
    by_tensor = {node.input[0]: node.output[0] for node in nodes_of(model, "QuantizeLinear")}
    restored = {node.input[0]: node.output[0] for node in nodes_of(model, "DequantizeLinear")}
    for node in [node for node in model.graph.node if node.name in adds]:
        main, place = adds[node.name]
        name = node.input[place]
        if main not in chosen:
            continue
        if name not in by_tensor:
            by_tensor[name], after = f"{name}_QuantizeLinear_Output", f"{name}_skip"
            restored[by_tensor[name]] = after
            steps = STEPS["tensorrt"]
            scale = np.float32(max(abs(end) for end in ranges[name]) / steps)
            names = (f"{name}_scale", f"{name}_zero_point")
            for title, value in zip(names, (scale, np.int8(0)), strict=True):
                model.graph.initializer.append(numpy_helper.from_array(np.array(value), title))
            for kind, source, result in zip(
                QDQ, (name, by_tensor[name]), (by_tensor[name], after), strict=True
            ):
                made = helper.make_node(kind, [source, *names], [result], f"{name}_{kind}")
                model.graph.node.append(made)
        node.input[place] = restored[by_tensor[name]]


def to_int8_cpu(
    model: onnx.ModelProto, ranges: Ranges, layers: Collection[str], *, alone: bool = False
) -> onnx.ModelProto:
    """A copy of a network with Q/DQ for CPUs: uint8 activations, weights of 7 bits, int32 bias.

    Args:
        model: The FP32 network.
        ranges: Ranges of every activation between the convolutions.
        layers: Layers to quantise, by name.
        alone: Quantise nothing between the layers, to measure what the layers cost.
    """
    every = find_layers(model)
    chosen = {node.name for name, node in every.items() if name in layers}
    own = {node.output[0] for node in every.values() if node.name in chosen}
    others = {node.output[0] for node in every.values() if node.name not in chosen}
    names = []
    for node in model.graph.node:
        between = not alone and node.op_type in CPU_OPERATORS
        is_relu = node.op_type == "Relu" and node.input[0] not in others
        if (
            node.name in chosen
            or (is_relu and (between or node.input[0] in own))
            or (between and node.op_type not in ("Conv", "Relu"))
        ):
            names.append(node.name)
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    joined = _one_range_a_concat(model, ranges)
    changed = _quantise(
        model, joined, names, CPU_OPERATORS, QuantType.QUInt8, options, seven_bits=True
    )
    _keep_in_float(changed, joined, {node.name for node in every.values()} - chosen)
    return changed


def set_weights(
    model: onnx.ModelProto,
    layer: str,
    steps_each_side: int,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
) -> None:
    """Give a quantised layer other weights, as if it were quantised again.

    Args:
        model: A network of `to_int8_cpu` or `to_int8_tensorrt`.
        layer: The layer's node, by name.
        steps_each_side: Of the grid; see `STEPS`.
        weights: Of its shape; in each channel whole multiples of a step, the largest magnitude over
            the number of steps.
        bias: One for each channel; None where it has none.
    """
    constants = constants_of(model.graph)
    makers = makers_of(model.graph)

    def store(name: str, values: NDArray[Any]) -> None:
        kind = helper.tensor_dtype_to_np_dtype(constants[name].data_type)
        constants[name].CopyFrom(numpy_helper.from_array(values.astype(kind), name))

    (node,) = (node for node in model.graph.node if node.name == layer)
    kept, scales = makers[node.input[1]].input[:2]
    peaks = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    steps = np.where(peaks > 0, peaks, 1) / np.float32(steps_each_side)
    store(kept, np.rint(weights / steps.reshape(-1, *[1] * (weights.ndim - 1))))
    store(scales, steps)
    if bias is None:
        return
    if node.input[2] in constants:
        store(node.input[2], bias)
        return
    kept, scales = makers[node.input[2]].input[:2]
    steps = steps * numpy_helper.to_array(constants[makers[node.input[0]].input[1]])
    store(kept, np.rint(bias / steps))
    store(scales, steps)


def _one_range_a_concat(model: onnx.ModelProto, ranges: Ranges) -> Ranges:
    """Parts of a Concat get its range: it then moves bytes instead of rescaling them."""
    joined = dict(ranges)
    for node in reversed(model.graph.node):
        if node.op_type == "Concat" and node.output[0] in joined:
            joined |= dict.fromkeys(node.input, joined[node.output[0]])
    return joined


def _keep_in_float(model: onnx.ModelProto, ranges: Ranges, layers: Collection[str]) -> None:
    """Put a Clip that clips nothing where ONNX Runtime would quantise a float layer.

    It quantises the weights of a float convolution itself, one scale for all channels, if it reads
    a DequantizeLinear and is read by a QuantizeLinear (seen in 1.31: WeightBiasQuantization). And
    it moves a QuantizeLinear up past a float MaxPool (QDQPropagation), which is slow in uint8.
    """
    makers = makers_of(model.graph)
    clips: dict[str, str] = {}

    def clipped(name: str, low: float, high: float) -> str:
        if name not in clips:
            clips[name] = f"{name}_clip"
            ends = (f"{name}_clip_min", f"{name}_clip_max")
            for title, value in zip(ends, (low, high), strict=True):
                item = numpy_helper.from_array(np.array(value, np.float32), title)
                model.graph.initializer.append(item)
            made = helper.make_node("Clip", [name, *ends], [clips[name]], clips[name])
            model.graph.node.append(made)
        return clips[name]

    for node in list(model.graph.node):
        maker = makers.get(node.input[0])
        if maker is None:
            continue
        if node.name in layers and maker.op_type == "DequantizeLinear":
            node.input[0] = clipped(node.input[0], -_BEYOND, _BEYOND)
        elif node.op_type == "QuantizeLinear" and maker.op_type == "MaxPool":
            source = makers.get(maker.input[0])
            if source is not None and source.op_type != "DequantizeLinear":
                # A Clip to the whole range would be taken for superfluous and removed.
                low, high = (_ALMOST * end for end in ranges[node.input[0]])
                node.input[0] = clipped(node.input[0], low, high)


@contextmanager
def _unaddressed() -> Iterator[None]:
    """Let onnx name its temporary files at random, not by the network card's address.

    `uuid.uuid1` asks the system for that address through a socket (libuuid, uuid_generate(3)).
    """
    names = vars(external_data_helper)
    own = names["uuid"]
    names["uuid"] = SimpleNamespace(uuid1=own.uuid4)
    try:
        yield
    finally:
        names["uuid"] = own


def _quantise(
    model: onnx.ModelProto,
    ranges: Ranges,
    nodes: list[str],
    operators: list[str],
    activations: QuantType,
    options: Mapping[str, bool | list[str]],
    *,
    seven_bits: bool = False,
) -> onnx.ModelProto:
    seen = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    with quiet(None), _unaddressed():  # it logs what it does not know about outputs
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(model),
            True,  # weights per channel
            seven_bits,  # of the weights alone
            QuantType.QInt8,
            activations,
            TensorsData(CalibrationMethod.MinMax, seen),
            nodes,
            [],
            operators,
            options,
        )
        changed: onnx.ModelProto = quantizer.quantize_model()
    return changed
