"""Balance rare classes: draw their images more often, or give them more weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.recipe import Recipe


def images_of_an_epoch(images: Sequence[LabelledImage], recipe: Recipe) -> list[LabelledImage]:
    """Each image once, then repeats of sources and, with `upsample`, of classes.

    The position in the list seeds the changes, so each repeat of an image is changed differently.
    An image of a soft label belongs to no class, so `upsample` does not repeat it.
    """
    images = [*images, *_of_repeated_sources(images, recipe)]
    if recipe.fit.balance != "upsample":
        return images
    members: list[list[LabelledImage]] = [[] for _ in recipe.classes]
    for image in images:
        if (index := recipe.class_of(image.label)) is not None:
            members[index].append(image)
    again: list[LabelledImage] = []
    for name, group in zip(recipe.classes, members, strict=True):
        wanted = max(map(len, members))
        if recipe.fit.repeat:
            wanted = recipe.fit.repeat.get(name, 1) * len(group)
        again += _more(group, wanted - len(group), recipe.fit.seed)
    return [*images, *again]


def draw_epoch(images: Sequence[LabelledImage], recipe: Recipe, epoch: int) -> list[int]:
    """Positions of the images of an epoch, by the shares of the recipe's groups.

    A group is drawn in rounds: every image once, in another order each round, so that over the
    epochs all its images are seen equally often. Groups that are not among the images leave their
    share to the others.

    Args:
        images: Images to fit on.
        recipe: The recipe, with groups.
        epoch: Number of the epoch, from 0.

    Returns:
        At most `fit.images` positions, and no more than there are images.
    """
    members = group_members(images, recipe)
    present = {at: group for at, group in members.items() if recipe.data.groups[at].share}
    total = sum(recipe.data.groups[at].share for at in present)
    size = min(recipe.fit.images, len(images))
    drawn: list[int] = []
    for at, group in present.items():
        count = max(1, round(size * recipe.data.groups[at].share / total))
        drawn += _rounds(group, count * epoch, count, [recipe.fit.seed, at])
    return drawn


def absent_groups(images: Sequence[LabelledImage], recipe: Recipe) -> list[str]:
    """Names of the groups with a share that have no image to fit on."""
    members = group_members(images, recipe)
    groups = enumerate(recipe.data.groups)
    return [group.name for at, group in groups if group.share and at not in members]


def group_members(images: Sequence[LabelledImage], recipe: Recipe) -> dict[int, list[int]]:
    """Index of each group that has images, and the positions of its images."""
    members: dict[int, list[int]] = {}
    for place, image in enumerate(images):
        group = recipe.data.group_of(image.label, image.source)
        if group is not None:
            members.setdefault(group, []).append(place)
    return dict(sorted(members.items()))


def _rounds(group: Sequence[int], start: int, count: int, seed: list[int]) -> list[int]:
    """`count` members from a place in an endless sequence of shuffled rounds."""
    first, last = start // len(group), (start + count - 1) // len(group)
    rounds = range(first, last + 1)
    orders = [np.random.default_rng([*seed, it]).permutation(len(group)) for it in rounds]
    offset = start - first * len(group)
    places = np.concatenate(orders)[offset : offset + count]
    return [group[place] for place in places]


def validation_weights(images: Sequence[LabelledImage], recipe: Recipe) -> Tensor:
    """Weights of the validation images: every group counts alike, of shape (images,).

    The mean is 1.

    Args:
        images: Validation images, each of a group.
        recipe: The recipe, with groups.
    """
    groups = group_members(images, recipe).values()
    weights = np.zeros(len(images), np.float32)
    for places in groups:
        weights[places] = len(images) / (len(groups) * len(places))
    return torch.from_numpy(weights)


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


def known_classes(images: Iterable[LabelledImage], recipe: Recipe) -> list[int]:
    """Class index of each image that has a class; one of a soft label has none."""
    classes = (recipe.class_of(image.label) for image in images)
    return [index for index in classes if index is not None]


def loss_weights(images: Sequence[LabelledImage], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Weights of the classes in the training loss, and in the loss that chooses the epoch.

    Upsampled training images need no weights; validation images are never upsampled. Images of
    soft labels belong to no class.

    Returns:
        Two tensors of shape (classes,), float32, whose mean over the images with a class is 1.
    """
    even = torch.ones(len(recipe.classes))
    if recipe.fit.balance == "none":
        return even, even
    drawn = [*images, *_of_repeated_sources(images, recipe)]
    classes = known_classes(drawn, recipe)
    counts = torch.tensor(np.bincount(classes, minlength=len(even)), dtype=torch.float32)
    inverse = len(classes) / (len(even) * counts)
    return (inverse if recipe.fit.balance == "weights" else even), inverse
