"""Where to cut a network so that what a small change alters can be computed again, and little else.

Between two cuts a part runs on a crop: the inputs that the altered outputs are made of. A late cut
saves few operations, as all outputs are altered by then; an early one costs copies. The cuts taken
are those with the least estimated time, found by dynamic programming over all places where the
network is one tensor wide, or two: within a residual block its input is alive too. The idea of
recomputing only what an occlusion alters is Krypton's (Nakandala, Kumar and Papakonstantinou,
SIGMOD 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from deepcovid_edge.models.graph.reader import (
    FLOAT,
    Graph,
    Node,
    alive_behind,
    data_type,
    nodes_between,
)
from deepcovid_edge.models.graph.receptive_field import Box, Chain, Kernel, NotSpatialError, Span

_Needed: TypeAlias = list[list[dict[str, Span]]]
"""Rows and columns -> a dictionary for each window of what is needed of every tensor."""
_WIDEST = 2
"""Tensors that may be alive where the network is cut: a residual block's input and its inside."""

_COPY = 20.0
"""Multiplications that a core does while it copies a byte: about 100 against 5 billion a second."""
_CALL = 5e5
"""Multiplications that a core does while a part is called, for each window of a batch."""
_BYTES = 4.0
_FUSED = {"Relu", "Clip", "QuantizeLinear"}
"""Operators that a runtime joins to the one before them: no cut comes in between."""


