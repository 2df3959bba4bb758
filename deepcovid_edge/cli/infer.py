"""`deepcovid-edge infer`: files and folders in, one record per image out."""

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
from deepcovid_edge.device.streams import is_stdout_closed


@click.command(
    epilog="Example: deepcovid-edge infer images/ -o results.jsonl. Research use only.",
)
@paths_argument
@path_option("-o", "--output", help="File for the records: .jsonl or .csv.  [default: stdout]")
@run_options
@click.option("--batch-size", type=int, help="Images per inference call.  [default: 1, on a GPU 8]")
@click.option("--resume", is_flag=True, help="Continue the file of --output.")
@click.option("--heatmap", type=click.Choice(["occlusion", "activation"]), help="Make heat maps.")
@path_option(
    "--heatmap-dir",
    folder=True,
    help="Folder for the heat maps.  [default: heatmaps; with --html maps below its FOLDER]",
)
@click.option("--overlay", is_flag=True, help="With --heatmap: also draw a picture of each image.")
@path_option(
    "--html",
    folder=True,
    help="Folder for a page with pictures, for a browser. Makes activation maps unless --heatmap "
    "chooses another method.",
)
@click.option(
    "--budget",
    type=duration,
    metavar="TIME",
    help="Longest time for one occlusion map, such as 200ms.",
)
def command(
    paths: tuple[Path, ...],
    output: Path | None,
    heatmap: str | None,
    heatmap_dir: Path | None,
    overlay: bool,
    html: Path | None,
    resume: bool,
    budget: float | None,
    **options: Any,
) -> int:
    """Classify chest radiographs: one record for each file of PATHS, in a stable order.

    Folders are searched for images. A file that cannot be assessed gets a record with the reason
    and no probability. The run continues, and its exit code is 4. A folder without an image ends
    the command with exit code 6: a share that is not mounted looks like one.

    `--variant auto` runs the fastest variant of the model that was verified to decide as the model
    does: a TensorRT engine, else INT8 for CPUs where the processor computes it exactly.
    DEEPCOVID_EDGE_INT8=off in the environment turns INT8 off. Every record names the variant that
    ran. With --backend or --provider the named file itself runs.

    `--heatmap activation` needs no second run. `deepcovid-edge heatmap` has more options.
    """
    check_needed("--heatmap", heatmap is not None, "overlay")
    check_needed("--heatmap or --html", bool(heatmap or html), "heatmap_dir")
    check_needed("--heatmap occlusion", heatmap == "occlusion", "budget")
    if output is None and is_stdout_closed():
        raise click.UsageError("stdout is closed: name a file for the records with --output.")
    if html:
        heatmap, overlay, heatmap_dir = heatmap or "activation", True, heatmap_dir or html / "maps"
    maps = None
    if heatmap:
        from deepcovid_edge.heatmaps.explainer import HeatMapSettings
        from deepcovid_edge.heatmaps.windows import OcclusionSettings

        windows = OcclusionSettings(budget_ms=budget)
        folder = heatmap_dir or Path("heatmaps")
        maps = HeatMapSettings(heatmap, folder, overlay=overlay, occlusion=windows)
    from deepcovid_edge.run import RunSettings

    run, model = split_options(options)
    settings = RunSettings(paths, output, resume=resume, heatmaps=maps, html=html, **run)
    return classify_images(settings, **model)
