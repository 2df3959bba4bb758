"""A network, calibrated once, whose chosen layers are written in lower precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from deepcovid_edge.errors import UsageError
from deepcovid_export.onnx_export.graphs import INT8_OPSET, find_layers, nodes_of
from deepcovid_export.quantization.calibration import ImageBatches, best_ranges, channel_peaks
from deepcovid_export.quantization.equalise import equalise, find_pairs
from deepcovid_export.quantization.fp16_graph import rest_to_fp16, to_fp16
from deepcovid_export.quantization.int8_graph import (
    CPU_OPERATORS,
    STEPS,
    residual_adds,
    to_int8_cpu,
    to_int8_tensorrt,
)
from deepcovid_export.quantization.weight_fit import fit_weights

PRECISIONS = ("fp16", "int8")
TARGETS = ("tensorrt", "cpu")
SCHEMES = {
    ("fp16", "tensorrt"): "FP16; normalisation, inputs and outputs as they were",
    ("int8", "tensorrt"): "Q/DQ, int8, symmetric, weights per channel, bias in float",
    ("int8", "cpu"): "Q/DQ, uint8 activations, weights of 7 bits per channel, int32 bias",
}
_MULTIPLIED_AT_ONCE = 4
"""Products that one lane of VPDPBUSD (x86) or SDOT (Arm) sums."""


@dataclass(frozen=True)
class Variant:
    """Number formats and runtime that a network is quantised for.

    Attributes:
        precision: `fp16` or `int8`.
        target: `tensorrt` or `cpu`: what will run it.
        rest: `fp16` or `fp32`: precision of the layers that are not INT8 (TensorRT).
    """

    precision: str = "int8"
    target: str = "tensorrt"
    rest: str = "fp16"

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--precision", self.precision, PRECISIONS),
            ("--for", self.target, TARGETS),
            ("--rest", self.rest, ("fp16", "fp32")),
        ):
            if value not in known:
                raise UsageError(f"{flag}: got {value!r}, expected {' or '.join(known)}")
        if (self.precision, self.target) not in SCHEMES:
            raise UsageError(
                "--for cpu: got --precision fp16, which CPUs compute slower than fp32: "
                "use --precision int8"
            )

    @property
    def suffix(self) -> str:
        """Appended to the name of the model, such as `-int8-cpu`."""
        return "-fp16" if self.precision == "fp16" else f"-{self.precision}-{self.target}"

    @property
    def scheme(self) -> str:
        """The number formats in words, for the manifest."""
        return SCHEMES[self.precision, self.target]


class VariantWriter:
    """An FP32 network, calibrated, that can be written with any of its layers quantised."""

    def __init__(self, model: onnx.ModelProto, variant: Variant, batches: ImageBatches) -> None:
        self.variant = variant
        self.layers = tuple(_quantisable(model, variant))
        self.never = set(find_layers(model)) - set(self.layers)
        self.adds = tuple(residual_adds(model)) if variant.suffix == "-int8-tensorrt" else ()
        self._model = model
        if variant.precision == "int8":
            peaks = channel_peaks(model, [pair.activation for pair in find_pairs(model)], batches)
            equal = equalise(model, peaks)
            self._model = onnx.version_converter.convert_version(equal, INT8_OPSET)
            symmetric = variant.target == "tensorrt"
            shown = list(_tensors_to_calibrate(self._model, variant))
            self._ranges = best_ranges(self._model, shown, batches, symmetric=symmetric)
            self._images = list(batches.halves[1])  # the others measure the fit

    def write(
        self, layers: Collection[str], *, fused_adds: bool = False, alone: bool = False
    ) -> onnx.ModelProto:
        """The network with these layers quantised.

        Args:
            layers: Names of layers, of `VariantWriter.layers`.
            fused_adds: Quantise the residual additions as TensorRT fuses them.
            alone: Quantise nothing between the layers and fit no weights, to measure the layers.
        """
        if self.variant.precision == "fp16":
            return to_fp16(self._model, layers)

        def lower(model: onnx.ModelProto) -> onnx.ModelProto:
            return self._to_int8(model, layers, fused_adds=fused_adds, alone=alone)

        if alone:
            return lower(self._model)
        steps = STEPS[self.variant.target]
        return lower(fit_weights(self._model, layers, lower, self._images, steps))

    def _to_int8(
        self, model: onnx.ModelProto, layers: Collection[str], *, fused_adds: bool, alone: bool
    ) -> onnx.ModelProto:
        if self.variant.target == "cpu":
            return to_int8_cpu(model, self._ranges, layers, alone=alone)
        typed = to_int8_tensorrt(model, self._ranges, layers, fused_adds=fused_adds)
        others = set(find_layers(model)) - set(layers)
        if self.variant.rest == "fp16" and others and not alone:
            return rest_to_fp16(typed, others)
        return typed


def _quantisable(model: onnx.ModelProto, variant: Variant) -> Iterator[str]:
    """Layers that may be quantised.

    On a CPU the last layer is not, because its output leaves the graph in float, perhaps through a
    Relu as in torchvision's SqueezeNet. Nor is a layer with fewer channels than the INT8
    instructions multiply at once: it would save no time, and the first layer of a grey image is
    among the costliest in accuracy.
    """
    outputs = {output.name for output in model.graph.output}
    outputs |= {node.input[0] for node in nodes_of(model, "Relu") if node.output[0] in outputs}
    channels = {item.name: item.dims[1] for item in model.graph.initializer if len(item.dims) == 4}
    for name, node in find_layers(model).items():
        fills = channels.get(node.input[1], 0) >= _MULTIPLIED_AT_ONCE
        if variant.target != "cpu" or (fills and node.output[0] not in outputs):
            yield name


def _tensors_to_calibrate(model: onnx.ModelProto, variant: Variant) -> Iterator[str]:
    """The activations whose ranges the Q/DQ of a variant need."""
    constants = {item.name for item in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            names[node.input[0]] = None
        if node.op_type == "Add" or (variant.target == "cpu" and node.op_type in CPU_OPERATORS):
            names |= dict.fromkeys([*node.input, *node.output])
    return (name for name in names if name and name not in constants | outputs)
