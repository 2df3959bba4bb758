"""Classify a clinic's own images with a model, and say whether it should be used there."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepcovid_edge.backends.base import Backend, identity
from deepcovid_edge.datasets.contents import Contents
from deepcovid_edge.datasets.dataset import LabelledImage, check_labels
from deepcovid_edge.decision.record import INDETERMINATE, Prediction
from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.decision.site_file import SCHEMA_VERSION
from deepcovid_edge.decision.statistics import Estimate, PatientRate
from deepcovid_edge.decision.thresholds import OperatingPoint
from deepcovid_edge.errors import DataError
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_edge.model import Model, backend_of
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import NOTICE, WarningCode
from deepcovid_edge.validation.acceptance import RULES, AcceptanceRules, SiteImages, assess
from deepcovid_edge.validation.decisions import counted


@dataclass(frozen=True)
class LabelFacts:
    """What the model called the images of one label.

    Attributes:
        images: How many.
        positive: Whether the label belongs to the positive class; None for a soft label of the
            model, which no figure counts right or wrong.
        called_positive: Share at the model's own threshold.
    """

    images: int
    positive: bool | None
    called_positive: PatientRate


@dataclass(frozen=True)
class SiteData:
    """A site's images in numbers, without names.

    Attributes:
        sha256: Over the images' hashes and labels.
        images: Assessed images, each content once.
        patients: How many; an image without one counts as a patient of its own. None where no
            image has one.
        repeated: Files with the content of an earlier file.
        not_assessed: Reason code to number of files.
        warnings: Warning code to number of images.
        indeterminate: Images in the model's indeterminate range.
        by_label: What the images of each label were called.
    """

    sha256: str
    images: int
    patients: int | None
    repeated: int
    not_assessed: Mapping[str, int]
    warnings: Mapping[str, int]
    indeterminate: int
    by_label: Mapping[str, LabelFacts]


@dataclass(frozen=True, kw_only=True)
class SiteReport(PlainResult):
    """Whether a model may be used at a site; `as_dict` is what a site file holds.

    Attributes:
        name: What the site is called.
        created: Time in UTC, ISO 8601.
        verdict: `usable`, `not usable` or `not enough images`.
        reasons: Sentences that say why.
        threshold: The threshold to use there.
        threshold_is: `the model's own` or `the site's`.
        indeterminate_range: `low` and `high` of the model's, which go with its own threshold alone.
        model: Which model classified, and on what.
        data: The images in numbers.
        decisions: Label to `positive`, `negative` and `indeterminate`, each with the number of
            images that `infer` decides so without a site file.
        own: What the model's own threshold achieves.
        site: The site's threshold with cross-fitted figures; None where none was chosen.
        auc: Area under the curve; None without positive images.
        rules: What was asked of the model.
    """

    schema_version: int = SCHEMA_VERSION
    notice: str = NOTICE
    name: str
    created: str
    verdict: str
    reasons: tuple[str, ...]
    threshold: float
    threshold_is: str
    indeterminate_range: Mapping[str, float] | None
    model: Mapping[str, Any]
    data: SiteData
    decisions: Mapping[str, Mapping[str, int]]
    own: OperatingPoint
    site: OperatingPoint | None
    auc: Estimate | None
    rules: AcceptanceRules
    created_with: Mapping[str, str] = field(default_factory=lambda: {"deepcovid-edge": VERSION})


def site_check(
    model: Model | Backend,
    images: Sequence[LabelledImage],
    *,
    name: str,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> SiteReport:
    """Measure a model on a site's images.

    Args:
        model: The model as it would be used there; out-of-distribution images are treated as a
            `Model` treats them. Its own threshold is measured, whatever site file it has.
        images: Labelled images of the site, some of them negative. Those with a soft label of the
            model are decided, but count neither right nor wrong.
        name: What the site is called.
        workers: Threads; None for those of a `Model`, or one per core.
        progress: Called with the number of images that were classified since its last call.

    Raises:
        DataError: No negative image was assessed, a label belongs to no class, or one image has
            two labels.
    """
    backend = backend_of(model)
    manifest = backend.manifest
    check_labels(images, manifest.known_labels | manifest.soft_labels)
    given = model.settings if isinstance(model, Model) else PredictSettings()
    threads = given.workers if workers is None else workers
    settings = PredictSettings(given.batch_size, threads, ood=given.ood)
    classified = _classify(Model.of(backend, settings), images, progress)
    arrays = classified.arrays(manifest)
    if arrays.positive.all():
        why = ", ".join(f"{code} {count}" for code, count in classified.not_assessed.items())
        raise DataError(
            f"{name}: no image without {manifest.positive_class} could be assessed "
            f"({why or 'there is none'}): give at least normal images"
        )
    found = assess(arrays, manifest.threshold, manifest.positive_class)
    is_own, limits = found.threshold == manifest.threshold, manifest.indeterminate_range
    threshold = {"positive_class": manifest.positive_class, "threshold": manifest.threshold}
    return SiteReport(
        name=name,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **vars(found),
        threshold_is="the model's own" if is_own else "the site's",
        indeterminate_range={"low": limits.low, "high": limits.high} if is_own and limits else None,
        model={**identity(backend), **threshold},
        data=classified.data(manifest),
        decisions=classified.decisions(),
        rules=RULES,
    )


@dataclass
class _Classified:
    """The results of a site's files.

    Attributes:
        assessed: Images with their records; each content once.
        not_assessed: Reason code to number of files.
        repeated: Files with the content of an earlier file.
        digest: Over the images' hashes and labels.
    """

    assessed: list[tuple[LabelledImage, Prediction]] = field(default_factory=list)
    not_assessed: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    digest: str = ""

    @property
    def labels(self) -> list[str]:
        """Labels of the assessed images, sorted."""
        return sorted({image.label for image, _ in self.assessed})

    def arrays(self, manifest: ModelManifest) -> SiteImages:
        """The images whose label is no soft one, as arrays."""
        true = [one for one in self.assessed if one[0].label not in manifest.soft_labels]
        images = [image for image, _ in true]
        records = [record for _, record in true]
        return SiteImages(
            scores=np.array([record.probability for record in records], np.float64),
            positive=np.array([image.label in manifest.positive_labels for image in images], bool),
            patients=[image.patient for image in images],
            uncounted=len(self.assessed) - len(true),
            not_assessed=self.not_assessed.total(),
            synthetic=sum(WarningCode.SYNTHETIC.code in record.warnings for record in records),
        )

    def data(self, manifest: ModelManifest) -> SiteData:
        """Counts, without names."""
        warned = Counter(code for _, record in self.assessed for code in record.warnings)
        return SiteData(
            sha256=self.digest,
            images=len(self.assessed),
            patients=self._patients(),
            repeated=self.repeated,
            not_assessed=dict(sorted(self.not_assessed.items())),
            warnings=dict(sorted(warned.items())),
            indeterminate=sum(record.decision == INDETERMINATE for _, record in self.assessed),
            by_label={label: self._label(label, manifest) for label in self.labels},
        )

    def _patients(self) -> int | None:
        patients = [image.patient for image, _ in self.assessed]
        return len({*patients} - {""}) + patients.count("") if any(patients) else None

    def decisions(self) -> dict[str, dict[str, int]]:
        """How many images of each label were decided how."""
        return {
            label: counted(
                record.decision for image, record in self.assessed if image.label == label
            )
            for label in self.labels
        }

    def _label(self, label: str, manifest: ModelManifest) -> LabelFacts:
        own = [(image, record) for image, record in self.assessed if image.label == label]
        called = [(record.probability or 0.0) >= manifest.threshold for _, record in own]
        rate = PatientRate.of_patients(np.array(called), [image.patient for image, _ in own])
        positive = None if label in manifest.soft_labels else label in manifest.positive_labels
        return LabelFacts(len(own), positive, rate)


def _classify(
    model: Model, images: Sequence[LabelledImage], progress: Callable[[int], object]
) -> _Classified:
    records = model.predict(image.path for image in images)
    found = _Classified()
    contents = Contents()
    for image, record in zip(images, records, strict=True):
        progress(1)
        if not contents.is_new(image, record.sha256):
            continue
        if record.reason:
            found.not_assessed[record.reason] += 1
        else:
            found.assessed.append((image, record))
    found.repeated = contents.repeated
    lines = sorted(f"{sha256} {label}\n" for sha256, label in contents.labels.items())
    found.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found
