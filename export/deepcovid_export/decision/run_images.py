"""The images that a model's own recipe fits on and chooses on, as `train` takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.recipe import DataSettings
from deepcovid_export.settings import build_settings


def images_of_model(data: Path, manifest: ModelManifest, split: str) -> list[LabelledImage]:
    """The images of a split of the model's run that belong to one of its classes.

    A label may also be the name of a class, of which the groups of a recipe know nothing. Images
    that the run excluded because another split shares them (`train --exclude-leaks`) are known to
    its `splits.csv` alone.

    Args:
        data: The data of the run, or its `splits.csv`.
        manifest: The model's manifest; its recipe says which images a run uses.
        split: `train` or `val`.
    """
    recipe = manifest.training.get("recipe", {})
    settings = build_settings(DataSettings, recipe.get("data", {}))
    ungrouped = replace(settings, groups=())
    labels = {label for labels in recipe.get("classes", {}).values() for label in labels}
    positive = manifest.positive_labels

    def is_used(image: LabelledImage) -> bool:
        own = settings if image.label in labels else ungrouped
        return not own.why_excluded(image, positive=image.label in positive)

    return [
        image
        for image in load_dataset(data)
        if settings.split_of(image) == split
        and image.label in manifest.known_labels
        and is_used(image)
    ]
