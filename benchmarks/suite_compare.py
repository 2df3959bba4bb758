"""Hold every result of a second run of a suite against the stored one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from deepcovid_edge.bench.compare import CompareRules, Comparison, compare
from deepcovid_edge.bench.results import KIND, read_result
from deepcovid_edge.cli.compare import markdown
from deepcovid_edge.errors import UnlikeRunsError

DIFFERENT, UNSTABLE = 3, 7


def against(stored: Path, again: Path, smallest_change: float) -> int:
    """Compare two folders of results, print what differs and why it may; the exit code.

    Returns:
        0 where nothing differs significantly, 7 where what differs was unstable (the reasons are
        printed), 3 where stable runs differ, or were not taken alike, or have no partner.
    """
    rules = CompareRules(smallest_change=smallest_change)
    names, others = (set(found(folder)) for folder in (stored, again))
    alone = sorted(map(str, names ^ others))
    refused, comparisons = [], []
    for name in sorted(names & others):
        pair = (read_result(stored / name), read_result(again / name))
        try:
            comparisons.append(compare(*pair, (f"stored {name}", f"{name}"), rules))
        except UnlikeRunsError as error:
            refused.append(str(error))
    differing = [one for one in comparisons if any(ratio.significant for ratio in one.ratios)]
    if differing:
        print(markdown(differing, show_all=False))
    for line in (*(f"only in one: {name}" for name in alone), *refused):
        print(line)
    ratios = [ratio for one in comparisons for ratio in one.ratios]
    print(
        f"{len(comparisons)} files, {len(ratios)} figures: "
        f"{sum(ratio.significant for ratio in ratios)} differ significantly by "
        f"{smallest_change:.0%} or more, {len(list(stable_differences(differing)))} of them in "
        "stable runs"
    )
    if refused or alone or any(stable_differences(differing)):
        return DIFFERENT
    return UNSTABLE if differing else 0


def found(folder: Path) -> Iterator[Path]:
    """Results of `bench` under a folder, relative to it."""
    for path in folder.rglob("*.json"):
        if json.loads(path.read_text("utf-8")).get("kind") == KIND:
            yield path.relative_to(folder)


def stable_differences(comparisons: list[Comparison]) -> Iterator[str]:
    """Significant ratios of runs that neither side calls unstable."""
    for one in comparisons:
        for ratio in one.ratios:
            unstable = any(f": {ratio.run}:" in reason for reason in one.unstable)
            if ratio.significant and not unstable:
                yield ratio.run
