"""`deepcovid-edge evaluate`: how often are models right, and by what do they tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepcovid_edge.errors import UsageError, require
from deepcovid_export.report.wording import area_text, counted_text

_SOME_NOT_ASSESSED = 4


@click.command(
    epilog="Example: deepcovid-edge evaluate squeezenet1_1 images/ --split test -o report/",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", help="Only the images of this split.")
@click.option(
    "--shortcuts/--no-shortcuts",
    default=None,
    help="Also classify the images with the lungs hidden and alone: does the model read "
    "the source? "
    "On where a page is written; four more passes over the images.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A folder for report.json and report.html, or FILE.json or FILE.html alone.",
)
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout instead of text.")
def command(
    models: tuple[str, ...],
    data: Path,
    split: str | None,
    shortcuts: bool | None,
    output: Path | None,
    json_out: bool,
) -> int:
    """Measure each MODEL on the labelled images of DATA at its own threshold.

    A model is a shipped one's name, an .onnx file, an engine or a checkpoint; several are compared
    with the first. Sensitivity and specificity carry 95 % intervals, over all images and by source.
    """
    require("sklearn", extra="export")
    from deepcovid_edge.datasets.dataset import load_dataset
    from deepcovid_edge.models import find_model
    from deepcovid_export.evaluation.evaluate import evaluate, evaluate_side_by_side
    from deepcovid_export.report.write import Targets, as_json, write_report

    targets = Targets.of(output)
    if targets.html:
        for module in ("matplotlib", "jinja2"):
            require(module, extra="export")
    images = load_dataset(data, split=split)
    if splits := sorted({image.split for image in images if image.split} - {split}):
        raise UsageError(f"--split: {data} has {', '.join(splits)}, which do not pool: give one")
    hiding = targets.html is not None if shortcuts is None else shortcuts
    paths, description = [find_model(model) for model in models], split or data.name
    if len(paths) == 1:
        report = evaluate(paths[0], images, description=description, shortcuts=hiding)
    else:
        report = evaluate_side_by_side(paths, images, description=description, shortcuts=hiding)
    write_report(report, targets)
    evaluations = report.get("evaluations") or [report]
    text = as_json(report) if json_out else "\n\n".join(map(summary, evaluations))
    click.echo(text)
    return _SOME_NOT_ASSESSED if any(it["not_assessed"] for it in evaluations) else 0


def _refusals(share: dict[str, Any] | None) -> str:
    if share is None:
        return "no out-of-distribution limits: `infer` classifies any image"
    return (
        f"unlike the training images: {counted_text(share)}, which `infer` refuses; they are in "
        "these figures"
    )


def summary(figures: dict[str, Any]) -> str:
    """The figures of one model as lines for people."""
    head = f"{figures['model']} ({figures['precision']}) on {figures['data']}, threshold "
    lines = [head + f"{figures['threshold']:.4f}. {figures['notice']}"]
    groups = {"all images": figures["overall"], **figures["by_source"]}
    for name, group in groups.items():
        lines.append(
            f"{name:<58} {group['images']:>4} images  AUC {area_text(group)}  "
            f"sensitivity {counted_text(group['sensitivity'])}  "
            f"specificity {counted_text(group['specificity'])}"
        )
    if indeterminate_range := figures["indeterminate_range"]:
        lines.append(
            f"{'but those too close to call':<58} "
            f"{indeterminate_range['decided_images']:>4} images  "
            f"sensitivity {counted_text(indeterminate_range['decided']['sensitivity'])}  "
            f"specificity {counted_text(indeterminate_range['decided']['specificity'])}"
        )
        lines.append(
            f"too close to call, from {indeterminate_range['low']:.4f} "
            f"to {indeterminate_range['high']:.4f}: "
            f"{counted_text(indeterminate_range['indeterminate'])}"
        )
    if shortcuts := figures["shortcuts"]:
        lines.append(shortcuts["verdict"])
    lines.append(_refusals(figures["out_of_distribution"]))
    for reason, count in figures["not_assessed"].items():
        lines.append(f"not assessed: {count} images: {reason}")
    return "\n".join(lines)
