"""Where to cut a network so that what a small change alters can be computed again, and little else.

Between two cuts a part runs on a crop: the inputs that the altered outputs are made of. A late cut
saves few operations, as all outputs are altered by then; an early one costs copies. The cuts taken
are those with the least estimated time, found by dynamic programming over all places where the
network is one tensor wide. The idea of recomputing only what an occlusion alters is Krypton's
(Nakandala, Kumar and Papakonstantinou, SIGMOD 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from deepcovid_edge.graph import Graph, Node, nodes_between, varying
from deepcovid_edge.receptive import Box, Chain, NotSpatialError

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
        start: The tensor that it reads.
        stop: The tensor that it makes.
        rows: What it does along a film's height.
        columns: What it does along a film's width.
    """

    start: str
    stop: str
    rows: Chain
    columns: Chain

    @property
    def chains(self) -> tuple[Chain, Chain]:
        """Rows and columns."""
        return self.rows, self.columns


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
    places = _places(graph, stop)
    costs = _costs(graph, places, size, windows)
    best: dict[str, tuple[float, list[str]]] = {places[0]: (0.0, [places[0]])}
    for index, place in enumerate(places[1:], 1):
        ways = [
            (best[before][0] + costs[before, place], [*best[before][1], place])
            for before in places[:index]
        ]
        best[place] = min(ways, key=lambda way: way[0])
    return [_part(graph, *pair) for pair in pairwise(best[places[-1]][1])]


def _part(graph: Graph, start: str, stop: str) -> Part:
    nodes = nodes_between(graph, start, stop)
    rows, columns = (Chain(graph, nodes, start, stop, axis) for axis in (0, 1))
    return Part(start, stop, rows, columns)


def _places(graph: Graph, stop: str) -> list[str]:
    """Tensors through which everything passes, from the input to `stop`."""
    (start,) = graph.inputs
    nodes = nodes_between(graph, start, stop)
    depends = varying(graph, [start])
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    last_use[stop] = len(nodes)
    alive, places = {start}, [start]
    for index, node in enumerate(nodes):
        if node.outputs[0] not in depends:
            continue
        alive = {name for name in (*alive, node.outputs[0]) if last_use.get(name, -1) > index}
        if alive == {node.outputs[0]} and _may_cut(nodes, node):
            places.append(node.outputs[0])
    return places if places[-1] == stop else [*places, stop]


def _may_cut(nodes: Sequence[Node], node: Node) -> bool:
    """Whether a cut behind a node leaves together what a runtime computes together."""
    if node.operator == "DequantizeLinear":
        return False
    readers = [reader.operator for reader in nodes if node.outputs[0] in reader.inputs]
    return not _FUSED & set(readers)


def _costs(
    graph: Graph, places: Sequence[str], size: tuple[int, int], windows: Sequence[Box]
) -> dict[tuple[str, str], float]:
    """Estimated time of the part between every two places, in multiplications for one window.

    A part computes of each of its tensors what the altered positions of its last are made of.
    """
    whole = _part(graph, places[0], places[-1])
    nodes = nodes_between(graph, places[0], places[-1])
    work = _work(graph, nodes, places[0])
    order = [node.outputs[0] for node in nodes if node.outputs[0] in work]
    costs = {}
    for number, stop in enumerate(places):
        areas = _areas(whole, stop, size, windows)
        each = [areas.get(name, 0.0) * work[name].operations for name in order]
        done = dict(zip(order, accumulate(each), strict=True))
        for start in places[:number]:
            copied = areas[start] * work[start].channels + areas[stop] * work[stop].channels
            spent = done[stop] - done.get(start, 0.0)
            costs[start, stop] = spent + copied * _BYTES * _COPY + _CALL
    return costs


def _areas(
    whole: Part, stop: str, size: tuple[int, int], windows: Sequence[Box]
) -> dict[str, float]:
    """How many positions of every tensor `stop`'s altered ones are made of, for a mean window."""
    means = []
    for axis, chain in enumerate(whole.chains):
        lengths = chain.lengths(size[axis])
        spans = {window[axis] for window in windows}
        totals: dict[str, float] = {}
        for span in spans:
            changed = chain.changed(span, lengths)[stop]
            for name, (first, last) in chain.needed(changed, lengths, stop).items():
                totals[name] = totals.get(name, 0.0) + max(last - first, 0) / len(spans)
        means.append(totals)
    return {name: length * means[1][name] for name, length in means[0].items()}


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
            each = float(_product(kernel))
        elif node.operator == "Mul" and channels == 1:  # the film becomes the planes of the input
            channels = max(
                1, *(_product(_shape(graph, name)) for name in node.inputs if name not in found)
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


def _product(values: Iterable[int]) -> int:
    product = 1
    for value in values:
        product *= value
    return product
