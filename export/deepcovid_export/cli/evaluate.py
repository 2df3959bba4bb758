"""`deepcovid-edge evaluate`: how often is a model right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.errors import UsageError, require

_SOME_NOT_ASSESSED = 4


@click.command(
    epilog="Example: deepcovid-edge evaluate squeezenet1_1 films/ --split test -o test.json",
)
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", help="Only the films of this split.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")
def command(model: str, data: Path, split: str | None, output: Path | None, as_json: bool) -> int:
    """Measure MODEL on the labelled films of DATA at the model's own threshold.

    Sensitivity and specificity carry 95 % intervals (Wilson), over all films and by source.
    """
    require("sklearn", extra="export")
    from deepcovid_edge.dataset import load_dataset
    from deepcovid_edge.models import find_model
    from deepcovid_export.evaluate import evaluate

    films = load_dataset(data, split=split)
    if splits := sorted({film.split for film in films if film.split} - {split}):
        raise UsageError(f"--split: {data} has {', '.join(splits)}, which do not pool: give one")
    figures = evaluate(find_model(model), films, description=split or data.name)
    text = json.dumps(figures, indent=2)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    click.echo(text if as_json else summary(figures))
    return _SOME_NOT_ASSESSED if figures["not_assessed"] else 0


def summary(figures: dict[str, Any]) -> str:
    """The figures as lines for people."""
    head = f"{figures['model']} ({figures['precision']}) on {figures['data']}, threshold "
    lines = [head + f"{figures['threshold']:.4f}. Research use only."]
    groups = {"all films": figures["overall"], **figures["by_source"]}
    for name, group in groups.items():
        lines.append(
            f"{name:<58} {group['films']:>4} films  AUC {_area(group)}  "
            f"sensitivity {_rate(group['sensitivity'])}  specificity {_rate(group['specificity'])}"
        )
    for reason, count in figures["not_assessed"].items():
        lines.append(f"not assessed: {count} films: {reason}")
    return "\n".join(lines)


def _area(group: dict[str, Any]) -> str:
    if group["auc"] is None:
        return "-"
    low, high = group["auc_interval_95"]
    return f"{group['auc']:.3f} [{low:.3f}, {high:.3f}]"


def _rate(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return "-"
    low, high = rate["interval_95"]
    return f"{rate['value']:.3f} [{low:.3f}, {high:.3f}] ({rate['successes']}/{rate['trials']})"
