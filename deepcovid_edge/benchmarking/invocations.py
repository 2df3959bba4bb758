"""One measurement by several processes, so that the differences between processes are part of it.

Placement in memory, core, temperature and other load stay much the same within a process, however
many samples it takes (Kalibera and Jones, ISMM 2013). Invocations minutes apart show how much they
matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepcovid_edge.benchmarking.results import Part, Result, Run
from deepcovid_edge.benchmarking.samples import Samples
from deepcovid_edge.errors import IncomparableRunsError

_SAME = ("device", "versions", "environment", "model", "data", "settings")
"""What invocations must have in common."""


def join(before: Result, now: Result) -> Result:
    """The invocations of both as one measurement, in this order.

    Raises:
        IncomparableRunsError: They were not measured alike.
    """
    check_alike(before, now.header)
    if [run.key for run in before.runs] != [run.key for run in now.runs]:
        raise _unlike(["runs"])
    earlier, later = before.header["memory"], now.header["memory"]
    memory = {
        name: max(
            (one[name] for one in (earlier, later) if one.get(name) is not None), default=None
        )
        for name in later
    }
    runs = tuple(
        _joined(first, second) for first, second in zip(before.runs, now.runs, strict=True)
    )
    return Result({**before.header, "memory": memory}, runs)


def check_alike(before: Result, header: Mapping[str, Any]) -> None:
    """Check that what is measured under a header can be joined with earlier invocations.

    Raises:
        IncomparableRunsError: It cannot.
    """
    if differing := [*_differing(before.header, header)]:
        raise _unlike(differing)


def _unlike(differing: Sequence[str]) -> IncomparableRunsError:
    return IncomparableRunsError(
        f"not measured like the earlier invocations: other {', '.join(differing)}: measure "
        "alike, or write another file"
    )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for part in _SAME:
        first, second = (json.loads(json.dumps(one.get(part))) for one in (before, now))
        for name in dict.fromkeys((*first, *second)):
            if first.get(name) != second.get(name):
                yield f"{part}.{name}"


def _joined(before: Run, now: Run) -> Run:
    counts = (len(before.invocations), len(now.invocations))
    parts = {
        name: Part(part.clock, np.concatenate([part.ms, now.parts[name].ms]))
        for name, part in before.parts.items()
        if name in now.parts
    }
    return replace(
        before,
        samples=Samples.joined([before.samples, now.samples]),
        warm_up=Samples.joined([before.warm_up, now.warm_up]),
        parts=parts,
        watched=_watched(before.watched, now.watched, *counts),
        unserved=before.unserved + now.unserved,
        invocations=(*before.invocations, *now.invocations),
    )


def _watched(
    before: Mapping[str, Any], now: Mapping[str, Any], count: int, more: int
) -> dict[str, Any]:
    """`Watch.facts` over both: ranges over both, shares and medians as their mean.

    A range has the first and last reading of the process in which it rose most: between two
    processes a machine cools.

    Args:
        before: Facts of some invocations.
        now: Facts of later ones.
        count: Number of invocations of `before`.
        more: Number of invocations of `now`.
    """

    def mean(first: float, second: float) -> float:
        return (first * count + second * more) / (count + more)

    facts: dict[str, Any] = {}
    for name in (name for name in before if name in now):
        first, second = before[name], now[name]
        if name == "slowed":
            facts[name] = sorted({*first, *second})
        elif name == "energy":
            whole = first and second and {**first, "joules": first["joules"] + second["joules"]}
            facts[name] = whole or None
        elif isinstance(first, Mapping):
            risen = max(first, second, key=lambda one: one["last"] - one["first"])
            facts[name] = {
                "first": risen["first"],
                "last": risen["last"],
                "min": min(first["min"], second["min"]),
                "max": max(first["max"], second["max"]),
                "median": mean(first["median"], second["median"]),
            }
        else:
            facts[name] = mean(first, second)
    return facts
