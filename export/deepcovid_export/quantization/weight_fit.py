"""INT8 weights fitted to the output of each layer instead of rounded one by one.

Layer by layer, in the graph's order, on calibration images:

1. The weights are fitted so that the layer, on its input in the quantised network, gives the output
   of the FP32 layer on its own input. This undoes part of the error of earlier layers. It is a
   ridge regression towards the old weights (the asymmetric calibration of Li et al. 2025, GPTAQ,
   in closed form).
2. They are rounded column by column, and the columns that are not yet rounded compensate the error
   of each rounding (Frantar et al. 2023, GPTQ, algorithm 1; columns by falling energy).
3. The bias takes the remaining mean error (Nagel et al. 2019, Data-Free Quantization Through Weight
   Equalization and Bias Correction, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx
import scipy.linalg
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deepcovid_edge.device.progress import counted
from deepcovid_export.onnx_export.graphs import constants_of, copy_model, find_layers
from deepcovid_export.quantization.int8_graph import set_weights
from deepcovid_export.quantization.stepwise import Stepwise, Tensor

Array = NDArray[np.float64]
RIDGE = 1.0
"""Strength of the pull towards the old weights, over the mean energy of the inputs."""
_LEAST_VARIANCE = 0.01
"""Of the inputs, over their mean energy: less is lost in the rounding of float32 sums."""
_DAMPING = 0.01
"""GPTQ's damping: added to the diagonal, over its mean."""
_BLOCK = 128
"""Columns whose errors are passed on in one product, as in GPTQ."""
_SAMPLES, _SAMPLES_AN_INPUT = 8192, 4
"""Places of the images that a layer is fitted on: the first, or the second for each input."""


@dataclass(frozen=True)
class _Layer:
    """A convolution that can be fitted: one group, no dilation."""

    node: onnx.NodeProto
    kernel: tuple[int, ...]
    inputs: int
    strides: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, shape: Sequence[int]) -> _Layer | None:
        found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        plain = found.get("group", 1) == 1 and set(found.get("dilations", [1])) == {1}
        padded = found.get("auto_pad", b"NOTSET") == b"NOTSET"
        if len(shape) != 4 or not (plain and padded):
            return None
        strides, pads = found.get("strides", [1, 1]), found.get("pads", [0] * 4)
        kernel = tuple(shape[2:])
        return cls(node, kernel, int(np.prod(shape[1:])), tuple(strides), tuple(pads))

    def seen(self, tensor: Tensor, share: float, seed: int) -> Tensor:
        """What the kernel sees at some places, of shape (places, inputs).

        Args:
            tensor: The layer's input, of shape (N, channels, h, w).
            share: Share of its places.
            seed: The same seed chooses the same places.
        """
        top, left, bottom, right = self.pads
        padded = np.pad(tensor, ((0, 0), (0, 0), (top, bottom), (left, right)))
        views = sliding_window_view(padded, self.kernel, axis=(2, 3))
        views = views[:, :, :: self.strides[0], :: self.strides[1]]
        count, _, rows, columns = views.shape[:4]
        places = count * rows * columns
        chosen = np.random.default_rng(seed).permutation(places)[: max(1, round(share * places))]
        image, row, column = np.unravel_index(np.sort(chosen), (count, rows, columns))
        return views[image, :, row, column].reshape(len(chosen), -1)


class _Moments:
    """Inputs of a layer: x in the FP32 network, y in the quantised one."""

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        self._x.append(x)
        self._y.append(y)

    def means(self) -> tuple[Array, Array, Array, Array]:
        """Means over the places: of y y^T, x y^T, x and y."""
        x, y = np.concatenate(self._x), np.concatenate(self._y)
        products = (part.T @ y / np.float32(len(y)) for part in (y, x))
        yy, xy = (product.astype(np.float64) for product in products)
        return yy, xy, x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)


def fit_weights(
    model: onnx.ModelProto,
    layers: Collection[str],
    lower: Callable[[onnx.ModelProto], onnx.ModelProto],
    images: Sequence[NDArray[np.uint8]],
    steps: int,
) -> onnx.ModelProto:
    """A copy of a network with weights that keep its output when they are quantised.

    Args:
        model: The FP32 network.
        layers: Layers that `lower` writes in INT8, by name; their new weights lie on its grid.
        lower: Writes a network of the same nodes in INT8.
        images: Batches of prepared images, of shape (N, h, w).
        steps: Of the grid that `lower` writes, on each side of zero.
    """
    fitted = copy_model(model)
    constants = constants_of(fitted.graph)
    variant = lower(model)
    reads = {node.name: node.input[0] for node in variant.graph.node}
    before, after = Stepwise(images), Stepwise(images)
    groups = list(_by_input(fitted, layers))
    for tensor, group in counted(groups, len(groups), "layers to fit"):
        source = reads[group[0].node.name]
        pairs = zip(before.reach(model, tensor), after.reach(variant, source), strict=True)
        for layer, seen in zip(group, _moments(group, pairs, len(images)), strict=True):
            set_weights(variant, layer.node.name, steps, *_fit(layer, seen, constants, steps))
    return fitted


def _by_input(
    model: onnx.ModelProto, layers: Collection[str]
) -> Iterator[tuple[str, list[_Layer]]]:
    """Layers in the graph's order, neighbours of one input together."""
    shapes = {item.name: item.dims for item in model.graph.initializer}
    found = (
        _Layer.of(node, shapes[node.input[1]])
        for name, node in find_layers(model).items()
        if name in layers
    )
    for tensor, group in groupby(filter(None, found), key=lambda layer: layer.node.input[0]):
        yield tensor, list(group)