@dataclass(frozen=True)
class Part:
    """A part of a network between two cuts.

    Attributes:
        rows: What it does along an image's height.
        columns: What it does along an image's width.
        padded: Whether its convolutions pad what they read. Where they need not, it is given the
            padding with its inputs, and computes nothing but what is altered.
    """

    rows: Chain
    columns: Chain
    padded: bool

    @property
    def starts(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return self.rows.starts

    @property
    def stop(self) -> str:
        """The tensor that it makes."""
        return self.rows.stop

    @property
    def chains(self) -> tuple[Chain, Chain]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def margins(self) -> tuple[int, ...]:
        """How much padding it is to be given with each of its inputs, all around."""
        if self.padded:
            return (0,) * len(self.starts)
        return tuple(
            max(
                max(how.before, how.after)
                for chain in self.chains
                for how in (*filter(None, chain.readers(start)), Kernel())
            )
            for start in self.starts
        )


def divide(graph: Graph, stop: str, size: tuple[int, int], windows: Sequence[Box]) -> list[Part]:
    """Divide a network into parts, for changes of these sizes.

    Args:
        graph: The network.
        stop: Its last tensor with rows and columns.
        size: Height and width of its input.
        windows: Rows and columns of some of the windows that will be changed.

    Returns:
        Parts from the input to `stop`, the fastest by estimate; one where nothing can be cut.

    Raises:
        NotSpatialError: The network is none of operators that map rows and columns.
    """
    network = _Network(graph, stop, size, windows)
    places = network.places()
    best: dict[_Place, tuple[float, list[Part]]] = {places[0]: (0.0, [])}
    for number, place in enumerate(places[1:], 1):
        ways = [
            (best[before][0] + cost, before)
            for before, cost in network.costs(place, places[:number])
            if before in best
        ]
        if ways:
            cost, before = min(ways, key=lambda way: way[0])
            best[place] = cost, [*best[before][1], network.part(before, place)]
    return best[places[-1]][1]


@dataclass(frozen=True)
class _Place:
    """Where a network may be cut.

    Attributes:
        node: The number of the node behind which the cut goes, -1 for the input.
        made: What that node makes.
        alive: The tensors that all nodes behind the cut are made of, `made` the last of them.
    """

    node: int
    made: str
    alive: tuple[str, ...]


class _Network:
    """A network that is to be divided: where it may be cut, and what a part between costs.

    Args:
        graph: The network.
        stop: Its last tensor with rows and columns.
        size: Height and width of its input.
        windows: Some of the windows that will be changed.
    """

    def __init__(
        self, graph: Graph, stop: str, size: tuple[int, int], windows: Sequence[Box]
    ) -> None:
        (self._start,), self._graph, self._stop = graph.inputs, graph, stop
        nodes = nodes_between(graph, [self._start], stop)
        self._work = _work(graph, nodes, self._start)
        self._nodes = [node for node in nodes if node.outputs[0] in self._work]
        self._chains = [Chain(graph, nodes, [self._start], stop, axis) for axis in (0, 1)]
        self._lengths = [
            chain.lengths({self._start: length})
            for chain, length in zip(self._chains, size, strict=True)
        ]
        self._changed = [
            [chain.changed({self._start: span}, lengths) for span in {own[axis] for own in windows}]
            for axis, (chain, lengths) in enumerate(zip(self._chains, self._lengths, strict=True))
        ]
        strides = self._chains[0].strides
        self._moves = {name: strides[self._start] // own for name, own in strides.items()}

    def places(self) -> list[_Place]:
        """Behind the nodes where no more than two tensors are alive, from the input to the end."""
        places = [_Place(-1, self._start, (self._start,))]
        walked = alive_behind(self._nodes, self._start, self._stop)
        for index, (node, alive) in enumerate(walked):
            made = node.outputs[0]
            if made in alive and len(alive) <= _WIDEST and self._may_cut(node):
                places.append(_Place(index, made, alive))
        if places[-1].made != self._stop:
            places.append(_Place(len(self._nodes) - 1, self._stop, (self._stop,)))
        return places

    def part(self, before: _Place, place: _Place) -> Part:
        """The part between two places: it makes what is alive at the second, not at the first."""
        nodes = nodes_between(self._graph, before.alive, place.made)
        read = {name for node in nodes for name in node.inputs}
        starts = [name for name in before.alive if name in read]
        rows, columns = (Chain(self._graph, nodes, starts, place.made, axis) for axis in (0, 1))
        varying = [node for node in nodes if node.outputs[0] in self._work]
        return Part(rows, columns, padded=not self._takes_padding(varying, starts))

    def costs(self, place: _Place, earlier: Sequence[_Place]) -> Iterator[tuple[_Place, float]]:
        """Estimated time of the parts that end at a place, in multiplications for a mean window."""
        ends = {before.node + 1: before for before in earlier}
        needed = [[{place.made: own[place.made]} for own in axis] for axis in self._changed]
        traces = [
            chain.trace(spans, lengths)
            for chain, lengths, axis in zip(self._chains, self._lengths, needed, strict=True)
            for spans in axis
        ]
        between: list[Node] = []
        backwards = zip(range(len(self._nodes) - 1, -1, -1), zip(*traces, strict=True), strict=True)
        for number, (made, *_) in backwards:
            if made in needed[0][0]:
                between.append(self._nodes[number])
            before = ends.get(number)
            if before and {*place.alive[:-1]} <= {*before.alive}:
                cost = self._cost(before, place, between, needed)
                if cost is not None:
                    yield before, cost

    def _cost(
        self, before: _Place, place: _Place, between: Sequence[Node], needed: _Needed
    ) -> float | None:
        """The same of one part, of these nodes; None where its crops would not fit together."""
        starts = [name for name in before.alive if name in needed[0][0]]
        work = {node.outputs[0]: self._work[node.outputs[0]].operations for node in between}
        if self._takes_padding(between, starts):
            done = prod(_lengths(needed, place.made)) * sum(work.values())
        elif len(starts) > 1 and not self._keep_lengths(between):
            return None
        else:
            crop = (
                max(length * self._moves[name] for name, length in zip(starts, own, strict=True))
                for own in zip(*(_lengths(needed, name) for name in starts), strict=True)
            )
            done = prod(crop) * sum(each / self._moves[name] ** 2 for name, each in work.items())
        copied = sum(
            prod(_lengths(needed, name)) * self._work[name].channels
            for name in (*starts, place.made)
        )
        return done + copied * _BYTES * _COPY + _CALL

    def _takes_padding(self, nodes: Sequence[Node], starts: Sequence[str]) -> bool:
        """Whether padding in a part can come with what it reads: it is zeros beside a start."""
        for node in nodes:
            if node.outputs[0] in self._chains[0].kernels and not (
                node.operator == "Conv" and node.inputs[0] in starts
            ):
                return False
        return all(
            sum(name in node.inputs for node in nodes) == 1
            and name != self._start
            and data_type(self._graph, name) == FLOAT
            for name in starts
        )

    def _keep_lengths(self, nodes: Sequence[Node]) -> bool:
        made = [node.outputs[0] for node in nodes]
        return all(
            chain.kernels[name].keeps_length
            for chain in self._chains
            for name in made
            if name in chain.kernels
        )

    def _may_cut(self, node: Node) -> bool:
        """Whether a cut behind a node leaves together what a runtime computes together."""
        made = node.outputs[0]
        readers = {reader.operator for reader in self._nodes if made in reader.inputs}
        joined = readers & _FUSED or readers == {"Add"}
        return node.operator != "DequantizeLinear" and not joined


def _lengths(needed: _Needed, tensor: str) -> list[float]:
    """Rows and columns that are needed of a tensor, for a mean window."""
    return [
        sum(max(spans[tensor][1] - spans[tensor][0], 0) for spans in axis) / len(axis)
        for axis in needed
    ]


@dataclass(frozen=True)
class _Work:
    """What a tensor costs a position: its channels, and the multiplications that make them."""

    channels: int
    operations: float


def _work(graph: Graph, nodes: Sequence[Node], start: str) -> dict[str, _Work]:
    found = {start: _Work(1, 0.0)}
    for node in nodes:
        read = [found[name].channels for name in node.inputs if name in found]
        if not read:
            continue
        channels, each = max(read), 1.0
        if node.operator == "Concat":
            channels = sum(read)
        elif node.operator == "Conv":
            channels, *kernel = _shape(graph, node.inputs[1])
            each = float(prod(kernel))
        elif node.operator == "Mul" and channels == 1:  # the image becomes the planes of the input
            channels = max(
                1, *(prod(_shape(graph, name)) for name in node.inputs if name not in found)
            )
        found[node.outputs[0]] = _Work(channels, channels * (each + _BYTES * _COPY / 4))
    return found


def _shape(graph: Graph, tensor: str) -> tuple[int, ...]:
    """Shape of a constant, also where it is stored in another precision and then converted."""
    while tensor not in graph.constants:
        maker = next((node for node in graph.nodes if tensor in node.outputs), None)
        if maker is None or not maker.inputs:
            raise NotSpatialError(f"{tensor}: not a constant")
        tensor = maker.inputs[0]
    return graph.constants[tensor].shape
