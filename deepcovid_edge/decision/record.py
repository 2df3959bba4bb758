"""The record: one image's result, the same in JSON Lines, in CSV and in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.manifest import IndeterminateRange, limits_of
from deepcovid_edge.reasons import NOTICE

SCHEMA_VERSION = 1
DECIMALS = 6
"""Probabilities are rounded before they are compared, so that a record proves its decision."""
ASSESSED, NOT_ASSESSED = "assessed", "not_assessed"
POSITIVE, NEGATIVE, INDETERMINATE = "positive", "negative", "indeterminate"
SIGNS: Mapping[str | None, str] = {
    POSITIVE: "▲ positive",
    INDETERMINATE: "◆ indeterminate",
    NEGATIVE: "○ negative",
    None: "! not assessed",
}
"""Decision -> its shape and word for people."""
_LIMITS = ("low", "high", "threshold")
_SITE = ("name", "sha256")
_TIMINGS = ("read", "preprocess", "infer", "heatmap", "total")
_ENCODER = json.JSONEncoder(allow_nan=False)
_PARTS = {"limits": _LIMITS, "site": _SITE, "timings_ms": _TIMINGS}


@dataclass(frozen=True)
class SiteName:
    """The site file whose threshold decided: the clinic's name for it, and its SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class RunFacts:
    """Facts that every record of a run has.

    Attributes:
        model: Name of the model.
        model_sha256: SHA-256 of the model file.
        backend: Backend and provider, such as `onnxruntime-cpu`.
        variant: `fp32`, `fp16`, `int8-cpu`, ...: what `quantize` made of the model.
        classes: Class names in the order of the logits.
        positive_class: The class whose probability is compared with the threshold.
        threshold: An image is positive from this probability on.
        warnings: Codes of warnings that every assessed image has.
        indeterminate_range: Probabilities that are too close to the threshold; None if the run
            has no such range.
        site: The site file that the threshold comes from, or None.
    """

    model: str
    model_sha256: str
    backend: str
    variant: str
    classes: tuple[str, ...]
    positive_class: str
    threshold: float
    warnings: tuple[str, ...] = ()
    indeterminate_range: IndeterminateRange | None = None
    site: SiteName | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The indeterminate range as `low` and `high`; where there is none, the `threshold`."""
        return limits_of(self.threshold, self.indeterminate_range)


@dataclass(frozen=True, repr=False)
class Prediction:
    """One image's result. An image that was not assessed has a reason and no probability.

    Attributes:
        path: The file as it was named.
        run: Facts that every record of the run has.
        sha256: SHA-256 of the file, or None if it could not be read.
        reason: Code that says why the image was not assessed, or None.
        message: Sentence for the person at the cart, or None.
        warnings: Codes of what to know about the image.
        probabilities: Class name -> probability, or None where not assessed.
        timings_ms: `read`, `preprocess`, `infer` (the image's share of its batch), `heatmap` and
            `total` (from opening the file to the result, including waiting), milliseconds. A step
            that was not reached has no entry. The first images take longer, because they are read
            while the model loads on the same cores.
        heatmap: Path of the heat map's file, or None.
        overlay: Path of the heat map's picture, or None.
        regions: Places where the network looked, the strongest first (see `Region`); None
            without a heat map.
    """

    path: str
    run: RunFacts
    sha256: str | None = None
    reason: str | None = None
    message: str | None = None
    warnings: tuple[str, ...] = ()
    probabilities: Mapping[str, float] | None = None
    timings_ms: Mapping[str, float] | None = None
    heatmap: str | None = None
    overlay: str | None = None
    regions: tuple[Mapping[str, Any], ...] | None = None

    @property
    def status(self) -> str:
        """`assessed` or `not_assessed`."""
        return NOT_ASSESSED if self.probabilities is None else ASSESSED

    @property
    def probability(self) -> float | None:
        """Probability of the positive class, or None where not assessed."""
        if self.probabilities is None:
            return None
        return self.probabilities[self.run.positive_class]

    @property
    def decision(self) -> str | None:
        """`positive` from the threshold on, else `negative`; None where not assessed.

        `indeterminate` if the probability lies in the indeterminate range of the run.
        """
        probability = self.probability
        if probability is None:
            return None
        if self.run.indeterminate_range and self.run.indeterminate_range.holds(probability):
            return INDETERMINATE
        return POSITIVE if probability >= self.run.threshold else NEGATIVE

    def __repr__(self) -> str:
        """One line: file, result or reason, warnings."""
        found = (
            f"not assessed, {self.reason}"
            if self.probability is None
            else f"{self.decision}, {self.run.positive_class} {self.probability:.3f}"
        )
        return f"Prediction({', '.join([repr(self.path), found, *self.warnings])})"

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values, in the order in which it is written."""
        timings = self.timings_ms or {}
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "sha256": self.sha256,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "warnings": list(self.warnings),
            "model": self.run.model,
            "model_sha256": self.run.model_sha256,
            "backend": self.run.backend,
            "variant": self.run.variant,
            "probabilities": dict(self.probabilities) if self.probabilities else None,
            "positive_class": self.run.positive_class,
            "probability": self.probability,
            "limits": self.run.limits,
            "site": _plain(self.run.site, _SITE),
            "decision": self.decision,
            "heatmap": self.heatmap,
            "overlay": self.overlay,
            "regions": None if self.regions is None else [dict(place) for place in self.regions],
            "timings_ms": {name: timings.get(name) for name in _TIMINGS},
            "notice": NOTICE,
        }

    def as_json(self) -> str:
        """The record as one line of JSON, without a line end."""
        return _ENCODER.encode(self.as_dict())

    def as_row(self) -> dict[str, Any]:
        """The record with nested values as columns, such as `probabilities.covid`."""
        row: dict[str, Any] = {}
        for name, value in self.as_dict().items():
            if name == "probabilities":
                known = value or {}
                row |= {f"{name}.{label}": known.get(label) for label in self.run.classes}
            elif name in _PARTS:
                row |= {f"{name}.{part}": value and value.get(part) for part in _PARTS[name]}
            elif name == "warnings":
                row[name] = ";".join(value)
            elif name == "regions":
                row[name] = None if value is None else json.dumps(value)
            else:
                row[name] = value
        return row


def _plain(
    thing: IndeterminateRange | SiteName | None, parts: tuple[str, ...]
) -> dict[str, Any] | None:
    return None if thing is None else {part: getattr(thing, part) for part in parts}


def milliseconds(start: float, end: float) -> float:
    """Milliseconds between two times of the performance counter, rounded as in `timings_ms`."""
    return round((end - start) * 1000.0, 3)
