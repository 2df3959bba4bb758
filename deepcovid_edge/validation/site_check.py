"""Judge a clinic's own films with a model, and say whether it should be used there."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepcovid_edge import NOTICE, __version__
from deepcovid_edge.backends import Backend, identity
from deepcovid_edge.datasets.dataset import LabelledFilm, check_labels
from deepcovid_edge.decision.record import INDETERMINATE, Prediction
from deepcovid_edge.decision.site_file import SCHEMA_VERSION
from deepcovid_edge.errors import DataError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.pipeline.pipeline import PredictSettings, predict, run_facts
from deepcovid_edge.reasons import Caution
from deepcovid_edge.validation.acceptance import AcceptanceRules, SiteFilms, assess, described, rate


def calibrate(
    backend: Backend,
    films: Sequence[LabelledFilm],
    *,
    name: str,
    rules: AcceptanceRules | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Measure a model on a site's films.

    Args:
        backend: The model as it would be used there.
        films: Labelled films of the site, some of them negative.
        name: What the site is called.
        rules: What is asked of the model.
        workers: Threads; None for one a core.

    Returns:
        Figures, threshold, verdict and reasons, as plain values: what a site file holds.

    Raises:
        DataError: No negative film was assessed, a label belongs to no class, or one film has two.
    """
    manifest = backend.manifest
    check_labels(films, manifest.known_labels)
    judged = _judged(backend, films, workers)
    if not any(film.label not in manifest.positive_labels for film, _ in judged.assessed):
        raise DataError(
            f"{name}: no film without {manifest.positive_class} could be assessed "
            f"({_counted(judged.refused) or 'there is none'}): give normals at least"
        )
    found = assess(judged.of(manifest), manifest.threshold, manifest.positive_class, rules)
    is_own = found.threshold == manifest.threshold
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "verdict": found.verdict,
        "reasons": list(found.reasons),
        "threshold": found.threshold,
        "threshold_is": "the model's own" if is_own else "the site's",
        "band": _band(manifest) if is_own else None,
        "model": {
            **identity(backend),
            "positive_class": manifest.positive_class,
            "threshold": manifest.threshold,
        },
        "data": judged.facts(manifest),
        "own": found.own,
        "site": found.site,
        "auc": found.auc,
        "rules": described(rules),
        "created_with": {"deepcovid-edge": __version__},
    }


@dataclass
class _Judged:
    """What became of a site's files.

    Attributes:
        assessed: Films with their records; each content once.
        refused: Reason code to number of files.
        repeated: Files whose content had come before.
        digest: Over the films' hashes and labels.
    """

    assessed: list[tuple[LabelledFilm, Prediction]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    digest: str = ""

    def of(self, manifest: ModelManifest) -> SiteFilms:
        """The films as arrays."""
        films = [film for film, _ in self.assessed]
        records = [record for _, record in self.assessed]
        return SiteFilms(
            scores=np.array([record.probability for record in records], np.float64),
            positive=np.array([film.label in manifest.positive_labels for film in films]),
            patients=[film.patient for film in films],
            refused=self.refused.total(),
            synthetic=sum(Caution.SYNTHETIC.code in record.warnings for record in records),
        )

    def facts(self, manifest: ModelManifest) -> dict[str, Any]:
        """Counts, without names."""
        warned = Counter(code for _, record in self.assessed for code in record.warnings)
        decided = [record.decision for _, record in self.assessed]
        return {
            "sha256": self.digest,
            "films": len(self.assessed),
            "patients": len({film.patient for film, _ in self.assessed if film.patient}) or None,
            "repeated": self.repeated,
            "not_assessed": dict(sorted(self.refused.items())),
            "warnings": dict(sorted(warned.items())),
            "indeterminate": decided.count(INDETERMINATE),
            "by_label": dict(self._by_label(manifest)),
        }

    def _by_label(self, manifest: ModelManifest) -> Iterator[tuple[str, dict[str, Any]]]:
        for label in sorted({film.label for film, _ in self.assessed}):
            scores = [
                record.probability or 0.0 for film, record in self.assessed if film.label == label
            ]
            called = sum(score >= manifest.threshold for score in scores)
            yield (
                label,
                {
                    "films": len(scores),
                    "positive": label in manifest.positive_labels,
                    "called_positive": rate(called, len(scores)),
                },
            )


def _judged(backend: Backend, films: Sequence[LabelledFilm], workers: int | None) -> _Judged:
    settings = PredictSettings(workers=workers)
    run = run_facts(backend, settings)
    records = predict((film.path for film in films), backend, run, settings)
    found = _Judged()
    labels: dict[str, str] = {}
    for film, record in zip(films, records, strict=True):
        known = labels.get(record.sha256 or "")
        if known not in (None, film.label):
            raise DataError(f"{film.path}: the same film is labelled {known} and {film.label}")
        if known is not None:
            found.repeated += 1
            continue
        if record.sha256:
            labels[record.sha256] = film.label
        if record.reason:
            found.refused[record.reason] += 1
        else:
            found.assessed.append((film, record))
    lines = sorted(f"{sha256} {label}\n" for sha256, label in labels.items())
    found.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


def _band(manifest: ModelManifest) -> dict[str, Any] | None:
    """The model's band, which goes with its own threshold alone."""
    band = manifest.band
    return {"low": band.low, "high": band.high} if band else None


def _counted(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {count}" for code, count in refused.items())
