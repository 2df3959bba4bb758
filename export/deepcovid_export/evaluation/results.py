"""What an evaluation measured, as types; `as_dict` gives the JSON of a report.

Keys and their order stay the same within a `SCHEMA_VERSION`: stored results and the model card
depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.decision import statistics
from deepcovid_edge.decision.results import PlainResult

SCHEMA_VERSION = 2
IF_MEASURED = ("localisation", "soft_labels", "indeterminate_by_source", "repeated")
"""Keys of an evaluation that only some data have: boxes, soft labels, several sources, copies."""
Interval = tuple[float, float]
Columns = Mapping[str, list[Any]]
"""Columns of one length by name."""


class PartialResult(PlainResult):
    """A result whose JSON leaves out what was not measured."""

    def as_dict(self) -> dict[str, Any]:
        """The fields that are not None as plain values for JSON."""
        return {name: value for name, value in super().as_dict().items() if value is not None}


def normal_half_width(successes: int, trials: int) -> float:
    """Half of the 95 % interval of a proportion by the normal approximation.

    1.96 sqrt(r (1 - r) / n), as in Minaee et al. 2020 (arXiv 2004.09363). It is zero at rates of 0
    and 1, so reports show Wilson's interval beside it.

    Raises:
        ValueError: There are no trials.
    """
    if trials < 1:
        raise ValueError("no trials: a proportion has no interval")
    share = successes / trials
    return statistics.Z_95 * math.sqrt(share * (1 - share) / trials)


def normal_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion by the normal approximation, cut to 0 to 1."""
    half = normal_half_width(successes, trials)
    share = successes / trials
    return max(0.0, share - half), min(1.0, share + half)


class Rate(statistics.Rate):
    """A proportion with the interval of the paper beside Wilson's."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; value and intervals are None without trials."""
        normal = list(normal_interval(self.successes, self.trials)) if self.trials else None
        return {**super().as_dict(), "interval_95_normal": normal}


@dataclass(frozen=True)
class Accuracy(PlainResult):
    """Sensitivity and specificity at one threshold."""

    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True)
class Area(PlainResult):
    """The area under the ROC curve of a group of images; None where a class is missing.

    Attributes:
        images: Images of the group.
        positives: Positive images among them.
        auc: Area under the curve.
        auc_interval_95: Its interval (`statistics.area_interval`).
    """

    images: int
    positives: int
    auc: float | None
    auc_interval_95: Interval | None


@dataclass(frozen=True)
class AreaOfPatients(Area):
    """The same with the interval over draws of patients; None where there is none (`bootstrap`)."""

    auc_interval_95_patients: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without that interval where there is no area."""
        values = super().as_dict()
        if self.auc is None:
            del values["auc_interval_95_patients"]
        return values


@dataclass(frozen=True)
class Group(Area):
    """Area and accuracy of a group of images, at the model's threshold."""

    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True)
class Overall(Group):
    """The same of all images, with the average precision (None without a positive image)."""

    average_precision: float | None


@dataclass(frozen=True)
class PatientIntervals(PlainResult):
    """95 % intervals over draws of patients; None where a class has too few (`bootstrap`).

    An image without a known patient counts as a patient of its own.
    """

    patients: int
    images_without_patient: int
    replicates: int
    seed: int
    sensitivity: Interval | None
    specificity: Interval | None
    auc: Interval | None
    average_precision: Interval | None


@dataclass(frozen=True)
class Indeterminate(PlainResult):
    """The indeterminate range, the images in it, and the accuracy on those outside it.

    Images that a model's out-of-distribution limits reject are in none of these figures, since
    `infer` does not assess them.
    """

    low: float
    high: float
    indeterminate: Rate
    indeterminate_positives: Rate
    decided_images: int
    decided: Accuracy


@dataclass(frozen=True)
class OperatingPoint(PlainResult):
    """A threshold, where it comes from, and its accuracy."""

    name: str
    threshold: float
    origin: str
    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True)
class ThresholdRow(PlainResult):
    """A row of the table of thresholds; `own` marks the model's threshold."""

    threshold: float
    own: bool
    sensitivity: Rate
    specificity: Rate


@dataclass(frozen=True)
class LabelFigures(PlainResult):
    """How many images of a label of the data set are called positive."""

    images: int
    positive: bool
    called_positive: Rate


@dataclass(frozen=True)
class Confusion(PlainResult):
    """Images of each class (rows) by the class that they are called (columns)."""

    classes: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Histograms(PlainResult):
    """Images by probability of the positive class: bin edges, and counts for each label."""

    edges: list[float]
    images: Columns


@dataclass(frozen=True)
class Reliability(PlainResult):
    """Share of positives by probability in bins, expected calibration error and Brier score."""

    bins: Columns
    expected_calibration_error: float
    brier: float


