"""Labelled images through the runtime's own pipeline, as arrays for the figures.

Images go through the code of `deepcovid-edge infer`, so what is measured is what runs on a cart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels
from deepcovid_edge.decision.out_of_distribution import WARN
from deepcovid_edge.decision.record import RunFacts
from deepcovid_edge.device.progress import progress_bar
from deepcovid_edge.errors import DataError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import WarningCode
from deepcovid_export.evaluation.metrics import Scores, Truth

Change = Callable[[Radiograph], Radiograph]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for labelled images.

    Attributes:
        images: The images that were assessed, each content once.
        probabilities: Of shape (images, classes), as in the records.
        shapes: Rows and columns of each image, of shape (images, 2).
        not_assessed: The reason code of every file that was not.
        manifest: The model's manifest.
        run: What the records have in common.
        rejected: Whether each image is beyond the model's out-of-distribution limits, so that
            `infer` does not assess it, of shape (images,); None for a model without limits.
    """

    images: tuple[LabelledImage, ...]
    probabilities: Scores
    shapes: NDArray[np.intp]
    not_assessed: tuple[str, ...]
    manifest: ModelManifest
    run: RunFacts
    rejected: Truth | None = None

    @property
    def scores(self) -> Scores:
        """Probability of the positive class, of shape (images,)."""
        return self.probabilities[:, self.manifest.positive_index]

    @property
    def accepted(self) -> Truth:
        """Whether `infer` assesses each image, of shape (images,)."""
        return np.ones(len(self.images), np.bool_) if self.rejected is None else ~self.rejected

    @property
    def patients(self) -> list[str]:
        """Patient of each image; empty where unknown."""
        return [image.patient for image in self.images]

    @property
    def positive(self) -> Truth:
        """Whether each image belongs to the positive class, of shape (images,)."""
        labels = self.manifest.positive_labels
        return np.array([image.label in labels for image in self.images])

    @property
    def truth(self) -> NDArray[np.intp]:
        """Index of each image's class by its label, of shape (images,)."""
        grouped = self.manifest.training.get("recipe", {}).get("classes", {})
        of_label = {
            label: index
            for index, name in enumerate(self.manifest.classes)
            for label in (*grouped.get(name, ()), name)
        }
        return np.array([of_label[image.label] for image in self.images], dtype=np.intp)

    @property
    def predicted(self) -> NDArray[np.intp]:
        """Index of the class that each image is called, of shape (images,).

        Of two classes the threshold decides, of more the largest probability.
        """
        manifest = self.manifest
        if len(manifest.classes) > 2:
            largest: NDArray[np.intp] = np.argmax(self.probabilities, axis=1)
            return largest
        positive = manifest.positive_index
        return np.where(self.scores >= manifest.threshold, positive, 1 - positive)


def with_truth(images: Sequence[LabelledImage], manifest: ModelManifest) -> list[LabelledImage]:
    """The images whose label is no soft label of the model."""
    return [image for image in images if image.label not in manifest.soft_labels]


def classify(
    backend: Backend,
    images: Sequence[LabelledImage],
    *,
    change: Change | None = None,
    any_label: bool = False,
    contents: Contents | None = None,
) -> Predictions:
    """Let a model classify labelled images; a terminal shows how many are done.

    Args:
        backend: The loaded model.
        images: Images whose labels belong to the model's classes, as its recipe groups them.
        change: Applied to every image before it is prepared.
        any_label: Take labels of no class too; then only scores have a meaning, and none need be
            assessed.
        contents: Of the images that were classified before; receives those of these.

    Raises:
        DataError: No image was assessed, a label belongs to no class, or one image has two labels.
    """
    if not any_label:
        check_labels(images, backend.manifest.known_labels)
    # Figures are of all images; those out of distribution are counted.
    model = Model.of(backend, PredictSettings(ood=WARN))
    shapes: dict[str, tuple[int, ...]] = {}

    def noted(image: Radiograph) -> Radiograph:
        shapes[image.sha256] = image.pixels.shape
        return change(image) if change else image

    contents = Contents() if contents is None else contents
    records = []
    with progress_bar(len(images)) as progress:
        for record in model.predict((image.path for image in images), change=noted):
            records.append(record)
            progress(1)
    kept = [
        (image, it)
        for image, it in zip(images, records, strict=True)
        if it.probabilities and contents.is_new(image, it.sha256)
    ]
    if not kept and not any_label:
        raise DataError(f"none of {len(images)} images was assessed")
    assessed = [record for _, record in kept]
    rejected = np.array([WarningCode.OOD.code in it.warnings for it in assessed], np.bool_)
    rows = [
        [(record.probabilities or {})[name] for name in model.facts.classes] for record in assessed
    ]
    return Predictions(
        images=tuple(image for image, _ in kept),
        probabilities=np.array(rows).reshape(-1, len(model.facts.classes)),
        shapes=np.array([shapes[record.sha256 or ""] for record in assessed]).reshape(-1, 2),
        not_assessed=tuple(record.reason for record in records if record.reason),
        manifest=backend.manifest,
        run=model.facts,
        rejected=rejected if backend.manifest.ood else None,
    )
