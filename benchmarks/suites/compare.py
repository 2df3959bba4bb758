"""Hold every result of a second run of a suite against the stored one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deepcovid_edge.benchmarking.compare import CompareRules, Comparison, compare
from deepcovid_edge.benchmarking.results import KIND, read_result
from deepcovid_edge.cli.compare import markdown
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.errors import IncomparableRunsError

CLOCKS = "clocks: "
"""How `compare` begins its note on processors that ran at another speed."""


def against(stored: Path, again: Path, smallest_change: float) -> int:
    """Compare two folders of results, print what differs and why it may; the exit code.

    Returns:
        0 where nothing differs significantly, 7 where what differs was unstable or ran on other
        clocks (which is printed), 3 where stable runs differ, were not taken alike, or have no
        partner.
    """
    rules = CompareRules(smallest_change=smallest_change, force=True)
    names, others = (set(found(folder)) for folder in (stored, again))
    unmatched = [f"only in one: {name}" for name in sorted(map(str, names ^ others))]
    alike = []
    for name in sorted(names & others):
        pair = (read_result(stored / name), read_result(again / name))
        titles = (f"stored {name}", f"{name}")
        try:
            one = compare(*pair, titles, rules)
        except IncomparableRunsError as error:  # no run in common
            unmatched.append(str(error))
            continue
        unlike = [text for text in one.not_comparable if not text.startswith(CLOCKS)]
        unmatched += [f"{name}: not measured alike: {text}" for text in unlike]
        alike += [] if unlike else [(pair, titles, len(one.ratios))]
    figures = sum(count for _, _, count in alike)
    # One figure in twenty leaves its interval by chance; here one suite in twenty may.
    rules = replace(rules, confidence=1 - (1 - rules.confidence) / max(1, figures))
    comparisons = [compare(*pair, titles, rules) for pair, titles, _ in alike]
    differing = [one for one in comparisons if any(ratio.significant for ratio in one.ratios)]
    steady = list(stable_differences(differing))
    if differing:
        print(markdown(differing, show_all=False))
    print("\n".join([*unmatched, summary(comparisons, len(steady), smallest_change)]))
    if unmatched or steady:
        return ExitCode.NOT_EQUIVALENT
    return ExitCode.UNSTABLE if differing else ExitCode.DONE


def summary(comparisons: list[Comparison], steady: int, smallest_change: float) -> str:
    """How many figures differ, on one line."""
    ratios = [ratio for one in comparisons for ratio in one.ratios]
    return (
        f"{len(comparisons)} files, {len(ratios)} figures: "
        f"{sum(ratio.significant for ratio in ratios)} differ significantly by "
        f"{smallest_change:.0%} or more, {steady} of them in stable runs"
    )


def found(folder: Path) -> Iterator[Path]:
    """Results of `bench` under a folder, relative to it."""
    for path in folder.rglob("*.json"):
        if json.loads(path.read_text("utf-8")).get("kind") == KIND:
            yield path.relative_to(folder)


def stable_differences(comparisons: list[Comparison]) -> Iterator[str]:
    """Significant ratios of runs that neither side calls unstable, on the same clocks."""
    for one in comparisons:
        reasons = (
            *one.unstable,
            *(f": {text.removeprefix(CLOCKS)}" for text in one.not_comparable),
        )
        for ratio in one.ratios:
            unstable = any(f": {ratio.run}:" in reason for reason in reasons)
            if ratio.significant and not unstable:
                yield ratio.run
