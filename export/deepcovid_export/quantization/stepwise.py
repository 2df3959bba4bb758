"""Compute a network on a few images up to a tensor, and continue from there the next time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from deepcovid_export.onnx_export.graphs import QDQ, sorted_nodes
from deepcovid_export.onnx_export.session import open_session

Tensor = NDArray[Any]
"""Values of any type, as the tensors of a network have them."""


class Stepwise:
    """Some images on their way through a network, whose later layers may still change.

    For each batch it keeps the tensors that later layers read. So visiting all layers costs one run
    of the network, not half a run for each layer.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Start at the input, with batches of prepared images of shape (N, h, w)."""
        self._kept: list[dict[str, Tensor]] = [{"images": batch} for batch in images]

    def reach(self, model: onnx.ModelProto, tensor: str) -> Iterator[Tensor]:
        """A tensor's values, batch by batch; take all of them before the next call.

        Args:
            model: The network, unchanged up to the tensors that were reached before.
            tensor: A tensor behind those.
        """
        kept = set(self._kept[0])
        nodes = _nodes_between(model.graph, kept, [tensor])
        # Quantised tensors are kept as integers: that is smaller, and layers run as in the network.
        made = {name for node in nodes if node.op_type != QDQ[1] for name in node.output}
        ends = [output.name for output in model.graph.output]
        later = _nodes_between(model.graph, kept | made, ends)
        alive = {name for node in later for name in node.input} & (kept | made)
        names = [tensor, *sorted(alive - kept - {tensor})]
        session = open_session(_part(model, nodes, self._kept[0], names)) if nodes else None
        for place, known in enumerate(self._kept):
            values = dict(known)
            if session:
                read = {item.name: known[item.name] for item in session.get_inputs()}
                values |= zip(names, session.run(names, read), strict=True)
            self._kept[place] = {name: values[name] for name in alive}
            yield values[tensor]


def _nodes_between(
    graph: onnx.GraphProto, starts: Collection[str], stops: Collection[str]
) -> list[onnx.NodeProto]:
    """The nodes that compute some tensors from others and from constants, in their order."""
    wanted, found = set(stops) - set(starts), []
    for node in reversed(list(sorted_nodes(graph))):
        if wanted & set(node.output):
            wanted.update(name for name in node.input if name not in starts)
            found.append(node)
    return found[::-1]


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    known: dict[str, Tensor],
    names: Sequence[str],
) -> onnx.ModelProto:
    """Some nodes of a network as a network, with known tensors for its inputs."""
    read = {name for node in nodes for name in node.input}
    constants = [item for item in model.graph.initializer if item.name in read]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(values.dtype), [None] * values.ndim
        )
        for name, values in known.items()
        if name in read
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.CopyFrom(helper.make_graph(nodes, "part", inputs, outputs, constants))
    return part
