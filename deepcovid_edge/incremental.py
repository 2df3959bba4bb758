"""Judge a film again after a small change, computing only what the change alters.

The network runs in parts (see `division`). Of each part only those outputs are computed that the
change alters, from a crop of its input; they are pasted into the outputs of the unchanged film, of
which the next part's crop is cut. Nothing is left out: the result is that of the whole network, up
to the rounding of sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.division import Part, divide
from deepcovid_edge.graph import cut, read_graph
from deepcovid_edge.receptive import Box, Span

Runner: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""Runs a part: its input to its output, both of shape (N, ..., rows, columns)."""
_MAPS = "activation_maps"
_SAMPLES = 3


@dataclass(frozen=True)
class _Step:
    """What one part computes for one window.

    Attributes:
        crop: What is cut out of the part's input.
        changed: Which of its outputs are altered.
        inside: The same, as positions in what the crop becomes.
    """

    crop: Box
    changed: Box
    inside: Box

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the crop."""
        return tuple(last - first for first, last in self.crop)


@dataclass(frozen=True)
class Route:
    """A window, and what every part computes for it; no parts where it alters nothing."""

    box: Box
    steps: tuple[_Step, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Rows and columns of every crop, the last part's first: its crops cost the most."""
        return tuple(step.shape for step in reversed(self.steps))


class DividedNetwork:
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
        parts = divide(graph, _MAPS, size, _sample(windows))
        self._runners = [make_runner(cut(model, graph, part.start, part.stop)) for part in parts]
        self.routes = _routes(parts, size, windows)

    def begin(self, film: NDArray[np.uint8]) -> DividedFilm:
        """Compute every part of an unchanged film of shape (height, width)."""
        tensors: list[NDArray[Any]] = [film[None]]
        for run in self._runners:
            tensors.append(run(tensors[-1]))
        return DividedFilm(tensors, self._runners)


class DividedFilm:
    """A film of which every part is computed. Safe to use from several threads."""

    def __init__(self, tensors: list[NDArray[Any]], runners: Sequence[Runner]) -> None:
        self._tensors, self._runners = tensors, runners

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of the unchanged film, of shape (classes,)."""
        mean: NDArray[np.float32] = self._tensors[-1][0].mean(axis=(1, 2), dtype=np.float64)
        return mean.astype(np.float32)

    def judge(
        self, patches: Sequence[NDArray[np.uint8]], routes: Sequence[Route]
    ) -> NDArray[np.float32]:
        """Judge the film with one window changed, for several windows.

        Args:
            patches: The new pixels of each window.
            routes: The windows, of `DividedNetwork.routes`; those with like shapes share a run.

        Returns:
            Logits of shape (windows, classes).
        """
        logits = np.stack([self.logits] * len(routes))
        altering = [index for index, route in enumerate(routes) if route.steps]
        if not altering:
            return logits
        news: list[NDArray[Any]] = [patches[index] for index in altering]
        boxes = [routes[index].box for index in altering]
        for part in range(len(self._runners)):
            steps = [routes[index].steps[part] for index in altering]
            news = self._outputs(part, steps, news, boxes)
            boxes = [step.changed for step in steps]
        for index, new, box in zip(altering, news, boxes, strict=True):
            logits[index] += self._gain(new, box)
        return logits

    def _outputs(
        self, part: int, steps: Sequence[_Step], news: Sequence[NDArray[Any]], boxes: Sequence[Box]
    ) -> list[NDArray[Any]]:
        """What one part makes of the altered inputs of several windows; crops alike share a run."""
        base, outputs = self._tensors[part], list(news)
        for alike in _grouped([step.shape for step in steps]):
            inputs = np.concatenate([_at(base, steps[index].crop) for index in alike])
            for crop, index in zip(inputs, alike, strict=True):
                _paste(crop, steps[index].crop, news[index], boxes[index])
            for index, made in zip(alike, self._runners[part](inputs), strict=True):
                outputs[index] = _at(made, steps[index].inside)
        return outputs

    def _gain(self, maps: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
        """What the logits, the means of the maps, gain when a part of the maps is replaced."""
        whole = self._tensors[-1][0]
        before = _at(whole, box).sum(axis=(1, 2), dtype=np.float64)
        gain = maps.sum(axis=(1, 2), dtype=np.float64) - before
        mean: NDArray[np.float32] = (gain / whole[0].size).astype(np.float32)
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
        rows, columns = axes[0][window[0]], axes[1][window[1]]
        pairs = zip(rows, columns, strict=True) if rows and columns else ()
        steps = tuple(_Step(*zip(row, column, strict=True)) for row, column in pairs)
        routes.append(Route(window, steps))
    return routes


def _steps(
    parts: Sequence[Part], length: int, span: Span, axis: int
) -> list[tuple[Span, Span, Span]]:
    """Crop, altered outputs and their place in the crop for each part, along one axis."""
    steps = []
    for part in parts:
        chain = part.chains[axis]
        lengths = chain.lengths(length)
        span = chain.changed(span, lengths)[part.stop]
        if span[0] >= span[1]:
            return []
        crop = chain.crop(span, lengths)
        offset = crop[0] // chain.stride
        steps.append((crop, span, (span[0] - offset, span[1] - offset)))
        length = lengths[part.stop]
    return steps


def _at(tensor: NDArray[Any], box: Box) -> NDArray[Any]:
    """The rows and columns of a tensor that lie in a box."""
    (top, bottom), (left, right) = box
    return tensor[..., top:bottom, left:right]


def _paste(crop: NDArray[Any], place: Box, new: NDArray[Any], box: Box) -> None:
    """Write into a crop, which was cut at `place`, what is new in `box` as far as it lies there."""
    rows, columns = (_shared(*pair) for pair in zip(place, box, strict=True))
    _at(crop, _within(place, rows, columns))[...] = _at(new, _within(box, rows, columns))


def _shared(first: Span, second: Span) -> Span:
    return max(first[0], second[0]), min(first[1], second[1])


def _within(frame: Box, rows: Span, columns: Span) -> Box:
    """The same rows and columns, counted from the first of a frame."""
    (top, _), (left, _) = frame
    return (rows[0] - top, rows[1] - top), (columns[0] - left, columns[1] - left)
