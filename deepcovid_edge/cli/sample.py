"""`deepcovid-edge sample`: a synthetic clinic folder to try everything on."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: deepcovid-edge sample demo-images --count 6")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=6,
    show_default=True,
    help="Number of radiographs.",
)
@click.option(
    "--others/--no-others",
    default=True,
    show_default=True,
    help="Also write files that cannot be assessed.",
)
def command(folder: Path, count: int, others: bool) -> None:
    """Write a synthetic clinic folder.

    It holds drawn radiographs, clear lungs and lungs with opacities in turn, marked as synthetic in
    picture and metadata. Beside them are files that a clinic also sends and that cannot be
    assessed: a cut-off JPEG, a lateral view, a CT slice, a photograph, a blank plate, an image that
    lies on its side. These need pydicom (extra `dicom`); without it add --no-others.
    """
    from deepcovid_edge.imaging.synthetic.clinic_folder import write_clinic_folder, write_phantoms

    for path in (write_clinic_folder if others else write_phantoms)(folder, count):
        click.echo(path)
