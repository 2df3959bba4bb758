"""Equalise channels before INT8, without changing what the network computes.

An activation has one INT8 scale for all its channels, so a channel of large values leaves few steps
to the others. Where a convolution, a ReLU and the next convolutions follow each other, a channel
may be divided by a factor on its way out and multiplied on its way in (Nagel et al. 2019, Data-Free
Quantization Through Weight Equalization and Bias Correction, section 4.1; the balance between
activations and weights is that of Xiao et al. 2023, SmoothQuant, equation 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deepcovid_export.onnx_export.graphs import constants_of, copy_model, makers_of

_BALANCE = 0.7
"""SmoothQuant's alpha: 1 equalises activations alone, 0 weights alone."""
_SILENT = 1e-6
"""A channel below this share of the loudest is left as it is."""
_PASSING = ("Relu", "MaxPool")


@dataclass(frozen=True)
class Pair:
    """A convolution and those that read its channels.

    Attributes:
        producer: The convolution whose output channels may be scaled.
        activation: The tensor after its ReLU.
        readers: Convolutions that read the channels, each with the place of the first one.
    """

    producer: onnx.NodeProto
    activation: str
    readers: tuple[tuple[onnx.NodeProto, int], ...]


class _Graph:
    """The makers and readers of tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.outputs = {output.name for output in graph.output}
        self.makers = makers_of(graph)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.channels = {item.name: int(item.dims[0]) for item in graph.initializer if item.dims}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def width(self, tensor: str) -> int:
        """Channels of a tensor that comes from convolutions."""
        maker = self.makers[tensor]
        if maker.op_type == "Conv":
            return self.channels[maker.input[1]]
        parts = maker.input if maker.op_type == "Concat" else maker.input[:1]
        return sum(self.width(name) for name in parts)


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """Convolutions whose channels reach nothing but other convolutions, in the graph's order."""
    graph = _Graph(model.graph)
    pairs = []
    for node in model.graph.node:
        after = graph.readers.get(node.output[0], []) if node.op_type == "Conv" else []
        if [reader.op_type for reader in after] == ["Relu"]:
            readers = _reading_convolutions(graph, node.output[0], 0)
            if readers:
                pairs.append(Pair(node, after[0].output[0], tuple(readers)))
    return pairs


def _reading_convolutions(
    graph: _Graph, tensor: str, first: int
) -> list[tuple[onnx.NodeProto, int]] | None:
    """Follow channels downstream; None where they reach anything that a factor would change."""
    if tensor in graph.outputs:
        return None
    found: list[tuple[onnx.NodeProto, int]] = []
    for node in graph.readers.get(tensor, []):
        if node.op_type == "Conv" and _is_whole(node) and node.input[0] == tensor:
            found.append((node, first))
            continue
        place = first
        if node.op_type == "Concat" and list(node.input).count(tensor) == 1:
            before = list(node.input)[: list(node.input).index(tensor)]
            place += sum(graph.width(name) for name in before)
        elif node.op_type not in _PASSING:
            return None
        further = _reading_convolutions(graph, node.output[0], place)
        if further is None:
            return None
        found += further
    return found


def _is_whole(node: onnx.NodeProto) -> bool:
    """Whether a convolution reads all channels together."""
    return all(item.name != "group" or item.i == 1 for item in node.attribute)


def equalise(model: onnx.ModelProto, peaks: Mapping[str, NDArray[np.float64]]) -> onnx.ModelProto:
    """A copy of a network with equalised channels that computes the same."""
    changed = copy_model(model)
    stored = constants_of(changed.graph)
    arrays: dict[str, NDArray[np.float32]] = {}

    def array(name: str) -> NDArray[np.float32]:
        return arrays.setdefault(name, numpy_helper.to_array(stored[name]).copy())

    for pair in find_pairs(changed):
        loud = peaks[pair.activation]
        heavy = np.zeros_like(loud)
        for reader, first in pair.readers:
            kernel = np.abs(array(reader.input[1])[:, first : first + len(loud)])
            heavy = np.maximum(heavy, kernel.max(axis=(0, 2, 3)))
        factors = _factors(loud, heavy)
        array(pair.producer.input[1])[:] /= factors[:, None, None, None]
        if len(pair.producer.input) > 2:
            array(pair.producer.input[2])[:] /= factors
        for reader, first in pair.readers:
            array(reader.input[1])[:, first : first + len(loud)] *= factors[None, :, None, None]
    for name, values in arrays.items():
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return changed


def _factors(loud: NDArray[np.float64], heavy: NDArray[np.float64]) -> NDArray[np.float32]:
    """Factors by which channels are divided; 1 for a silent channel."""
    factors = np.ones_like(loud)
    heard = (loud > _SILENT * loud.max()) & (heavy > 0)
    if heard.any():
        wanted = _BALANCE * np.log2(loud[heard]) - (1 - _BALANCE) * np.log2(heavy[heard])
        factors[heard] = 2.0 ** (wanted - wanted.mean())
    return factors.astype(np.float32)