@dataclass(frozen=True)
class Shortcuts(PlainResult):
    """Whether the model reads the source of an image; see `shortcuts`.

    Attributes:
        side: Sides of the hidden rectangle as a share of the field's.
        limit: Area with the lungs hidden above which a model reads the source.
        reads_the_source: The verdict; None where the images cannot tell.
    """

    side: float
    limit: float
    whole: Area
    lungs_only: Area
    lungs_hidden: Area
    lungs_hidden_by_side: Mapping[str, Area]
    by_shape: Mapping[str, Area]
    within_source: Mapping[str, Area]
    reads_the_source: bool | None
    verdict: str


@dataclass(frozen=True)
class Localisation(PlainResult):
    """Heat maps of one method against readers' boxes; see `localisation`.

    Attributes:
        method: `activation` or `occlusion`.
        images: Positive images with boxes.
        chance: Mean share of the model input in boxes: how often a random place lies in one.
        pointing_game: Images whose map has its peak in a box.
        inside: Mean share of the map's positive values that lies in boxes.
        overlap: Mean intersection over union, at the best share of the peak: read off these images.
        overlap_peak_share: That share.
    """

    method: str
    images: int
    chance: float
    pointing_game: Rate
    inside: float
    overlap: float
    overlap_peak_share: float


@dataclass(frozen=True)
class SoftLabelFigures(PlainResult):
    """Decisions on a label that is never counted right or wrong.

    Attributes:
        images: Images of the label.
        called_positive: Those that reach the threshold.
        indeterminate: Those within the indeterminate range, of the images that the
            out-of-distribution limits accept; None without a range.
    """

    images: int
    called_positive: Rate
    indeterminate: Rate | None


@dataclass(frozen=True)
class Evaluation(PlainResult):
    """One model on labelled images.

    Attributes:
        export: How far the exported file is from torch; None for a checkpoint.
        images: All images but those of soft labels, assessed or not; those that were assessed with
            each content once.
        not_assessed: Reason to number of images, those of soft labels too.
        out_of_distribution: Images that `infer` would reject; None without such limits.
        bootstrap: None where no patient is known.
        operating_points: The model's own threshold first.
        curves: None where a class is missing.
        shortcuts: None where not measured.
        localisation: Heat maps against boxes, for each method; None where no image has boxes.
        soft_labels: Decisions on labels that are no truth; None where there are none.
        indeterminate_by_source: What the indeterminate range costs each source: its images within,
            of those that are not out of distribution; None unless there are several sources.
        repeated: Assessed files with the content of an earlier one; None where there are none.
    """

    schema_version: int
    notice: str
    data: str
    data_sha256: str
    model: str
    model_sha256: str
    architecture: str
    precision: str
    backend: str
    input: Mapping[str, Any]
    classes: list[str]
    positive_class: str
    threshold: float
    threshold_origin: Mapping[str, Any]
    export: Mapping[str, Any] | None
    images: int
    not_assessed: Mapping[str, int]
    out_of_distribution: Rate | None
    overall: Overall
    bootstrap: PatientIntervals | None
    indeterminate_range: Indeterminate | None
    operating_points: list[OperatingPoint]
    thresholds: list[ThresholdRow]
    by_label: Mapping[str, LabelFigures]
    by_source: Mapping[str, Group]
    by_view: Mapping[str, Group]
    confusion: Confusion
    curves: Mapping[str, Columns] | None
    histograms: Histograms
    reliability: Reliability
    shortcuts: Shortcuts | None
    created_with: Mapping[str, str]
    localisation: list[Localisation] | None = None
    soft_labels: Mapping[str, SoftLabelFigures] | None = None
    indeterminate_by_source: Mapping[str, Rate] | None = None
    repeated: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what such data do not have: boxes, soft labels, several sources, copies."""
        values = super().as_dict()
        for name in IF_MEASURED:
            if values[name] is None:
                del values[name]
        return values


@dataclass(frozen=True)
class Change(PartialResult):
    """A paired difference, other model less first; an area's may have no interval (`auc_change`).

    Of rates also the images that the other model alone gets wrong (lost) or right (gained), and the
    p-value of McNemar's exact test.
    """

    change: float
    interval_95: Interval | None
    lost: int | None = None
    gained: int | None = None
    mcnemar_p: float | None = None


@dataclass(frozen=True)
class Comparison(PartialResult):
    """How another model differs from the first on the images that both assessed.

    `not_compared` says why there are no differences.
    """

    reference: Mapping[str, str]
    candidate: Mapping[str, str]
    images: int
    not_compared: str | None = None
    auc: Change | None = None
    sensitivity: Change | None = None
    specificity: Change | None = None


@dataclass(frozen=True)
class SideBySide(PlainResult):
    """Several models on the same images, and how each differs from the first."""

    schema_version: int
    notice: str
    data: str
    data_sha256: str
    evaluations: list[Evaluation]
    comparisons: list[Comparison]
    created_with: Mapping[str, str]
