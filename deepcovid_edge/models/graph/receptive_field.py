"""Which outputs an input can change, and which inputs an output needs, along one axis of an image.

Every tensor between two others of a graph is a row of positions. An operator with a kernel maps
positions by its kernel, stride, padding and dilation; all others leave them where they are. For the
arithmetic see Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks", Distill 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from deepcovid_edge.models.graph.reader import Graph, Node, varying

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
    def keeps_length(self) -> bool:
        """Whether n inputs make n / stride outputs, rounded up."""
        return self.before + self.after == self.reach - 1 and not self.ceiling

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
        first, last = self.needed_with_padding(span)
        return max(first, 0), min(last, inputs)

    def needed_with_padding(self, span: Span) -> Span:
        """The same, with what they read of the padding: below 0 and beyond the last input."""
        first = span[0] * self.stride - self.before
        return first, (span[1] - 1) * self.stride - self.before + self.reach


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
    """The nodes between some tensors and one that is made of them, along one axis.

    Args:
        graph: The model's graph.
        nodes: The nodes from `starts` to `stop`, in their order.
        starts: The tensors that are read.
        stop: The tensor that is made.
        axis: 0 for rows, 1 for columns.

    Attributes:
        strides: Positions of every tensor that `stop` moves by for one of its own.
        kernels: The nodes' kernels, where they have one, by the tensor that is made.

    Raises:
        NotSpatialError: A node does not map positions.
    """

    def __init__(
        self, graph: Graph, nodes: Sequence[Node], starts: Sequence[str], stop: str, axis: int
    ) -> None:
        depends = varying(graph, starts)
        self.starts, self.stop = tuple(starts), stop
        self._steps = [
            (node.outputs[0], [name for name in node.inputs if name in depends], kernel(node, axis))
            for node in nodes
            if node.outputs[0] in depends
        ]
        self.kernels = {made: how for made, _, how in self._steps if how}
        self.strides = self._strides()

    def lengths(self, starts: Mapping[str, int]) -> dict[str, int]:
        """Length of every tensor's row where the first have this many positions."""
        found = dict(starts)
        for made, read, how in self._steps:
            inputs = found[read[0]]
            found[made] = how.length(inputs) if how else inputs
        return found

    def changed(self, spans: Mapping[str, Span], lengths: Mapping[str, int]) -> dict[str, Span]:
        """Positions of every tensor that a change of these positions of the first can change.

        A span that ends where it begins, or before, holds none.
        """
        found = dict(spans)
        for made, read, how in self._steps:
            whole = _hull([found[name] for name in read])
            found[made] = how.changed(whole, lengths[made]) if how else whole
        return found

    def needed(self, span: Span, lengths: Mapping[str, int]) -> dict[str, Span]:
        """Positions of every tensor that these positions of the last are made of."""
        spans = {self.stop: span}
        for _ in self.trace(spans, lengths):
            pass
        return spans

    def trace(self, spans: dict[str, Span], lengths: Mapping[str, int]) -> Iterator[str]:
        """The same node by node, from the last: adds to `spans` and yields what the node makes.

        What `spans` holds then is what the nodes from there to the last one need.
        """
        for made, read, how in reversed(self._steps):
            if made in spans:
                inside = how.needed(spans[made], lengths[read[0]]) if how else spans[made]
                for name in read:
                    spans[name] = _hull([inside, *([spans[name]] if name in spans else [])])
            yield made

    def crops(self, span: Span, lengths: Mapping[str, int]) -> tuple[tuple[Span, ...], Span]:
        """Positions of the first tensors to cut out so that these of the last come out right.

        Every crop begins where the same output begins, so that outputs of the crops are outputs of
        the whole, moved. With several tensors to read, all kernels must keep lengths.

        Returns:
            A crop of every tensor of `starts`, and where the span lies in what is made of them.
        """
        needed = self.needed(span, lengths)
        begin = min(needed[name][0] // self.strides[name] for name in self.starts)
        end = max(-(-needed[name][1] // self.strides[name]) for name in self.starts)
        crops = []
        for name in self.starts:
            last = end * self.strides[name] if len(self.starts) > 1 else needed[name][1]
            crops.append((begin * self.strides[name], min(last, lengths[name])))
        return tuple(crops), (span[0] - begin, span[1] - begin)

    def crops_with_padding(self, span: Span) -> tuple[Span, ...]:
        """The same where padding is cut out too, and nothing but the span is made of the crops.

        Every tensor must have one reader, and nothing behind it but operators without a kernel.
        """
        readers = [self.readers(name)[0] for name in self.starts]
        return tuple(how.needed_with_padding(span) if how else span for how in readers)

    def readers(self, start: str) -> list[Kernel | None]:
        """The kernels of the nodes that read a tensor, None for one that has none."""
        return [how for _, read, how in self._steps if start in read]

    def _strides(self) -> dict[str, int]:
        strides = {self.stop: 1}
        for made, read, how in reversed(self._steps):
            if made not in strides:
                continue
            stride = strides[made] * (how.stride if how else 1)
            for name in read:
                if strides.setdefault(name, stride) != stride:
                    raise NotSpatialError(f"{name}: branches of unlike stride meet behind it")
        return strides


def _hull(spans: Sequence[Span]) -> Span:
    return min(first for first, _ in spans), max(last for _, last in spans)
