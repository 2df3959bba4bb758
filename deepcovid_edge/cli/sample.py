"""`deepcovid-edge sample`: synthetic radiographs to try everything on."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: deepcovid-edge sample demo-images --count 6")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--count", type=click.IntRange(1, 1000), default=6, show_default=True, help="Number of images."
)
def command(folder: Path, count: int) -> None:
    """Write synthetic radiographs into FOLDER, marked as synthetic in picture and metadata."""
    from deepcovid_edge.imaging.phantom import write_samples

    for path in write_samples(folder, count=count):
        click.echo(path)
