"""Classify a clinic's own images with a model, and say whether it should be used there."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepcovid_edge.backends.base import Backend, identity
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels
from deepcovid_edge.decision.record import INDETERMINATE, Prediction
from deepcovid_edge.decision.site_file import SCHEMA_VERSION
from deepcovid_edge.errors import DataError
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import NOTICE, WarningCode
from deepcovid_edge.validation.acceptance import (
    AcceptanceRules,
    SiteImages,
    assess,
    described,
    rate,
)


def site_check(
    backend: Backend,
    images: Sequence[LabelledImage],
    *,
    name: str,
    rules: AcceptanceRules | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Measure a model on a site's images.

    Args:
        backend: The model as it would be used there.
        images: Labelled images of the site, some of them negative.
        name: What the site is called.
        rules: What is asked of the model.
        workers: Threads; None for one a core.

    Returns:
        Figures, threshold, verdict and reasons, as plain values: what a site file holds.

    Raises:
        DataError: No negative image was assessed, a label belongs to no class, or one image has
            two.
    """
    manifest = backend.manifest
    check_labels(images, manifest.known_labels)
    classified = _classified(backend, images, workers)
    if not any(image.label not in manifest.positive_labels for image, _ in classified.assessed):
        raise DataError(
            f"{name}: no image without {manifest.positive_class} could be assessed "
            f"({_counted(classified.not_assessed) or 'there is none'}): give normals at least"
        )
    found = assess(classified.of(manifest), manifest.threshold, manifest.positive_class, rules)
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
        "indeterminate_range": _indeterminate_range(manifest) if is_own else None,
        "model": {
            **identity(backend),
            "positive_class": manifest.positive_class,
            "threshold": manifest.threshold,
        },
        "data": classified.facts(manifest),
        "own": found.own,
        "site": found.site,
        "auc": found.auc,
        "rules": described(rules),
        "created_with": {"deepcovid-edge": VERSION},
    }


@dataclass
class _Judged:
    """What became of a site's files.

    Attributes:
        assessed: Images with their records; each content once.
        not_assessed: Reason code to number of files.
        repeated: Files whose content had come before.
        digest: Over the images' hashes and labels.
    """

    assessed: list[tuple[LabelledImage, Prediction]] = field(default_factory=list)
    not_assessed: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    digest: str = ""

    def of(self, manifest: ModelManifest) -> SiteImages:
        """The images as arrays."""
        images = [image for image, _ in self.assessed]
        records = [record for _, record in self.assessed]
        return SiteImages(
            scores=np.array([record.probability for record in records], np.float64),
            positive=np.array([image.label in manifest.positive_labels for image in images]),
            patients=[image.patient for image in images],
            not_assessed=self.not_assessed.total(),
            synthetic=sum(WarningCode.SYNTHETIC.code in record.warnings for record in records),
        )

    def facts(self, manifest: ModelManifest) -> dict[str, Any]:
        """Counts, without names."""
        warned = Counter(code for _, record in self.assessed for code in record.warnings)
        decided = [record.decision for _, record in self.assessed]
        return {
            "sha256": self.digest,
            "images": len(self.assessed),
            "patients": len({image.patient for image, _ in self.assessed if image.patient}) or None,
            "repeated": self.repeated,
            "not_assessed": dict(sorted(self.not_assessed.items())),
            "warnings": dict(sorted(warned.items())),
            "indeterminate": decided.count(INDETERMINATE),
            "by_label": dict(self._by_label(manifest)),
        }

    def _by_label(self, manifest: ModelManifest) -> Iterator[tuple[str, dict[str, Any]]]:
        for label in sorted({image.label for image, _ in self.assessed}):
            scores = [
                record.probability or 0.0 for image, record in self.assessed if image.label == label
            ]
            called = sum(score >= manifest.threshold for score in scores)
            yield (
                label,
                {
                    "images": len(scores),
                    "positive": label in manifest.positive_labels,
                    "called_positive": rate(called, len(scores)),
                },
            )


def _classified(backend: Backend, images: Sequence[LabelledImage], workers: int | None) -> _Judged:
    model = Model.of(backend, PredictSettings(workers=workers))
    records = model.predict(image.path for image in images)
    found = _Judged()
    labels: dict[str, str] = {}
    for image, record in zip(images, records, strict=True):
        known = labels.get(record.sha256 or "")
        if known not in (None, image.label):
            raise DataError(f"{image.path}: the same image is labelled {known} and {image.label}")
        if known is not None:
            found.repeated += 1
            continue
        if record.sha256:
            labels[record.sha256] = image.label
        if record.reason:
            found.not_assessed[record.reason] += 1
        else:
            found.assessed.append((image, record))
    lines = sorted(f"{sha256} {label}\n" for sha256, label in labels.items())
    found.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


def _indeterminate_range(manifest: ModelManifest) -> dict[str, Any] | None:
    """The model's indeterminate_range, which goes with its own threshold alone."""
    indeterminate_range = manifest.indeterminate_range
    return (
        {"low": indeterminate_range.low, "high": indeterminate_range.high}
        if indeterminate_range
        else None
    )


def _counted(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {count}" for code, count in refused.items())
