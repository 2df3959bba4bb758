"""A measurement as a file: versioned JSON with the raw samples, the machine and the settings.

Figures in the file are for people; reading computes them again from the samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.benchmarking.percentiles import percentiles
from deepcovid_edge.benchmarking.samples import Samples, Values
from deepcovid_edge.benchmarking.settings import OFFLINE, SERVER
from deepcovid_edge.benchmarking.stability import Verdict, assess_stability
from deepcovid_edge.decision.results import plain
from deepcovid_edge.decision.statistics import Rate
from deepcovid_edge.errors import DataError
from deepcovid_edge.files import read_named

KIND = "deepcovid-edge bench"
SCHEMA_VERSION = 2
PARTS = ("device", "versions", "environment", "model", "data", "settings", "start", "memory")
"""Parts of a header, each with facts by name."""
_NUMBERS = re.compile(r"\[\s*(-?[\d.e+-]+(?:,\s*-?[\d.e+-]+)*)\s*\]")

HOST, EVENTS = "perf_counter_ns", "CUDA events"


@dataclass(frozen=True)
class Part:
    """A part of the work.

    Attributes:
        clock: `perf_counter_ns` or `CUDA events`.
        ms: Milliseconds of each image, or by CUDA events of each call, of shape (N,).
    """

    clock: str
    ms: Values


@dataclass(frozen=True)
class Run:
    """One scenario in one scope.

    Attributes:
        scope: One of `settings.SCOPES`.
        scenario: One of `settings.SCENARIOS`.
        batch: Images per query; in `offline`, per inference.
        lanes: Queries in progress at once.
        samples: The samples that count.
        warm_up: The samples before them.
        parts: Part -> its times.
        watched: From `watch.Watch.facts`.
        rate: Images per second that arrived, in `server`.
        deadline_ms: Longest time from arrival to result, in `server`.
        unserved: Images of `server` that got no answer.
        invocations: Number of samples of each process; empty for a single process.

    Raises:
        ValueError: Their sum is not the number of samples.
    """

    scope: str
    scenario: str
    batch: int
    lanes: int
    samples: Samples
    warm_up: Samples
    parts: Mapping[str, Part] = field(default_factory=dict)
    watched: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    deadline_ms: float | None = None
    unserved: int = 0
    invocations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        invocations = tuple(self.invocations) or (len(self.samples),)
        object.__setattr__(self, "invocations", invocations)
        if sum(self.invocations) != len(self.samples):
            raise ValueError(f"invocations {self.invocations} of {len(self.samples)} samples")

    @property
    def name(self) -> str:
        """Such as `network, single-stream`."""
        return f"{self.scope}, {self.scenario}"

    @property
    def key(self) -> tuple[str, str, int, int, float | None, float | None]:
        """What must be equal in runs that are compared."""
        return (self.scope, self.scenario, self.batch, self.lanes, self.rate, self.deadline_ms)

    def by_invocation(self) -> list[Samples]:
        """The samples of each process that measured it."""
        return self.samples.cut(self.invocations)

    def stability(self) -> Verdict:
        """Whether the machine held its speed."""
        events = {name: part.ms for name, part in self.parts.items() if part.clock == EVENTS}
        return assess_stability(self.samples, self.scenario, events, self.watched)

    def figures(self) -> dict[str, Any]:
        """Latency (not in `offline`), throughput, parts, deadline and energy."""
        images = int(self.samples.images.sum())
        seconds = self.samples.seconds
        used = self.watched.get("energy")
        return {
            "queries": len(self.samples),
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds if seconds else None,
            "latency_ms": None if self.scenario == OFFLINE else latency(self.samples),
            "parts_ms": {
                name: {"clock": part.clock, "samples": len(part.ms), **spread(part.ms)}
                for name, part in self.parts.items()
            },
            "deadline": self._deadline(),
            "joules_per_image": used["joules"] / images if used and images else None,
        }

    def _deadline(self) -> dict[str, Any] | None:
        if self.scenario != SERVER or self.deadline_ms is None:
            return None
        met = int((self.samples.latency_ms <= self.deadline_ms).sum())
        rate = Rate(met, len(self.samples) + self.unserved)
        return {
            "ms": self.deadline_ms,
            "arrived": rate.trials,
            "met": met,
            "share": rate.value,
            "interval_95": list(rate.interval_95),
            "unserved": self.unserved,
        }

    def as_dict(self) -> dict[str, Any]:
        """As plain values, with figures and verdict."""
        kept = {name: plain(getattr(self, name)) for name in _STORED}
        return {
            **kept,
            "figures": self.figures(),
            "stability": self.stability().as_dict(),
            "watched": dict(self.watched),
            "parts": plain(self.parts),
            "warm_up_ns": self.warm_up.as_dict(),
            "samples_ns": self.samples.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The run that `as_dict` wrote; figures and verdict are computed again."""
        parts = {
            name: Part(part["clock"], np.asarray(part["ms"], np.float64))
            for name, part in values["parts"].items()
        }
        return cls(
            **{name: values[name] for name in _STORED},
            samples=Samples.from_dict(values["samples_ns"]),
            warm_up=Samples.from_dict(values["warm_up_ns"]),
            parts=parts,
            watched=dict(values["watched"]),
        )


_STORED = ["scope", "scenario", "batch", "lanes", "rate", "deadline_ms", "unserved", "invocations"]
"""Fields of a run that its file holds as they are."""


@dataclass(frozen=True)
class Result:
    """A measurement.

    Attributes:
        header: What is the same for all runs: `measured_at`, `timing` and each of `PARTS`.
        runs: In the order in which they were measured.
    """

    header: Mapping[str, Any]
    runs: tuple[Run, ...]

    def unstable(self) -> list[str]:
        """Why runs were unstable, a line each; empty where all were stable."""
        return [
            f"{run.name}: {'; '.join(verdict.reasons)}"
            for run in self.runs
            if not (verdict := run.stability()).stable
        ]

    def as_dict(self) -> dict[str, Any]:
        """As plain values: what the file holds."""
        runs = [run.as_dict() for run in self.runs]
        return {"kind": KIND, "schema_version": SCHEMA_VERSION, **plain(self.header), "runs": runs}

    def to_json(self) -> str:
        """The file's text: readable, with each column of numbers on one line."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        return _NUMBERS.sub(lambda found: "[" + "".join(found[1].split()) + "]", text) + "\n"


def latency(samples: Samples) -> dict[str, Any]:
    """Latency of queries, milliseconds."""
    values = samples.latency_ms
    return {**spread(values), "percentiles": percentiles(values)}


def spread(values: Values) -> dict[str, float | None]:
    """Mean, median and range; None without values."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "min", "max"))
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def read_result(path: Path) -> Result:
    """Read a stored result.

    Raises:
        NotThereError: The file cannot be opened.
        DataError: It is not a result of `bench`, or of another schema version.
    """
    try:
        content = json.loads(read_named(path).decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): expected a file of bench -o") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DataError(f"{path}: not a result of deepcovid-edge bench -o")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: got schema version {version!r}, expected {SCHEMA_VERSION}: install the "
            "deepcovid-edge that wrote it, or measure again"
        )
    if missing := [name for name in PARTS if not isinstance(content.get(name), dict)]:
        raise DataError(f"{path}: damaged (no {', '.join(missing)}): measure again")
    try:
        runs = tuple(Run.from_dict(run) for run in content.pop("runs"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error!r}): measure again") from error
    header = {key: content[key] for key in content if key not in ("kind", "schema_version")}
    return Result(header, runs)
