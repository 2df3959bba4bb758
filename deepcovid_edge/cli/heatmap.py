"""`deepcovid-edge heatmap`: where the network looked, as pictures, maps and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.classify import classify_images
from deepcovid_edge.cli.options import (
    check_needed,
    duration,
    path_option,
    paths_argument,
    run_options,
    split_options,
)


@click.command(
    epilog="Example: deepcovid-edge heatmap images/ -o heatmaps --budget 500ms. Research use only.",
)
@paths_argument
@path_option(
    "-o",
    "--output",
    "folder",
    folder=True,
    default=Path("heatmaps"),
    show_default=True,
    help="Folder for pictures and maps.",
)
@click.option(
    "--method",
    type=click.Choice(["occlusion", "activation"]),
    default="occlusion",
    show_default=True,
    help="Hide windows and classify again, or read the class activation map.",
)
@click.option("--window", default=32, show_default=True, help="Side of a window, in pixels.")
@click.option("--stride", default=8, show_default=True, help="Step between windows, in pixels.")
@click.option(
    "--baseline",
    type=click.Choice(["black", "mean", "blurred"]),
    default="black",
    show_default=True,
    help="What a hidden window shows.",
)
@click.option(
    "--budget", type=duration, metavar="TIME", help="Longest time for one image, such as 200ms."
)
@run_options
def command(
    paths: tuple[Path, ...],
    folder: Path,
    method: str,
    window: int,
    stride: int,
    baseline: str,
    budget: float | None,
    **options: Any,
) -> int:
    """Show where the network looked on each image of PATHS.

    For each image it writes a picture (the image, the map over it, and the result in words) and the
    map itself (.npz). The record goes to stdout and has the regions as boxes on the image. Window
    and stride count pixels of the model input. With --budget, a few windows are tried first, then
    more where they matter, until the time is spent.
    """
    is_occlusion = method == "occlusion"
    check_needed("--method occlusion", is_occlusion, "window", "stride", "baseline", "budget")
    from deepcovid_edge.heatmaps.explainer import HeatMapSettings
    from deepcovid_edge.heatmaps.windows import OcclusionSettings

    windows = OcclusionSettings(window, stride, baseline, budget)
    maps = HeatMapSettings(method, folder, overlay=True, occlusion=windows)
    from deepcovid_edge.run import RunSettings

    run, model = split_options(options)
    return classify_images(RunSettings(paths, heatmaps=maps, **run), **model)
