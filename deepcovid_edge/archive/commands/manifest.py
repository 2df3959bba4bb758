"""`deepcovid-edge manifest`: the images of an archive as one Parquet file."""

from __future__ import annotations

from pathlib import Path

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import path_option


@click.command(
    epilog="Example: deepcovid-edge manifest /archive -o images.parquet. Research use only.",
)
@click.argument("folders", nargs=-1, required=True)
@path_option("-o", "--output", required=True, help="The manifest: a file that ends in .parquet.")
@click.option(
    "--threads", type=int, default=16, show_default=True, help="Threads that ask for size and time."
)
def command(folders: tuple[str, ...], output: Path, threads: int) -> int:
    """List the images of FOLDERS, for `deepcovid-edge screen`.

    FOLDERS are paths, or addresses of an object store such as s3://bucket/folder. The manifest has
    a row for each image, in the order of `infer`: path, size, time of the last change, and a 64-bit
    number. After a kill the same command goes on.
    """
    from deepcovid_edge.archive.images.addresses import close_stores
    from deepcovid_edge.archive.images.listing import Listing, ListSettings
    from deepcovid_edge.device.progress import number_of, progress_bar

    settings = ListSettings(folders, output, threads)
    try:
        with progress_bar(None) as progress:
            listing = Listing(settings, progress)
            listing.run()
    finally:
        close_stores()
    images = number_of(listing.images, "image is", "images are")
    click.echo(f"{images} listed in {output}.", err=True)
    for note in listing.notes():
        click.echo(note, err=True)
    return ExitCode.NOT_ASSESSED if listing.is_partial else ExitCode.DONE
