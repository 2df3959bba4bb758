"""Classify an image again after a small change, computing only what the change alters.

The network runs in parts (see `partition`). Of each part only those outputs are computed that the
change alters, from a crop of its input; they are pasted into the outputs of the unchanged image, of
which the next part's crop is cut. Nothing is left out: the result is that of the whole network, up
to the rounding of sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.heatmaps.partition import Part, divide
from deepcovid_edge.models.graph.reader import cut, read_graph
from deepcovid_edge.models.graph.receptive_field import Box, Span

Runner: TypeAlias = Callable[[Sequence[NDArray[Any]]], NDArray[Any]]
"""Runs a part: its inputs to its output, all of shape (N, ..., rows, columns)."""
_New: TypeAlias = tuple[NDArray[Any], Box]
"""What is altered of a tensor, of shape (..., rows, columns), and where it lies."""
_MAPS = "activation_maps"
_SAMPLES = 3


@dataclass(frozen=True)
class _Step:
    """What one part computes for one window.

    Attributes:
        crops: What is cut out of each tensor that the part reads.
        changed: Which of its outputs are altered.
        inside: The same, as positions in what the crops become.
    """

    crops: tuple[Box, ...]
    changed: Box
    inside: Box

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Rows and columns of the crops."""
        return tuple(_shape(crop) for crop in self.crops)


@dataclass(frozen=True)
class Route:
    """A window, and what every part computes for it."""

    box: Box
    steps: tuple[_Step, ...]

    @property
    def shapes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Rows and columns of every crop, the last part's first: its crops cost the most."""
        return tuple(step.shapes for step in reversed(self.steps))


class PartitionedNetwork:
    """A network in parts, for windows of one layout.

    Args:
        model: The content of the .onnx file.
        size: Height and width of its input.
        windows: Every window that may be changed.
        make_runner: Makes a part, given as a model of its own, ready to run.

    Attributes:
        routes: What every part computes for each window.

    Raises:
        NotSpatialError: The network cannot be divided.
    """

    def __init__(
        self,
        model: memoryview,
        size: tuple[int, int],
        windows: Sequence[Box],
        make_runner: Callable[[bytes], Runner],
    ) -> None:
        graph = read_graph(model)
        (self._image,) = graph.inputs
        self._parts = divide(graph, _MAPS, size, _sample(windows))
        self._runners = [
            make_runner(cut(model, graph, part.starts, part.stop, padded=part.padded))
            for part in self._parts
        ]
        self._margins: dict[str, int] = defaultdict(int)
        for part in self._parts:
            for name, margin in zip(part.starts, part.margins, strict=True):
                self._margins[name] = max(self._margins[name], margin)
        self.routes = _routes(self._parts, size, windows)

    def begin(self, image: NDArray[np.uint8]) -> PartitionedImage:
        """Compute every part of an unchanged image of shape (height, width)."""
        whole = {self._image: _Framed(image[None], self._margins[self._image])}
        for part, run in zip(self._parts, self._runners, strict=True):
            read = zip(part.starts, part.margins, strict=True)
            made = run([whole[name].with_margin(margin) for name, margin in read])
            whole[part.stop] = _Framed(made, self._margins[part.stop])
        return PartitionedImage(whole, self._parts, self._runners)


class _Framed:
    """A tensor within a margin of zeros, so that boxes may reach beyond it.

    Args:
        tensor: Of shape (..., rows, columns).
        margin: Zeros on each side.
    """

    def __init__(self, tensor: NDArray[Any], margin: int) -> None:
        around = [(0, 0)] * (tensor.ndim - 2) + [(margin, margin)] * 2
        self._framed = np.pad(tensor, around) if margin else tensor
        self._shape, self._margin = tensor.shape[-2:], margin

    def at(self, box: Box) -> NDArray[Any]:
        """The rows and columns that lie in a box."""
        (top, bottom), (left, right) = box
        return _at(
            self._framed,
            (
                (top + self._margin, bottom + self._margin),
                (left + self._margin, right + self._margin),
            ),
        )

    def with_margin(self, margin: int) -> NDArray[Any]:
        """All of it, with this number of its zeros on each side."""
        rows, columns = self._shape
        return self.at(((-margin, rows + margin), (-margin, columns + margin)))


