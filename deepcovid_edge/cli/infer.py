"""`deepcovid-edge infer`: files and folders in, one record per image out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepcovid_edge.cli.images import ImageRun, classify_images, duration, run_options


@click.command(
    epilog="Example: deepcovid-edge infer images/ -o results.jsonl. Research use only.",
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here: .jsonl or .csv.")
@run_options
@click.option("--batch-size", type=int, help="Images an inference.  [default: 1, on a GPU 8]")
@click.option("--resume", is_flag=True, help="Go on with the records already in --output.")
@click.option("--heatmap", type=click.Choice(["occlusion", "activation"]), help="Make heat maps.")
@click.option(
    "--heatmap-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("heatmaps"),
    show_default=True,
    help="Write them into this folder.",
)
@click.option("--overlay", is_flag=True, help="With --heatmap: draw a picture of each image too.")
@click.option(
    "--budget", type=duration, metavar="TIME", help="Most time for an occlusion, such as 200ms."
)
def command(
    paths: tuple[Path, ...],
    output: Path | None,
    heatmap: str | None,
    heatmap_dir: Path,
    overlay: bool,
    budget: float | None,
    **options: Any,
) -> int:
    """Classify chest radiographs: one record for each file of PATHS, in a stable order.

    Folders are walked. A file that cannot be assessed gets a record with the reason and no
    probability; the run goes on and exits with 4.

    `--backend auto` runs the fastest variant of the model that was proved to decide alike: a
    verified engine, else INT8 for CPUs. Every record names what ran. Name a backend to run the file
    itself.

    `--heatmap activation` needs no second run; `deepcovid-edge heatmap` has more to choose from.
    """
    if heatmap is None and overlay:
        raise click.UsageError("--overlay needs --heatmap occlusion or --heatmap activation.")
    if heatmap != "occlusion" and budget is not None:
        raise click.UsageError("--budget needs --heatmap occlusion.")
    maps = None
    if heatmap:
        from deepcovid_edge.heatmaps.explainer import HeatMapSettings
        from deepcovid_edge.heatmaps.windows import OcclusionSettings

        windows = OcclusionSettings(budget_ms=budget)
        maps = HeatMapSettings(heatmap, heatmap_dir, overlay=overlay, occlusion=windows)
    return classify_images(ImageRun(paths, output, heatmaps=maps, **options))
