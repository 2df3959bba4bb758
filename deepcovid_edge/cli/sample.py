"""`deepcovid-edge sample`: a synthetic clinic folder to try everything on."""

from __future__ import annotations

from pathlib import Path

import click

from deepcovid_edge.cli.options import NamedPath


@click.command(epilog="Example: deepcovid-edge sample demo-images --count 6")
@click.argument("folder", type=NamedPath(folder=True))
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
@click.option(
    "--dicom", is_flag=True, help="Write the radiographs as DICOM files, as a console sends them."
)
def command(folder: Path, count: int, others: bool, dicom: bool) -> None:
    """Write a synthetic clinic folder.

    It holds drawn radiographs, clear lungs and lungs with opacities in turn, marked as synthetic in
    picture and metadata. Beside them are files that a clinic also sends and that cannot be
    assessed: a cut-off JPEG, a lateral view, a CT slice, a photograph, a blank plate, an image that
    lies on its side. These need pydicom (extra `dicom`); without it add --no-others. Each image of
    --dicom lies in a study of its own. Nothing is written where a file of one of these names is
    there with another content.
    """
    from deepcovid_edge.imaging.synthetic.clinic_folder import write_clinic_folder, write_phantoms

    write = write_clinic_folder if others else write_phantoms
    for path in write(folder, count, dicom=dicom):
        click.echo(path)
