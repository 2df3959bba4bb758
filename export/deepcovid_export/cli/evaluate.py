"""`deepcovid-edge evaluate`: how often models are right, and whether they read the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath, path_option
from deepcovid_edge.errors import require


@click.command(
    epilog="Example: deepcovid-edge evaluate squeezenet1_1 images/ --split test -o report/",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.argument("data", type=NamedPath())
@click.option("--split", help="Only the images of this split.")
@click.option(
    "--shortcuts/--no-shortcuts",
    default=None,
    help="Also classify the images with the lungs hidden and with the lungs only: does the model "
    "read the source? Four more passes over the images.  [default: if a page is written]",
)
@click.option(
    "--also", type=NamedPath(), multiple=True, metavar="DATA", help="More data, measured with DATA."
)
@click.option("--name", help="What the images are called in the report.  [default: the split]")
@click.option(
    "--occlusion-images",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Where DATA has boxes: images whose occlusion maps are held against them.",
)
@path_option(
    "-o", "--output", help="A folder for report.json and report.html, or FILE.json or FILE.html."
)
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout instead of text.")
def command(
    models: tuple[str, ...],
    data: Path,
    split: str | None,
    shortcuts: bool | None,
    also: tuple[Path, ...],
    name: str | None,
    occlusion_images: int,
    output: Path | None,
    json_out: bool,
) -> int:
    """Measure each MODEL on the labelled images of DATA at its own threshold.

    A MODEL is a shipped name, an .onnx file, an engine or a checkpoint. If there are several, each
    is compared with the first. Sensitivity and specificity have 95 % intervals, over all images
    and by source. Where images have boxes, heat maps are compared with them.
    """
    require("sklearn", extra="export")
    from deepcovid_edge.datasets.dataset import load_one_split
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.files import check_writable
    from deepcovid_edge.models import find_model
    from deepcovid_export.evaluation.evaluate import evaluate, evaluate_side_by_side
    from deepcovid_export.evaluation.localisation import LocalisationSettings
    from deepcovid_export.report.write import Targets, as_json, write_report

    targets = Targets.of(output)
    if targets.html:
        for module in ("matplotlib", "jinja2"):
            require(module, extra="export")
    set_up()
    images = [image for place in (data, *also) for image in load_one_split(place, split=split)]
    hiding = targets.html is not None if shortcuts is None else shortcuts
    paths, description = [find_model(model) for model in models], name or split or data.name
    settings: Any = {
        "description": description,
        "shortcuts": hiding,
        "localisation": LocalisationSettings(occlusion_images),
    }
    for target in filter(None, (targets.json, targets.html)):
        check_writable(target)
    if len(paths) == 1:
        report = evaluate(paths[0], images, **settings).as_dict()
    else:
        report = evaluate_side_by_side(paths, images, **settings).as_dict()
    evaluations = report.get("evaluations") or [report]
    try:
        write_report(report, targets)
    finally:
        click.echo(as_json(report) if json_out else "\n\n".join(map(summary, evaluations)))
    some = any(it["not_assessed"] for it in evaluations)
    return ExitCode.NOT_ASSESSED if some else ExitCode.DONE


def summary(figures: dict[str, Any]) -> str:
    """The figures of one model as lines for people."""
    from deepcovid_export.report.rendering import area_text, counted_text

    def accuracy(group: dict[str, Any]) -> str:
        return "  ".join(
            f"{name} {counted_text(group[name])}" for name in ("sensitivity", "specificity")
        )

    def counted(images: int) -> str:
        return f"{images:>4} {'image ' if images == 1 else 'images'}"

    head = f"{figures['model']} ({figures['precision']}) on {figures['data']}, threshold "
    lines = [head + f"{figures['threshold']:.4f}. {figures['notice']}"]
    for name, group in {"all images": figures["overall"], **figures["by_source"]}.items():
        counts = f"{name:<58} {counted(group['images'])}"
        lines.append(f"{counts}  AUC {area_text(group)}  {accuracy(group)}")
    if span := figures["indeterminate_range"]:
        counts = f"{'those that `infer` decides on':<58} {counted(span['decided_images'])}"
        lines.append(f"{counts}  {accuracy(span['decided'])}")
        ends = f"from {span['low']:.4f} to {span['high']:.4f}"
        lines.append(f"too close to call, {ends}: {counted_text(span['indeterminate'])}")
    for name, share in figures.get("indeterminate_by_source", {}).items():
        lines.append(f"too close to call at {name:<41} {counted_text(share)}")
    for label, own in figures.get("soft_labels", {}).items():
        lines.append(
            f"label {label}, no truth: called positive {counted_text(own['called_positive'])}"
        )
    for found in figures.get("localisation", ()):
        lines.append(
            f"{found['method']} maps of {found['images']} images: peak in a box "
            f"{counted_text(found['pointing_game'])}, by chance {found['chance']:.1%}; "
            f"{found['inside']:.1%} of the map in boxes; overlap {found['overlap']:.3f}"
        )
    if shortcuts := figures["shortcuts"]:
        lines.append(shortcuts["verdict"])
    if unlike := figures["out_of_distribution"]:
        share = counted_text(unlike)
        lines.append(
            f"unlike the training images: {share}, which `infer` does not assess; the figures of "
            "all images include them"
        )
    else:
        lines.append("no out-of-distribution limits: `infer` classifies any image")
    return "\n".join([*lines, *_not_counted(figures)])


def _not_counted(figures: dict[str, Any]) -> Iterator[str]:
    from deepcovid_edge.datasets.contents import repeated_text
    from deepcovid_edge.device.progress import number_of

    for reason, count in figures["not_assessed"].items():
        yield f"not assessed: {number_of(count, 'image')}: {reason}"
    if repeated := figures.get("repeated"):
        yield repeated_text(repeated)