def _moments(
    group: Sequence[_Layer], pairs: Iterable[tuple[Tensor, Tensor]], batches: int
) -> list[_Moments]:
    """Inputs of the layers that read one tensor, in the FP32 and in the quantised network."""
    totals = [_Moments() for _ in group]
    for seed, (x, y) in enumerate(pairs):
        for layer, total in zip(group, totals, strict=True):
            places = x.shape[0] * x.shape[2] * x.shape[3] / np.prod(layer.strides) * batches
            share = min(1.0, max(_SAMPLES, _SAMPLES_AN_INPUT * layer.inputs) / places)
            total.add(layer.seen(x, share, seed), layer.seen(y, share, seed))
    return totals


def _fit(
    layer: _Layer, seen: _Moments, constants: dict[str, onnx.TensorProto], steps: int
) -> list[NDArray[np.float32]]:
    """Fit a layer's constants in place, and return them."""
    weights = numpy_helper.to_array(constants[layer.node.input[1]])
    was = weights.reshape(len(weights), -1).astype(np.float64)
    yy, xy, x, y = seen.means()
    has_bias = len(layer.node.input) > 2
    least = _LEAST_VARIANCE * float(np.mean(np.diag(yy)))
    if has_bias:  # it corrects the means
        moved = _solve_ridge(was, yy - np.outer(y, y), xy - np.outer(x, y), least)
    else:
        moved = _solve_ridge(was, yy, xy, least)
    kept = on_grid(moved, yy, steps)
    changed = [kept.reshape(weights.shape)]
    if has_bias:
        bias = numpy_helper.to_array(constants[layer.node.input[2]])
        changed.append(bias + was @ x - kept @ y)
    stored = [values.astype(np.float32) for values in changed]
    for name, values in zip(layer.node.input[1:], stored, strict=True):
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    return stored


def _solve_ridge(weights: Array, yy: Array, xy: Array, least: float) -> Array:
    """The W that makes |weights x - W y|^2 + ridge |W - weights|^2 smallest.

    Args:
        weights: Of shape (outputs, inputs).
        yy: Mean products of y with itself.
        xy: Mean products of x with y.
        least: The smallest mean of the diagonal of `yy` that exceeds rounding.
    """
    ridge = RIDGE * max(float(np.mean(np.diag(yy))), least)
    if not ridge:  # the layer's inputs are zero
        return weights
    wanted = weights @ xy + ridge * weights
    # yy + ridge is symmetric: the transposed equation has it on the left.
    found: Array = scipy.linalg.solve(_add_to_diagonal(yy, ridge), wanted.T, assume_a="pos").T
    return found


def _add_to_diagonal(matrix: Array, by: float) -> Array:
    """A matrix with something added to its diagonal."""
    raised: Array = matrix.copy()
    raised.flat[:: len(raised) + 1] += by
    return raised


def _upper_of_inverse(matrix: Array) -> Array:
    """The upper triangle U with U^T U the inverse of a symmetric, positive definite matrix.

    With the order turned round, L L^T the matrix and inv(L) lower: one factorisation and one
    triangle to invert, where an inverse and its factorisation would take four times as long.
    """
    turned = scipy.linalg.cholesky(matrix[::-1, ::-1], lower=True)
    inverse, failed = scipy.linalg.lapack.dtrtri(turned, lower=1)
    if failed:
        raise np.linalg.LinAlgError("singular")
    upper: Array = inverse[::-1, ::-1]
    return upper


def on_grid(weights: Array, gram: Array, steps: int) -> Array:
    """Round weights to a grid with the least error of the layer's output.

    Args:
        weights: Of shape (outputs, inputs).
        gram: Mean of the products of the inputs with each other, of shape (inputs, inputs).
        steps: Of the grid on each side of zero.

    Returns:
        Weights of the same shape: in each row whole multiples of a step. The largest magnitude
        stays where it is, so that a quantiser finds the same steps.
    """
    peaks = np.abs(weights).max(axis=1, keepdims=True)
    step = np.where(peaks > 0, peaks, 1.0) / steps
    scaled = weights / step
    energy = np.diag(gram)
    order = np.argsort(-energy, kind="stable")
    damped = _add_to_diagonal(gram[np.ix_(order, order)], _DAMPING * float(np.mean(energy) or 1.0))
    spread = np.ascontiguousarray(_upper_of_inverse(damped))
    # Columns lie in rows here: each is read and written at one place of the memory.
    left = np.ascontiguousarray(scaled.T[order])
    pinned = np.abs(weights.T[order]) == peaks[:, 0]
    rounded = np.where(pinned, np.sign(left) * steps, 0.0)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = np.empty((stop - start, left.shape[1]))
        for column in range(start, stop):
            value = left[column]
            nearest = np.clip(np.rint(value), -steps, steps)
            rounded[column] = np.where(pinned[column], rounded[column], nearest)
            error = (value - rounded[column]) / spread[column, column]
            left[column:stop] -= np.outer(spread[column, column:stop], error)
            errors[column - start] = error
        left[stop:] -= spread[start:stop, stop:].T @ errors
    kept = np.empty_like(weights)
    kept[:, order] = rounded.T
    return kept * step
