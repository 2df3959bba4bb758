"""Options that most benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepcovid_edge.models import DEFAULT_MODEL


def parser_of(
    description: str | None,
    *,
    data: str | None = None,
    model: str | None = None,
    rounds: int | None = None,
) -> argparse.ArgumentParser:
    """A parser with the options that are asked for.

    Args:
        description: The benchmark's docstring, shown by `--help`.
        data: Help of the required `--data`; None for no such option.
        model: `one` for a `--model` with the shipped model as its default, `several` for one that
            may be repeated (None where it is not given); None for no such option.
        rounds: Default of `--rounds`; None for no such option.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if data:
        parser.add_argument("--data", type=Path, required=True, help=data)
    if model == "one":
        parser.add_argument("--model", default=DEFAULT_MODEL, help="name or FP32 .onnx file")
    elif model:
        parser.add_argument("--model", action="append", help="name or .onnx file; repeatable")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"[default: {rounds}]")
    return parser
