"""`deepcovid-edge screen`: the images of a manifest to records in Parquet, shard by shard."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath, check_needed, classify_options, path_option

if TYPE_CHECKING:
    from deepcovid_edge.archive.cluster.ray_run import ClusterSettings
    from deepcovid_edge.archive.screening import ScreenSettings, Share

_OF_A_SUMMARY = ("manifest", "summary", "html", "as_json")
"""Parameters that a summary reads; all others are of a run."""


@click.command(
    epilog="Example: deepcovid-edge screen images.parquet -o results/. Research use only.",
)
@click.argument("manifest", type=NamedPath())
@path_option("-o", "--output", folder=True, help="Folder for the shards of records.")
@classify_options
@click.option("--batch-size", type=int, help="Images per inference call.  [default: 1, on a GPU 8]")
@click.option(
    "--shard-size", type=int, default=10_000, show_default=True, help="Images of a shard."
)
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts, for a job array.")
@click.option(
    "--on",
    metavar="CLUSTER",
    help="`ray` starts Ray on this machine; HOST:PORT or ray://HOST:PORT joins a cluster. [ray]",
)
@click.option("--actors", type=int, help="With --on: loaded models.  [default: what fits]")
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="With --on: end the run if no image was assessed for so long.",
)
@click.option(
    "--image-seconds",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Longest time for reading one image.",
)
@click.option("--summary", is_flag=True, help="Summarise the results in the folder MANIFEST.")
@path_option("--html", help="With --summary: also write one HTML page.")
@click.option("--json", "as_json", is_flag=True, help="With --summary: print JSON.")
def command(
    manifest: Path,
    output: Path | None,
    shard: str | None,
    on: str | None,
    actors: int | None,
    patience: int,
    summary: bool,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Assess the images of MANIFEST: one record for each, in shards of Parquet.

    The records are those of `infer`. A shard is written whole, so the same command goes on after a
    kill; a folder that holds the records of another model, threshold or manifest is an error. An
    image that crashes the process that reads it, or takes too long, is not assessed.

    `--shard 17/400` assesses one of 400 parts: a job array runs all of them into one folder.
    `--on ray` spreads the work over the machines of a Ray cluster; all of them must see the images
    and the folder of the results.

    With `--summary`, MANIFEST is a folder of results.
    """
    check_needed("--summary", summary, "html", "as_json")
    if summary:
        _check_summary_alone()
        return _summarise(manifest, html, as_json=as_json)
    check_needed("--on", on is not None, "actors", "patience")
    if output is None:
        raise click.UsageError("--output is missing: name a folder for the records.")
    if on is not None and shard is not None:
        raise click.UsageError("--shard and --on: Ray spreads the work itself; give one of them.")
    from deepcovid_edge.archive.screening import Share

    settings = _settings(manifest, output, options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is a Ctrl-C
    if on is None:
        return _screen_here(settings, Share.parse(shard) if shard else Share())
    from deepcovid_edge.archive.cluster.ray_run import ClusterSettings

    return _screen_on_ray(settings, ClusterSettings(on, actors, float(patience)))


def _check_summary_alone() -> None:
    """Refuse the options of a run, which a summary does not read."""
    names = {str(parameter.name) for parameter in click.get_current_context().command.params}
    check_needed("a run without --summary", False, *names.difference(_OF_A_SUMMARY))


def _settings(manifest: Path, output: Path, options: dict[str, Any]) -> ScreenSettings:
    from deepcovid_edge.archive.screening import ScreenSettings

    own = {name: options.pop(name) for name in ("workers", "min_free", "image_seconds")}
    shard_images = options.pop("shard_size")
    site = options.pop("site")
    return ScreenSettings(
        manifest,
        output,
        {**options, "site": str(site.absolute()) if site else None},
        shard_images=shard_images,
        **own,
    )


def _screen_here(settings: ScreenSettings, share: Share) -> ExitCode:
    from deepcovid_edge.archive.screening import Screener, Screening, screen_here
    from deepcovid_edge.device.progress import progress_bar

    with ExitStack() as opened:
        screener = opened.enter_context(Screener(settings))
        name = f"screen-{share.number}-of-{share.of}"
        opened.enter_context(screener.folder.locked(name))
        screening = Screening.begin(screener.folder, share)
        _echo(screening.first_notes())
        try:
            with progress_bar(screening.images_left(screener.stamp)) as progress:
                screen_here(screener, screening, progress)
        except KeyboardInterrupt:
            click.echo(f"{screening.summary('written; the same command goes on')}.", err=True)
            raise
    return _end(screening, f"done on {screener.stamp.run_facts.backend}")


def _screen_on_ray(settings: ScreenSettings, cluster: ClusterSettings) -> ExitCode:
    from deepcovid_edge.archive.cluster.ray_run import RayRun
    from deepcovid_edge.device.progress import progress_bar

    with RayRun(settings, cluster) as run:
        click.echo(f"{run.plan.words()}", err=True)
        with run.folder.locked("screen-on-ray"):
            screening = run.begin()
            _echo(screening.first_notes())
            with progress_bar(screening.images_left(run.stamp)) as progress:
                run.screen(screening, progress)
    return _end(screening, "done on Ray")


def _echo(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


def _end(screening: Any, how: str) -> ExitCode:
    click.echo(f"{screening.summary(how)}. Research use only.", err=True)
    _echo(screening.notes())
    return ExitCode.NOT_ASSESSED if screening.not_assessed else ExitCode.DONE


def _summarise(folder: Path, html: Path | None, *, as_json: bool) -> ExitCode:
    from deepcovid_edge.archive.images.addresses import check_local
    from deepcovid_edge.archive.summary import summarise

    check_local("manifest", folder.absolute())
    summary = summarise(folder)
    if html:
        from deepcovid_edge.archive.summary_page import page
        from deepcovid_edge.files import write_text

        write_text(html, page(summary))
    click.echo(summary.as_json() if as_json else summary.text())
    return ExitCode.DONE
