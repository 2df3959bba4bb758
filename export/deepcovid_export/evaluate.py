"""Judge the films of a data set through the runtime's own pipeline and count how often it is right.

Films go the way of `deepcovid-edge infer`, so what is measured is what runs on a cart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge import __version__
from deepcovid_edge.backends import load_backend
from deepcovid_edge.dataset import LabelledFilm, check_labels, dataset_sha256
from deepcovid_edge.errors import DataError
from deepcovid_edge.predict import PredictSettings, predict, run_facts
from deepcovid_edge.records import Prediction
from deepcovid_edge.statistics import auc_interval
from deepcovid_export.metrics import Scores, Truth, at_threshold, auc

SCHEMA_VERSION = 1


def evaluate(model: Path, films: Sequence[LabelledFilm], *, description: str) -> dict[str, Any]:
    """Measure a model on labelled films.

    Args:
        model: An .onnx file, an engine or a checkpoint.
        films: Films with their labels; a label belongs to the class into which the model's recipe
            puts it.
        description: What the films are, for the report.

    Returns:
        Figures over all films and by source, as plain values for JSON. Intervals take films as
        independent, though a patient may have several.

    Raises:
        DataError: No film was assessed, or a label belongs to no class.
    """
    settings = PredictSettings()
    with load_backend(model) as backend:
        manifest = backend.manifest
        check_labels(films, manifest.known_labels)
        run = run_facts(backend, settings)
        records = list(predict((film.path for film in films), backend, run, settings))
    judged = [
        (film, record)
        for film, record in zip(films, records, strict=True)
        if record.probability is not None
    ]
    if not judged:
        raise DataError(f"{description}: none of {len(films)} films was assessed")
    scores = np.array([record.probability for _, record in judged])
    positive = np.array([film.label in manifest.positive_labels for film, _ in judged])
    return {
        "schema_version": SCHEMA_VERSION,
        "data": description,
        "data_sha256": dataset_sha256(film for film, _ in judged),
        "model": manifest.name,
        "model_sha256": run.model_sha256,
        "precision": manifest.precision,
        "backend": run.backend,
        "positive_class": manifest.positive_class,
        "threshold": manifest.threshold,
        "threshold_origin": dict(manifest.threshold_origin),
        "export": manifest.training.get("export"),
        "films": len(films),
        "not_assessed": _refusals(records),
        "overall": _figures(scores, positive, manifest.threshold),
        "by_source": _by_source([film for film, _ in judged], scores, positive, manifest.threshold),
        "created_with": {"deepcovid-edge": __version__},
    }


def _figures(scores: Scores, positive: Truth, threshold: float) -> dict[str, Any]:
    both = bool(positive.any() and not positive.all())
    return {
        "films": len(scores),
        "auc": auc(scores, positive),
        "auc_interval_95": list(auc_interval(scores.astype(np.float64), positive))
        if both
        else None,
        **at_threshold(scores, positive, threshold),
    }


def _by_source(
    films: Sequence[LabelledFilm], scores: Scores, positive: Truth, threshold: float
) -> dict[str, Any]:
    groups = np.array([film.source for film in films])
    return {
        source or "source not stated": _figures(
            scores[groups == source], positive[groups == source], threshold
        )
        for source in sorted(set(groups.tolist()))
    }


def _refusals(records: Sequence[Prediction]) -> dict[str, int]:
    reasons = [record.reason for record in records if record.reason]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}
