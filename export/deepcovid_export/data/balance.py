"""Balance rare classes: draw their images more often, or give them more weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.recipe import Recipe


def images_of_an_epoch(images: Sequence[LabelledImage], recipe: Recipe) -> list[LabelledImage]:
    """Each image once, then repeats of sources and, with `upsample`, of classes.

    The position in the list seeds the changes, so each repeat of an image is changed differently.
    """
    images = [*images, *_of_repeated_sources(images, recipe)]
    if recipe.fit.balance != "upsample":
        return images
    members: list[list[LabelledImage]] = [[] for _ in recipe.classes]
    for image in images:
        members[recipe.class_of(image.label) or 0].append(image)
    again: list[LabelledImage] = []
    for name, group in zip(recipe.classes, members, strict=True):
        wanted = max(map(len, members))
        if recipe.fit.repeat:
            wanted = recipe.fit.repeat.get(name, 1) * len(group)
        again += _more(group, wanted - len(group), recipe.fit.seed)
    return [*images, *again]


def repeats_of(source: str, recipe: Recipe) -> int:
    """Times an epoch that an image of a source is drawn: the largest of all matching names."""
    asked = recipe.fit.repeat_sources
    return max((times for name, times in asked.items() if name in source), default=1)


def unknown_sources(images: Sequence[LabelledImage], recipe: Recipe) -> list[str]:
    """Names in `repeat_sources` that match no image's source."""
    present = {image.source for image in images}
    return [
        name for name in recipe.fit.repeat_sources if not any(name in source for source in present)
    ]


def _of_repeated_sources(images: Sequence[LabelledImage], recipe: Recipe) -> list[LabelledImage]:
    return [image for image in images for _ in range(repeats_of(image.source, recipe) - 1)]


def _more(group: Sequence[LabelledImage], count: int, seed: int) -> list[LabelledImage]:
    """`count` images of a group: the whole group as often as it fits, then a random part of it."""
    whole, rest = divmod(count, len(group))
    drawn = np.random.default_rng(seed).permutation(len(group))[:rest]
    return [*group] * whole + [group[place] for place in sorted(drawn)]


def loss_weights(images: Sequence[LabelledImage], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Weights of the classes in the training loss, and in the loss that chooses the epoch.

    Upsampled training images need no weights; validation images are never upsampled.

    Returns:
        Two tensors of shape (classes,), float32, whose mean over the images is 1.
    """
    even = torch.ones(len(recipe.classes))
    if recipe.fit.balance == "none":
        return even, even
    drawn = [*images, *_of_repeated_sources(images, recipe)]
    classes = [recipe.class_of(image.label) or 0 for image in drawn]
    counts = torch.tensor(np.bincount(classes, minlength=len(even)), dtype=torch.float32)
    inverse = len(drawn) / (len(even) * counts)
    return (inverse if recipe.fit.balance == "weights" else even), inverse
