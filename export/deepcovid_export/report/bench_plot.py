"""Plots of `deepcovid-edge bench` results, for people: how often each latency, and when.

    python -m deepcovid_export.report.bench_plot cart.json other.json -o plot.svg

Left, the share of queries that took longer (in steps of ten, so that the tail can be seen); right,
the same queries in the order of their results, warm-ups before zero. A row for each run that the
results have in common. The workstation draws: a cart has no Matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepcovid_edge.benchmarking.results import Result, Run, read_result
from deepcovid_edge.benchmarking.samples import Samples, Values
from deepcovid_edge.benchmarking.settings import OFFLINE
from deepcovid_edge.errors import DataError

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "deepcovid-edge", "font.size": 9}
_WIDTH, _HEIGHT = 9.0, 2.6


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path, help=".svg, .png or .pdf")
    options = parser.parse_args()
    named = [(path.stem, read_result(path)) for path in options.results]
    draw(named, options.output)


def draw(named: Sequence[tuple[str, Result]], output: Path) -> None:
    """Draw results into a file.

    Raises:
        DataError: The results have no run in common.
    """
    runs = [{run.name: run for run in result.runs} for _, result in named]
    common = [name for name in runs[0] if all(name in others for others in runs)]
    if not common:
        raise DataError("results: no run in common: bench with the same --scope and --scenario")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(common)), layout="constrained")
        axes = figure.subplots(len(common), 2, squeeze=False)
        for (left, right), name in zip(axes, common, strict=True):
            for number, (label, _) in enumerate(named):
                _draw_run(left, right, runs[number][name], label, f"C{number}")
            left.set_title(name, loc="left")
            left.legend(frameon=False)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def _draw_run(left: Axes, right: Axes, run: Run, label: str, colour: str) -> None:
    unit = "ms an image" if run.scenario == OFFLINE else "ms"
    values = np.sort(_values(run, run.samples))
    longer = 1 - np.arange(len(values)) / len(values)
    stable = "" if run.stability().stable else ", unstable"
    left.step(values, longer, where="pre", color=colour, label=f"{label}{stable}")
    left.set(yscale="log", xlabel=unit, ylabel="share that took longer")
    for samples, alpha in ((run.warm_up, 0.3), (run.samples, 0.8)):
        seconds = samples.ended / 1e9
        if samples is run.warm_up and len(samples):
            seconds = seconds - seconds[-1]
        right.plot(seconds, _values(run, samples), ".", ms=2, color=colour, alpha=alpha)
    right.set(xlabel="seconds since the run began", ylabel=unit)


def _values(run: Run, samples: Samples) -> Values:
    return samples.gaps_ms if run.scenario == OFFLINE else samples.latency_ms


if __name__ == "__main__":
    main()
