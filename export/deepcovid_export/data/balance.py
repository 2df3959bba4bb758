"""Against rare classes: films drawn more often, or weighed more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepcovid_edge.datasets.dataset import LabelledFilm
from deepcovid_export.recipe import Recipe


def films_of_an_epoch(films: Sequence[LabelledFilm], recipe: Recipe) -> list[LabelledFilm]:
    """Each film once; then again those of sources and, with `upsample`, classes to be repeated.

    A film's place decides how it is changed, so each of its copies is changed differently.
    """
    films = [*films, *_of_repeated_sources(films, recipe)]
    if recipe.fit.balance != "upsample":
        return films
    members: list[list[LabelledFilm]] = [[] for _ in recipe.classes]
    for film in films:
        members[recipe.class_of(film.label) or 0].append(film)
    again: list[LabelledFilm] = []
    for name, group in zip(recipe.classes, members, strict=True):
        wanted = max(map(len, members))
        if recipe.fit.repeat:
            wanted = recipe.fit.repeat.get(name, 1) * len(group)
        again += _more(group, wanted - len(group), recipe.fit.seed)
    return [*films, *again]


def repeats_of(source: str, recipe: Recipe) -> int:
    """Times an epoch that a film of a source is drawn: the most that any name in it asks for."""
    asked = recipe.fit.repeat_sources
    return max((times for name, times in asked.items() if name in source), default=1)


def unknown_sources(films: Sequence[LabelledFilm], recipe: Recipe) -> list[str]:
    """Names in `repeat_sources` that no film's source has in it."""
    present = {film.source for film in films}
    return [
        name for name in recipe.fit.repeat_sources if not any(name in source for source in present)
    ]


def _of_repeated_sources(films: Sequence[LabelledFilm], recipe: Recipe) -> list[LabelledFilm]:
    return [film for film in films for _ in range(repeats_of(film.source, recipe) - 1)]


def _more(group: Sequence[LabelledFilm], count: int, seed: int) -> list[LabelledFilm]:
    """The whole group as often as it fits, then films of it drawn at random."""
    whole, rest = divmod(count, len(group))
    drawn = np.random.default_rng(seed).permutation(len(group))[:rest]
    return [*group] * whole + [group[place] for place in sorted(drawn)]


def loss_weights(films: Sequence[LabelledFilm], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Weights of the classes in the loss that is fitted, and in the one that chooses the epoch.

    Upsampled training films need no weights; validation films are never upsampled.

    Args:
        films: The training films, each once.
        recipe: The recipe.

    Returns:
        Two tensors of shape (classes,), float32, whose mean over the films is 1.
    """
    even = torch.ones(len(recipe.classes))
    if recipe.fit.balance == "none":
        return even, even
    drawn = [*films, *_of_repeated_sources(films, recipe)]
    classes = [recipe.class_of(film.label) or 0 for film in drawn]
    counts = torch.tensor(np.bincount(classes, minlength=len(even)), dtype=torch.float32)
    inverse = len(drawn) / (len(even) * counts)
    return (inverse if recipe.fit.balance == "weights" else even), inverse
