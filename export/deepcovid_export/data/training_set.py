"""Images for torch, read and prepared by the runtime's own functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.device.progress import counted
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_export.data.augment import (
    augment_with_mask,
    hide_centre,
    hides_lungs,
    square_spec,
)
from deepcovid_export.evaluation.boxes import Mask, cells_of, mask_of
from deepcovid_export.recipe import Recipe

NO_CLASS = -1
"""Target of an image that belongs to no class for certain: `likely` says what is known."""


class Sample(NamedTuple):
    """One image, or a batch of them with one more axis in front.

    Attributes:
        pixels: Prepared image of shape (H, W), uint8.
        target: Class index, or `NO_CLASS`.
        likely: Probability of each class, of shape (classes,); read where there is no class.
        grid: Share of each cell of the activation map that lies in a box, of shape (h, w); NaN
            where no reader drew boxes.
    """

    pixels: Tensor
    target: Tensor
    likely: Tensor
    grid: Tensor


@dataclass(frozen=True)
class _Square:
    """An image as `AugmentSettings.square` keeps it, and the shape that it had."""

    radiograph: Radiograph
    shape: tuple[int, ...]


class ImageDataset(Dataset[Sample]):
    """Images, prepared; changed at random in training.

    Args:
        images: Images, in their order.
        recipe: The recipe.
        training: Whether images are changed.

    Attributes:
        order: Positions in `images` of the samples.
        epoch: Seeds the changes, with the sample's number.
        input: Shape of the prepared images.
        cells: Rows and columns of the activation map.
    """

    def __init__(self, images: Sequence[LabelledImage], recipe: Recipe, *, training: bool) -> None:
        self.images = list(images)
        self.recipe = recipe
        self.training = training
        self.order: Sequence[int] = range(len(self.images))
        self.epoch = 0
        self.input = recipe.input
        self.cells = (1, 1)
        classes = [recipe.class_of(image.label) for image in images]
        self.targets = [NO_CLASS if index is None else index for index in classes]
        self._boxed = {image.source for image in images if image.boxes}
        self._side = min(recipe.input.height, recipe.input.width)
        kept = training and recipe.augment.square
        self._squares = self._read_squares() if kept else {}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Sample:
        place = self.order[number]
        if not self.training:
            return self._sample(place, prepare(self._read(place), self.input))
        draw = np.random.default_rng([self.recipe.fit.seed, self.epoch, number])
        radiograph, mask = self._start(place)
        how = self.recipe.augment
        changed, mask = augment_with_mask(radiograph, mask, how, self._side, draw)
        pixels = prepare(changed, self.input)
        if hides_lungs(how, draw):
            return self._hidden(hide_centre(pixels, draw))
        if mask is not None:
            mask = prepare(replace(changed, pixels=mask), self.input)
        return self._sample(place, pixels, mask)

    def _read(self, place: int) -> Radiograph:
        return read_radiograph(self.images[place].path)

    def _read_squares(self) -> dict[Path, _Square]:
        """Every image once, reduced: 50 kB each at 224 pixels."""
        spec = square_spec(self._side)

        def read(path: Path) -> _Square:
            whole = read_radiograph(path)
            pixels = prepare(whole, spec)
            return _Square(replace(whole, pixels=pixels, white=255), whole.pixels.shape)

        paths = list(dict.fromkeys(image.path for image in self.images))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            done = counted(pool.map(read, paths), len(paths), "images to prepare")
            return dict(zip(paths, done, strict=True))

    def _start(self, place: int) -> tuple[Radiograph, Mask | None]:
        """What is changed: an image, and the mask of its boxes where a reader drew them."""
        image = self.images[place]
        square = self._squares.get(image.path)
        radiograph = square.radiograph if square else read_radiograph(image.path)
        if not self._has_grid(place):
            return radiograph, None
        shape = square.shape if square else radiograph.pixels.shape
        return radiograph, mask_of(image.boxes, shape, square_spec(self._side) if square else None)

    def _has_grid(self, place: int) -> bool:
        """Whether it is known where an image's opacities are, or that it has none.

        A negative image of a source whose opacities have boxes has none. A positive one without
        boxes has opacities that nobody drew.
        """
        image, positive = self.images[place], self.recipe.positive_index
        nothing = image.source in self._boxed and self.targets[place] not in (NO_CLASS, positive)
        return bool(self.recipe.fit.map_weight and (image.boxes or nothing))

    def _sample(self, place: int, pixels: NDArray[np.uint8], mask: Mask | None = None) -> Sample:
        count, positive = len(self.recipe.classes), self.recipe.positive_index
        likely, strength = torch.full((count,), 1 / count), 1.0
        if (soft := self.recipe.soft_labels.get(self.images[place].label)) is not None:
            likely, strength = torch.full((count,), 1 - soft), soft
            likely[positive] = soft
        grid = torch.full(self.cells, torch.nan)
        if mask is not None:
            grid = torch.from_numpy(cells_of(mask, self.cells)) * strength
        target = torch.tensor(self.targets[place])
        return Sample(torch.from_numpy(pixels), target, likely, grid)

    def _hidden(self, pixels: NDArray[np.uint8]) -> Sample:
        """An image whose lungs are hidden: all classes are the right answer alike."""
        count = len(self.recipe.classes)
        return Sample(
            torch.from_numpy(pixels),
            torch.tensor(NO_CLASS),
            torch.full((count,), 1 / count),
            torch.full(self.cells, torch.nan),
        )


def one_thread_each(_worker: int) -> None:
    """Keep OpenCV's own threads out of data workers."""
    cv2.setNumThreads(1)