class PartitionedImage:
    """An image of which every part is computed. Safe to use from several threads."""

    def __init__(
        self, whole: dict[str, _Framed], parts: Sequence[Part], runners: Sequence[Runner]
    ) -> None:
        self._whole, self._parts, self._runners = whole, parts, runners
        self._maps: NDArray[np.float32] = whole[parts[-1].stop].with_margin(0)[0]

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of the unchanged image, of shape (classes,)."""
        mean: NDArray[np.float32] = self._maps.mean(axis=(1, 2), dtype=np.float64)
        return mean.astype(np.float32)

    def classify(
        self, patches: Sequence[NDArray[np.uint8]], routes: Sequence[Route]
    ) -> NDArray[np.float32]:
        """Classify the image with one window changed, for several windows.

        Args:
            patches: The new pixels of each window.
            routes: The windows, of `PartitionedNetwork.routes`; those with like shapes share a run.

        Returns:
            Logits of shape (windows, classes).
        """
        image = self._parts[0].starts[0]
        news: dict[str, Sequence[_New]] = {
            image: [(patch, route.box) for patch, route in zip(patches, routes, strict=True)]
        }
        for number, part in enumerate(self._parts):
            news[part.stop] = self._outputs(number, [route.steps[number] for route in routes], news)
        gains = [self._gain(*new) for new in news[self._parts[-1].stop]]
        return self.logits + np.stack(gains)

    def _outputs(
        self, number: int, steps: Sequence[_Step], news: Mapping[str, Sequence[_New]]
    ) -> list[_New]:
        """What one part makes for several windows; crops of like shapes share a run."""
        outputs: dict[int, _New] = {}
        starts = self._parts[number].starts
        for alike in _grouped([step.shapes for step in steps]):
            crops = [
                self._crops(
                    name, [(steps[index].crops[place], news[name][index]) for index in alike]
                )
                for place, name in enumerate(starts)
            ]
            for made, index in zip(self._runners[number](crops), alike, strict=True):
                outputs[index] = _at(made, steps[index].inside), steps[index].changed
        return [outputs[index] for index in range(len(steps))]

    def _crops(self, name: str, wanted: Sequence[tuple[Box, _New]]) -> NDArray[Any]:
        """Cut boxes of one shape out of a tensor and write into each what is new there."""
        whole = self._whole[name]
        crops = np.concatenate([whole.at(box) for box, _ in wanted])
        for crop, (box, new) in zip(crops, wanted, strict=True):
            _paste(crop, box, *new)
        return crops

    def _gain(self, maps: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
        """What the logits, the means of the maps, gain when a part of the maps is replaced."""
        before = _at(self._maps, box).sum(axis=(1, 2), dtype=np.float64)
        gain = maps.sum(axis=(1, 2), dtype=np.float64) - before
        mean: NDArray[np.float32] = (gain / self._maps[0].size).astype(np.float32)
        return mean


def _grouped(keys: Sequence[Hashable]) -> Iterable[list[int]]:
    """The positions of equal keys together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups.values()


def _sample(windows: Sequence[Box]) -> list[Box]:
    """Some windows from the first to the last: the network is divided for their mean."""
    chosen = np.linspace(0, len(windows) - 1, _SAMPLES + 2).round().astype(int)
    return [windows[index] for index in sorted(set(chosen[:-1].tolist()))]


def _routes(parts: Sequence[Part], size: tuple[int, int], windows: Sequence[Box]) -> list[Route]:
    axes = []
    for axis in (0, 1):
        spans = {window[axis] for window in windows}
        axes.append({span: _steps(parts, size[axis], span, axis) for span in spans})
    routes = []
    for window in windows:
        pairs = zip(axes[0][window[0]], axes[1][window[1]], strict=True)
        steps = [
            _Step(
                tuple(zip(row.crops, column.crops, strict=True)),
                (row.changed, column.changed),
                (row.inside, column.inside),
            )
            for row, column in pairs
        ]
        routes.append(Route(window, tuple(steps)))
    return routes


class _AxisStep(NamedTuple):
    """A `_Step` along one axis."""

    crops: tuple[Span, ...]
    changed: Span
    inside: Span


def _steps(parts: Sequence[Part], length: int, span: Span, axis: int) -> list[_AxisStep]:
    """What each part computes along one axis for a change of these positions of the image."""
    (image,) = parts[0].starts
    spans, lengths = {image: span}, {image: length}
    steps = []
    for part in parts:
        chain = part.chains[axis]
        inner = chain.lengths({name: lengths[name] for name in part.starts})
        found = chain.changed({name: spans[name] for name in part.starts}, inner)[part.stop]
        lengths[part.stop] = inner[part.stop]
        spans[part.stop] = changed = _not_empty(found, inner[part.stop])
        if part.padded:
            crops, inside = chain.crops(changed, inner)
            steps.append(_AxisStep(crops, changed, inside))
        else:
            inside = 0, changed[1] - changed[0]
            steps.append(_AxisStep(chain.crops_with_padding(changed), changed, inside))
    return steps


def _not_empty(span: Span, length: int) -> Span:
    """A change that alters nothing is followed as if it altered one position."""
    first = min(span[0], length - 1)
    return first, max(span[1], first + 1)


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(last - first for first, last in box)


def _at(tensor: NDArray[Any], box: Box) -> NDArray[Any]:
    """The rows and columns of a tensor that lie in a box."""
    (top, bottom), (left, right) = box
    return tensor[..., top:bottom, left:right]


def _paste(crop: NDArray[Any], place: Box, new: NDArray[Any], box: Box) -> None:
    """Write into a crop, which was cut at `place`, what is new in `box` as far as it lies there."""
    rows, columns = (_shared(*pair) for pair in zip(place, box, strict=True))
    if rows[0] < rows[1] and columns[0] < columns[1]:
        _at(crop, _within(place, rows, columns))[...] = _at(new, _within(box, rows, columns))


def _shared(first: Span, second: Span) -> Span:
    return max(first[0], second[0]), min(first[1], second[1])


def _within(frame: Box, rows: Span, columns: Span) -> Box:
    """The same rows and columns, counted from the first of a frame."""
    (top, _), (left, _) = frame
    return (rows[0] - top, rows[1] - top), (columns[0] - left, columns[1] - left)
