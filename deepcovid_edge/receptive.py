"""Which outputs an input can change, and which inputs an output needs, along one axis of a film.

Every tensor between two others of a graph is a row of positions. An operator with a kernel maps
positions by its kernel, stride, padding and dilation; all others leave them where they are. For the
arithmetic see Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks", Distill 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from deepcovid_edge.graph import Graph, Node, varying

Span: TypeAlias = tuple[int, int]
"""Positions from the first up to, not including, the second."""
Box: TypeAlias = tuple[Span, Span]
"""Rows and columns."""

_WINDOWED = {"Conv", "MaxPool", "AveragePool"}
_POINTWISE = {
    "Add",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "DequantizeLinear",
    "Identity",
    "Mul",
    "QuantizeLinear",
    "Relu",
    "Sub",
    "Unsqueeze",
}
"""Operators that keep rows and columns where they are, as our networks use them."""


class NotSpatialError(Exception):
    """An operator does not map rows to rows and columns to columns as far as is known here."""


@dataclass(frozen=True)
class Kernel:
    """How an operator maps positions along one axis.

    Attributes:
        size: Positions that it reads.
        stride: Inputs that it moves for each output.
        before: Padding in front of the first input.
        after: Padding behind the last.
        dilation: Inputs from one that is read to the next.
        ceiling: Whether a last output that reads a part of its inputs is made too.
    """

    size: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceiling: bool = False

    @property
    def reach(self) -> int:
        """Inputs from the first that is read to the last, both included."""
        return (self.size - 1) * self.dilation + 1

    def length(self, inputs: int) -> int:
        """How many outputs that many inputs make."""
        room = inputs + self.before + self.after - self.reach
        outputs = (-(-room // self.stride) if self.ceiling else room // self.stride) + 1
        # ONNX, MaxPool: a window that begins in the padding behind the last input is left out.
        if self.ceiling and (outputs - 1) * self.stride >= inputs + self.before:
            outputs -= 1
        return outputs

    def changed(self, span: Span, outputs: int) -> Span:
        """Outputs that read one of these inputs."""
        first = -(-(span[0] + self.before - self.reach + 1) // self.stride)
        last = (span[1] - 1 + self.before) // self.stride
        return max(first, 0), min(last + 1, outputs)

    def needed(self, span: Span, inputs: int) -> Span:
        """Inputs that these outputs read."""
        first = span[0] * self.stride - self.before
        last = (span[1] - 1) * self.stride - self.before + self.reach
        return max(first, 0), min(last, inputs)


def kernel(node: Node, axis: int) -> Kernel | None:
    """How a node maps positions along an axis (0 rows, 1 columns); None: it leaves them alone.

    Raises:
        NotSpatialError: The node's operator is not known to map positions at all.
    """
    if node.operator in _POINTWISE:
        return None
    if node.operator not in _WINDOWED or node.words.get("auto_pad", "NOTSET") != "NOTSET":
        raise NotSpatialError(f"{node.operator} {node.name}")
    sizes = node.numbers.get("kernel_shape", ())
    if len(sizes) != 2:
        raise NotSpatialError(f"{node.operator} {node.name}: kernel of {len(sizes)} dimensions")
    pads = node.numbers.get("pads", (0, 0, 0, 0))
    return Kernel(
        size=sizes[axis],
        stride=node.numbers.get("strides", (1, 1))[axis],
        before=pads[axis],
        after=pads[axis + 2],
        dilation=node.numbers.get("dilations", (1, 1))[axis],
        ceiling=bool(node.numbers.get("ceil_mode", (0,))[0]),
    )


class Chain:
    """The nodes between two tensors, along one axis.

    Args:
        graph: The model's graph.
        nodes: The nodes from `start` to `stop`, in their order.
        start: The tensor that is read.
        stop: The tensor that is made.
        axis: 0 for rows, 1 for columns.

    Raises:
        NotSpatialError: A node does not map positions.
    """

    def __init__(
        self, graph: Graph, nodes: Sequence[Node], start: str, stop: str, axis: int
    ) -> None:
        depends = varying(graph, [start])
        self._start, self._stop = start, stop
        self._steps = [
            (node.outputs[0], [name for name in node.inputs if name in depends], kernel(node, axis))
            for node in nodes
            if node.outputs[0] in depends
        ]
        self.stride = self._total_stride()

    def lengths(self, start: int) -> dict[str, int]:
        """Length of every tensor's row where the first has `start` positions."""
        found = {self._start: start}
        for made, read, how in self._steps:
            inputs = found[read[0]]
            found[made] = how.length(inputs) if how else inputs
        return found

    def changed(self, span: Span, lengths: dict[str, int]) -> dict[str, Span]:
        """Positions of every tensor that a change of these positions of the first can change.

        A span that ends where it begins, or before, holds none.
        """
        spans = {self._start: span}
        for made, read, how in self._steps:
            whole = _hull([spans[name] for name in read])
            spans[made] = how.changed(whole, lengths[made]) if how else whole
        return spans

    def needed(
        self, span: Span, lengths: dict[str, int], stop: str | None = None
    ) -> dict[str, Span]:
        """Positions of every tensor that these positions of the last, or of `stop`, are made of."""
        spans = {stop or self._stop: span}
        for made, read, how in reversed(self._steps):
            if made not in spans:
                continue
            inside = how.needed(spans[made], lengths[read[0]]) if how else spans[made]
            for name in read:
                spans[name] = _hull([inside, *([spans[name]] if name in spans else [])])
        return spans

    def crop(self, span: Span, lengths: dict[str, int]) -> Span:
        """Positions of the first tensor to cut out so that these of the last come out right.

        The crop begins where an output begins, so that outputs of the crop are outputs of the whole
        moved by `first // stride`.
        """
        first, last = self.needed(span, lengths)[self._start]
        return first - first % self.stride, last

    def _total_stride(self) -> int:
        strides = {self._start: 1}
        for made, read, how in self._steps:
            found = {strides[name] for name in read}
            if len(found) > 1:
                raise NotSpatialError(f"{made}: branches of unlike stride meet")
            strides[made] = found.pop() * (how.stride if how else 1)
        return strides[self._stop]


def _hull(spans: Sequence[Span]) -> Span:
    return min(first for first, _ in spans), max(last for _, last in spans)
