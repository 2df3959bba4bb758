"""The class activation map of an image at five positions, averaged.

A cell of an activation map is wide, 17 pixels of 224 for SqueezeNet 1.1, and pooling with strides
makes its value depend on where an opacity lies within it (Zhang, "Making Convolutional Networks
Shift-Invariant Again", ICML 2019). So the image is moved by half a cell to each side,
classified again, and each map is moved back before all are averaged: test-time augmentation, as
`aug_smooth` of pytorch-grad-cam, with shifts.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.heatmaps.heatmap import AVERAGED, HeatMap, of_activation
from deepcovid_edge.manifest import InputSpec

_DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Down and across, in half cells."""
_Number = TypeVar("_Number", bound=np.generic)


def averaged_map(
    backend: Backend, image: NDArray[np.uint8], class_map: NDArray[np.float32]
) -> HeatMap:
    """The averaged heat map of an image: four more inferences.

    Args:
        backend: The loaded model, which gives activation maps.
        image: The model input, of shape (height, width).
        class_map: The positive class's activation map of the image itself, of shape (h, w).
    """
    four = moved_inputs(image, class_map.shape)
    found = backend.infer(four, activation_maps=True).activation_maps
    others = np.asarray(found, np.float32)[:, backend.manifest.positive_index]
    return of_averaged(np.stack([class_map, *others]), backend.manifest.input)


def moved_inputs(image: NDArray[np.uint8], cells: tuple[int, ...]) -> NDArray[np.uint8]:
    """The image at the four other positions; its border is repeated where nothing is known.

    Args:
        image: A model input, of shape (height, width).
        cells: Rows and columns of the network's activation map.

    Returns:
        Of shape (4, height, width).
    """
    return np.stack([_moved(image, offset) for offset in _offsets(image.shape, cells)])


def of_averaged(class_maps: NDArray[np.float32], spec: InputSpec) -> HeatMap:
    """The heat map of one class from its maps at five positions.

    Args:
        class_maps: The positive class's activation maps, of shape (5, h, w): of the image itself,
            and of the four others as `moved_inputs` gives them.
        spec: The network's input.
    """
    own, *others = (of_activation(one, spec).values for one in class_maps)
    offsets = _offsets(own.shape, class_maps.shape[1:])
    back = [
        _moved(one, (-down, -right)) for one, (down, right) in zip(others, offsets, strict=True)
    ]
    return HeatMap(AVERAGED, np.mean([own, *back], axis=0, dtype=np.float32), class_maps)


def _offsets(shape: tuple[int, ...], cells: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pixels down and to the right, of each copy."""
    down, right = (round(length / count / 2) for length, count in zip(shape, cells, strict=True))
    return [(rows * down, columns * right) for rows, columns in _DIRECTIONS]


def _moved(image: NDArray[_Number], offset: tuple[int, int]) -> NDArray[_Number]:
    places = (
        np.clip(np.arange(length) - step, 0, length - 1)
        for length, step in zip(image.shape, offset, strict=True)
    )
    return image[np.ix_(*places)]
