"""Labelled films through the runtime's own pipeline, as arrays for the figures.

Films go the way of `deepcovid-edge infer`, so what is measured is what runs on a cart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend
from deepcovid_edge.datasets.dataset import LabelledFilm, check_labels
from deepcovid_edge.decision.out_of_distribution import WARN
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.errors import DataError
from deepcovid_edge.imaging.pictures import Radiograph
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.pipeline.pipeline import PredictSettings, predict, run_facts
from deepcovid_edge.reasons import Caution
from deepcovid_export.evaluation.metrics import Scores, Truth

Change = Callable[[Radiograph], Radiograph]


@dataclass(frozen=True)
class Judged:
    """What a model says of labelled films.

    Attributes:
        films: The films that were assessed.
        probabilities: Of shape (films, classes), as the records have them.
        shapes: Rows and columns of each film, of shape (films, 2).
        refused: Why the others were not assessed, as codes, one for each film.
        manifest: The model's manifest.
        run: What the records have in common.
        unlike: How many of the assessed films the model's out-of-distribution gate refuses; None
            for a model without one.
    """

    films: tuple[LabelledFilm, ...]
    probabilities: Scores
    shapes: NDArray[np.intp]
    refused: tuple[str, ...]
    manifest: ModelManifest
    run: RunFacts
    unlike: int | None = None

    @property
    def scores(self) -> Scores:
        """Probability of the positive class, of shape (films,)."""
        return self.probabilities[:, self.manifest.positive_index]

    @property
    def positive(self) -> Truth:
        """Whether each film belongs to the positive class, of shape (films,)."""
        labels = self.manifest.positive_labels
        return np.array([film.label in labels for film in self.films])

    @property
    def truth(self) -> NDArray[np.intp]:
        """Index of each film's class by its label, of shape (films,)."""
        grouped = self.manifest.training.get("recipe", {}).get("classes", {})
        of_label = {
            label: index
            for index, name in enumerate(self.manifest.classes)
            for label in (*grouped.get(name, ()), name)
        }
        return np.array([of_label[film.label] for film in self.films], dtype=np.intp)

    @property
    def called(self) -> NDArray[np.intp]:
        """Index of the class that each film is called, of shape (films,).

        Of two classes the threshold decides, of more the largest probability.
        """
        manifest = self.manifest
        if len(manifest.classes) > 2:
            largest: NDArray[np.intp] = np.argmax(self.probabilities, axis=1)
            return largest
        positive = manifest.positive_index
        return np.where(self.scores >= manifest.threshold, positive, 1 - positive)


def judge(
    backend: Backend, films: Sequence[LabelledFilm], *, change: Change | None = None
) -> Judged:
    """Let a model judge labelled films.

    Args:
        backend: The loaded model.
        films: Films whose labels belong to the model's classes, as its recipe groups them.
        change: What is done to every film before it is prepared.

    Raises:
        DataError: No film was assessed, or a label belongs to no class.
    """
    check_labels(films, backend.manifest.known_labels)
    settings = PredictSettings(ood=WARN)  # figures are of all films; refusals are counted
    run = run_facts(backend, settings)
    shapes: dict[str, tuple[int, ...]] = {}

    def noted(film: Radiograph) -> Radiograph:
        shapes[film.sha256] = film.pixels.shape
        return change(film) if change else film

    records = list(predict((film.path for film in films), backend, run, settings, change=noted))
    kept = [(film, it) for film, it in zip(films, records, strict=True) if it.probabilities]
    if not kept:
        raise DataError(f"none of {len(films)} films was assessed")
    return Judged(
        films=tuple(film for film, _ in kept),
        probabilities=np.array([_row(record) for _, record in kept]),
        shapes=np.array([shapes[record.sha256 or ""] for _, record in kept]),
        refused=tuple(record.reason for record in records if record.reason),
        manifest=backend.manifest,
        run=run,
        unlike=_unlike(records) if backend.manifest.familiarity else None,
    )


def _unlike(records: Sequence[Prediction]) -> int:
    return sum(Caution.OOD.code in record.warnings for record in records if record.probabilities)


def _row(record: Prediction) -> list[float]:
    known = record.probabilities or {}
    return [known[name] for name in record.run.classes]
