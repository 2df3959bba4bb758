"""Draw splits by patient for data without splits; they stay the same when images are added.

Images of one patient, equal files and near-duplicates of one exposure form a group and stay
together. The split of a group depends only on its patient, or on the files' content if no patient
is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.data.near_duplicates import Fingerprint, find_near_duplicates
from deepcovid_export.recipe import Recipe

_ORDER = ("val", "test", "train")
"""The order in which splits take their share, so that a `test` share takes nothing from `val`."""


def with_splits(
    images: Sequence[LabelledImage],
    prints: Sequence[Fingerprint],
    recipe: Recipe,
    to_draw: Collection[Path] = (),
) -> list[LabelledImage]:
    """Give each image a split, from the data or by the recipe's shares.

    If the data has no splits, all are drawn. If it has `train` and no `val`, as the published
    COVID-Xray-5k, `val` is drawn from `train`. Other data stays as it is.

    Args:
        images: The images of all data sets.
        prints: Their fingerprints.
        recipe: Names the shares.
        to_draw: Images of data sets without splits beside others. They are drawn, too; one whose
            patient or near-duplicate has a split gets that one.
    """
    placed = _with_own_splits(images, prints, recipe)
    chosen = [
        index for index, image in enumerate(placed) if not image.split and image.path in to_draw
    ]
    if not chosen:
        return placed
    groups = _groups(images, prints)
    known = {group: it.split for group, it in zip(groups, placed, strict=True) if it.split}
    free = [index for index in chosen if groups[index] not in known]
    own = [images[index] for index in free], [prints[index] for index in free]
    drawn = _draw(*own, recipe.data.shares, recipe)
    known |= zip([groups[index] for index in free], drawn, strict=True)
    for index in chosen:
        placed[index] = replace(images[index], split=known[groups[index]])
    return placed


def _with_own_splits(
    images: Sequence[LabelledImage], prints: Sequence[Fingerprint], recipe: Recipe
) -> list[LabelledImage]:
    named = {image.split for image in images if image.split}
    shares = dict(recipe.data.shares)
    if named:
        shares = {split: share for split, share in shares.items() if split in ("train", "val")}
    if "val" in named or (named and "train" not in named):
        return list(images)
    chosen = [index for index, image in enumerate(images) if image.split == "train" or not named]
    own = [images[index] for index in chosen], [prints[index] for index in chosen]
    drawn = _draw(*own, shares, recipe)
    found = list(images)
    for index, split in zip(chosen, drawn, strict=True):
        found[index] = replace(images[index], split=split)
    return found


def _draw(
    images: Sequence[LabelledImage],
    prints: Sequence[Fingerprint],
    shares: Mapping[str, float],
    recipe: Recipe,
) -> list[str]:
    if not images:
        return []
    groups = _groups(images, prints)
    keys: dict[int, str] = {}
    classes: dict[int | None, set[int]] = {}
    for image, one, group in zip(images, prints, groups, strict=True):
        key = image.patient or one.sha256
        keys[group] = min(key, keys.get(group, key))
        classes.setdefault(recipe.class_of(image.label), set()).add(group)
    lots = {group: _lot(key) for group, key in keys.items()}
    ends = _ends(shares)
    placed = {group: next(s for s, end in ends.items() if lot < end) for group, lot in lots.items()}
    for holders in classes.values():
        _fill(placed, sorted(holders), lots, ends)
    return [placed[group] for group in groups]


def _groups(images: Sequence[LabelledImage], prints: Sequence[Fingerprint]) -> list[int]:
    """The number of each image's group."""
    pairs = [(it.first, it.second) for it in find_near_duplicates(prints, range(len(prints)))]
    for keys in ([image.patient for image in images], [one.sha256 for one in prints]):
        first: dict[str, int] = {}
        pairs += [(first.setdefault(key, at), at) for at, key in enumerate(keys) if key]
    ends: NDArray[Any] = np.array(pairs, np.int64).reshape(-1, 2).T
    size = (len(images), len(images))
    links = coo_array((np.ones(len(pairs), np.bool_), (ends[0], ends[1])), shape=size)
    return [int(group) for group in connected_components(links, directed=False)[1]]


def _lot(key: str) -> float:
    """A number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _ends(shares: Mapping[str, float]) -> dict[str, float]:
    """Upper end of each split's interval of lots; the last is open."""
    splits = [split for split in _ORDER if split in shares]
    ends = np.cumsum([shares[split] for split in splits]) / sum(shares.values())
    return {**dict(zip(splits, ends, strict=True)), splits[-1]: float("inf")}


def _fill(
    placed: dict[int, str],
    holders: Sequence[int],
    lots: Mapping[int, float],
    ends: dict[str, float],
) -> None:
    """Give each split without a group of a class the group whose lot is nearest to its share."""
    for split, end in ends.items():
        if any(placed[group] == split for group in holders):
            continue
        taken = [placed[group] for group in holders]
        spare = [group for group in holders if taken.count(placed[group]) > 1]
        if spare:
            placed[min(spare, key=lambda group: abs(lots[group] - min(end, 1.0)))] = split
