"""A measurement as a file: versioned JSON that holds the raw samples and all that surrounds them.

Figures in the file are for people; reading computes them again from the samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepcovid_edge.bench.percentiles import percentiles
from deepcovid_edge.bench.samples import Samples, Values
from deepcovid_edge.bench.settings import OFFLINE, SERVER
from deepcovid_edge.bench.stability import Verdict, assess_stability
from deepcovid_edge.decision.statistics import wilson
from deepcovid_edge.errors import DataError, NotThereError
from deepcovid_edge.files import read_regular

KIND = "deepcovid-edge bench"
SCHEMA_VERSION = 2
HISTORY = {
    1: "The first: header, runs with raw samples, warm-ups, parts and what was watched.",
    2: "Invocations: how many samples of a run each process gave that measured it.",
}
"""What each version of the file brought. `read_result` reads them all; tests keep one of each."""
_NUMBERS = re.compile(r"\[\s*(-?[\d.e+-]+(?:,\s*-?[\d.e+-]+)*)\s*\]")

HOST, EVENTS = "perf_counter_ns", "CUDA events"


@dataclass(frozen=True)
class Part:
    """A part of the work.

    Attributes:
        clock: `perf_counter_ns` or `CUDA events`.
        ms: Milliseconds, an image or (by CUDA events) a call each, of shape (N,).
    """

    clock: str
    ms: Values


@dataclass(frozen=True)
class Run:
    """One scenario in one scope.

    Attributes:
        scope: Of `settings.SCOPES`.
        scenario: Of `settings.SCENARIOS`.
        batch: Images a query; in `offline`, an inference.
        lanes: Queries under way at once.
        samples: Those that count.
        warm_up: Those before them.
        parts: Part -> its times.
        watched: From `watch.Watch.facts`.
        rate: Images that arrived a second, in `server`.
        deadline_ms: Of `server`.
        unserved: Images of `server` that were given up.
        invocations: Samples of each process that measured it; all of one where none are given.

    Raises:
        ValueError: There are more or fewer samples than that.
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
        if not self.invocations:
            object.__setattr__(self, "invocations", (len(self.samples),))
        if sum(self.invocations) != len(self.samples):
            raise ValueError(f"invocations {self.invocations} of {len(self.samples)} samples")

    @property
    def name(self) -> str:
        """Such as `network, single-stream`."""
        return f"{self.scope}, {self.scenario}"

    def by_invocation(self) -> list[Samples]:
        """The samples of each process that measured it."""
        return self.samples.cut(self.invocations)

    def stability(self) -> Verdict:
        """Whether the machine held its speed."""
        events = {name: part.ms for name, part in self.parts.items() if part.clock == EVENTS}
        return assess_stability(self.samples, self.scenario, events, self.watched)

    def figures(self) -> dict[str, Any]:
        """What the samples say: latency (not of `offline`), throughput, parts, deadline, energy."""
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
        arrived = len(self.samples) + self.unserved
        return {
            "ms": self.deadline_ms,
            "arrived": arrived,
            "met": met,
            "share": met / arrived if arrived else None,
            "interval_95": list(wilson(met, arrived)),
            "unserved": self.unserved,
        }

    def as_dict(self) -> dict[str, Any]:
        """As plain values, with figures and verdict."""
        return {
            "scope": self.scope,
            "scenario": self.scenario,
            "batch": self.batch,
            "lanes": self.lanes,
            "rate": self.rate,
            "deadline_ms": self.deadline_ms,
            "unserved": self.unserved,
            "invocations": list(self.invocations),
            "figures": self.figures(),
            "stability": self.stability().as_dict(),
            "watched": dict(self.watched),
            "parts": {
                name: {"clock": part.clock, "ms": part.ms.tolist()}
                for name, part in self.parts.items()
            },
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
            scope=values["scope"],
            scenario=values["scenario"],
            batch=values["batch"],
            lanes=values["lanes"],
            samples=Samples.from_dict(values["samples_ns"]),
            warm_up=Samples.from_dict(values["warm_up_ns"]),
            parts=parts,
            watched=values["watched"],
            rate=values["rate"],
            deadline_ms=values["deadline_ms"],
            unserved=values["unserved"],
            invocations=tuple(values["invocations"]),
        )


@dataclass(frozen=True)
class Result:
    """A measurement.

    Attributes:
        header: What is the same for all runs: `measured_at`, `device`, `versions`, `environment`,
            `model`, `data`, `settings`, `timing`, `start`, `memory`.
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

    def to_json(self) -> str:
        """The file's text: readable, with columns of numbers on a line each."""
        content = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            **self.header,
            "runs": [run.as_dict() for run in self.runs],
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        return _NUMBERS.sub(lambda found: "[" + "".join(found[1].split()) + "]", text) + "\n"


def _with_invocations(content: dict[str, Any]) -> dict[str, Any]:
    for run in content["runs"]:
        run["invocations"] = [len(run["samples_ns"]["ended"])]
    return content


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _with_invocations}
"""Version -> what makes the next one of it."""


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
    """Read a stored result of any schema version.

    Raises:
        NotThereError: The file cannot be opened.
        DataError: It is no result of `bench`, or of a newer version.
    """
    try:
        content = json.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): expected a file of bench -o") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DataError(f"{path}: not a result of deepcovid-edge bench -o")
    version = content.get("schema_version")
    if version not in HISTORY:
        raise DataError(
            f"{path}: schema version {version!r}, this deepcovid-edge reads 1 to "
            f"{SCHEMA_VERSION}: install the one that wrote it, or newer"
        )
    try:
        for step in range(version, SCHEMA_VERSION):
            content = _UPGRADES[step](content)
        runs = tuple(Run.from_dict(run) for run in content.pop("runs"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error!r}): measure again") from error
    header = {key: content[key] for key in content if key not in ("kind", "schema_version")}
    return Result(header, runs)
