"""`deepcovid-edge compare`: ratios of measurements that were taken alike."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath

if TYPE_CHECKING:
    from deepcovid_edge.benchmarking.compare import Comparison, Ratio


@click.command(epilog="Example: deepcovid-edge compare before.json after.json --max-slowdown 0.05")
@click.argument("results", nargs=-1, required=True, type=NamedPath())
@click.option("--force", is_flag=True, help="Compare runs that were not measured alike.")
@click.option("--all", "show_all", is_flag=True, help="Also show figures that do not differ.")
@click.option(
    "--smallest-change",
    type=float,
    default=0.02,
    show_default=True,
    help="Smaller changes do not count; equal runs differ that much.",
)
@click.option("--max-slowdown", type=float, help="Exit with 3 if slower by more, such as 0.05.")
@click.option("--markdown", "kind", flag_value="markdown", default="markdown", help="Default.")
@click.option("--csv", "kind", flag_value="csv", help="All ratios as CSV.")
@click.option("--json", "kind", flag_value="json", help="Everything, as JSON.")
def command(
    results: tuple[Path, ...],
    force: bool,
    show_all: bool,
    smallest_change: float,
    max_slowdown: float | None,
    kind: str,
) -> int:
    """Compare each of RESULTS, files of `bench -o`, with the first of them.

    A ratio is a time divided by the first file's time: 1.10 is 10 % slower. Runs are compared only
    if device, scope, scenario, batch, rate and clock are the same. With `--max-slowdown`, unstable
    runs can neither pass nor fail; the exit code is then 7.
    """
    from deepcovid_edge.benchmarking.compare import CompareRules, compare
    from deepcovid_edge.benchmarking.results import read_result
    from deepcovid_edge.errors import UsageError

    if len(results) < 2:
        raise click.UsageError("name two files of `deepcovid-edge bench -o` or more.")
    if max_slowdown is not None and not 0 <= max_slowdown < math.inf:  # NaN is outside too
        raise UsageError(f"--max-slowdown: got {max_slowdown}, expected 0 or more, such as 0.05")
    rules = CompareRules(smallest_change=smallest_change, force=force)
    first, *others = [(str(path), read_result(path)) for path in results]
    comparisons = [compare(first[1], result, (first[0], name), rules) for name, result in others]
    click.echo(_WRITERS[kind](comparisons, show_all), nl=False)
    return 0 if max_slowdown is None else _slowdown_code(comparisons, max_slowdown)


def _slowdown_code(comparisons: Sequence[Comparison], slowdown: float) -> int:
    slower = [
        (comparison, ratio)
        for comparison in comparisons
        for ratio in comparison.slower_than(slowdown)
    ]
    for comparison, ratio in slower:
        click.echo(
            f"slower: {comparison.candidate}: {ratio.run}: {ratio.figure} {ratio.ratio:.3f} times "
            f"that of {comparison.reference}, allowed {1 + slowdown:g}",
            err=True,
        )
    if any(comparison.unstable for comparison in comparisons):
        click.echo("unstable runs can neither pass nor fail: measure again", err=True)
        return ExitCode.UNSTABLE
    return ExitCode.NOT_EQUIVALENT if slower else 0


def markdown(comparisons: Sequence[Comparison], show_all: bool) -> str:
    """Tables for people; figures that do not differ are counted, and shown on request."""
    return "\n".join(_table(comparison, show_all) for comparison in comparisons)


def _table(comparison: Comparison, show_all: bool) -> str:
    shown = [ratio for ratio in comparison.ratios if ratio.significant or show_all]
    hidden = len(comparison.ratios) - len(shown)
    lines = [f"{comparison.candidate} against {comparison.reference}", ""]
    if shown:
        lines += [
            "| run | figure | reference ms | candidate ms | ratio [95 %] | |",
            "| --- | --- | --- | --- | --- | --- |",
            *map(_line, shown),
        ]
    if hidden:
        lines.append(f"\n{hidden} of {len(comparison.ratios)} figures do not differ significantly.")
    for name in ("not_comparable", "changed", "unstable", "only_one"):
        title = name.replace("_", " ")
        lines += [f"{title}: {text}" for text in getattr(comparison, name)]
    return "\n".join(lines) + "\n"


def _line(ratio: Ratio) -> str:
    low, high = ratio.interval_95
    change = ("slower" if ratio.ratio > 1 else "faster") if ratio.significant else "not significant"
    return (
        f"| {ratio.run} | {ratio.figure} | {ratio.reference:.3g} | {ratio.candidate:.3g} | "
        f"{ratio.ratio:.3f} [{low:.3f}, {high:.3f}] | {change} |"
    )


def as_csv(comparisons: Sequence[Comparison], _: bool) -> str:
    """One row for each ratio."""
    written = io.StringIO()
    writer = csv.writer(written)
    names = ("run", "figure", "reference", "candidate", "ratio")
    writer.writerow(
        ("reference_file", "candidate_file", *names, "low_95", "high_95", "significant")
    )
    for comparison in comparisons:
        files = (comparison.reference, comparison.candidate)
        for ratio in comparison.ratios:
            figures = (getattr(ratio, name) for name in names)
            writer.writerow((*files, *figures, *ratio.interval_95, ratio.significant))
    return written.getvalue()


def as_json(comparisons: Sequence[Comparison], _: bool) -> str:
    """Everything."""
    return json.dumps([comparison.as_dict() for comparison in comparisons], indent=2) + "\n"


_WRITERS = {"markdown": markdown, "csv": as_csv, "json": as_json}
