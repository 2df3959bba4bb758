"""`deepcovid-edge heatmap`: where the network looked, as pictures, maps and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.classify import classify_images
from deepcovid_edge.cli.options import (
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
    help="Write pictures and maps into this folder.",
)
@click.option(
    "--method",
    type=click.Choice(["occlusion", "activation"]),
    default="occlusion",
    show_default=True,
    help="Hide windows, or what the network gives beside its logits.",
)
@click.option("--window", default=32, show_default=True, help="Side of a window, pixels.")
@click.option("--stride", default=8, show_default=True, help="From window to window, pixels.")
@click.option(
    "--baseline",
    type=click.Choice(["black", "mean", "blurred"]),
    default="black",
    show_default=True,
    help="What a hidden window shows.",
)
@click.option(
    "--budget", type=duration, metavar="TIME", help="Most time for an image, such as 200ms."
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

    Writes a picture (image, map and both laid over each other) and the map itself (.npz) for each
    image, and its record to stdout; the record has the regions as boxes on the image. Windows and
    strides are pixels of the network's input. With --budget the image is classified with few
    windows first, then with more where they matter, until the time is spent.
    """
    from deepcovid_edge.heatmaps.explainer import HeatMapSettings
    from deepcovid_edge.heatmaps.windows import OcclusionSettings

    windows = OcclusionSettings(window, stride, baseline, budget)
    maps = HeatMapSettings(method, folder, overlay=True, occlusion=windows)
    from deepcovid_edge.run import RunSettings

    run, model = split_options(options)
    return classify_images(RunSettings(paths, heatmaps=maps, **run), **model)
