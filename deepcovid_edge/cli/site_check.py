"""`deepcovid-edge site-check`: may this model be used at this site?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import (
    NamedPath,
    backend_option,
    path_option,
    provider_option,
    variant_option,
)
from deepcovid_edge.device.progress import number_of, progress_bar
from deepcovid_edge.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from deepcovid_edge.validation.site_check import SiteReport


@click.command(
    epilog="Example: deepcovid-edge site-check our-images/ --name cart-1 -o site.json. Then: "
    "deepcovid-edge infer images/ --site site.json. Research use only.",
)
@click.argument("data", metavar="SITE_DATA", type=NamedPath())
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="Shipped name or model file."
)
@variant_option
@backend_option
@provider_option
@click.option("--split", help="Only the images of this split.")
@click.option("--source", help="Only the images of this source of the manifest CSV.")
@click.option("--name", help="Name of the site in records.  [default: SITE_DATA's name]")
@click.option("--workers", type=int, help="Threads.  [default: one per core]")
@path_option("-o", "--output", help="Write the site file here.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")
def command(
    data: Path,
    model: str,
    variant: str,
    backend: str,
    provider: str | None,
    split: str | None,
    source: str | None,
    name: str | None,
    workers: int | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Check on a clinic's own images whether the model may be used there.

    SITE_DATA has one folder per class, at least one of normals (`normal/`, `covid/`, ...), or is a
    manifest CSV. The verdict is `usable` (exit code 0), `not usable` or `not enough images` (both
    3). The site file holds the verdict, the figures and the threshold, but no file name and nothing
    about a patient. `infer --site` and `heatmap --site` use its threshold. They do not run with a
    site file that says `not usable` (exit code 5).
    """
    from deepcovid_edge.backends import load_model
    from deepcovid_edge.backends.settings import BackendSettings
    from deepcovid_edge.datasets.dataset import check_not_read, load_site
    from deepcovid_edge.decision.site_file import USABLE, write_site
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.files import check_writable
    from deepcovid_edge.validation.site_check import site_check

    if output:
        check_writable(output)
    set_up()
    images = load_site(data, split=split, source=source)
    check_not_read(output, data)
    named = name or data.resolve().name
    runs_on = BackendSettings(provider)
    with (
        load_model(model, variant=variant, backend=backend, settings=runs_on) as loaded,
        progress_bar(len(images)) as progress,
    ):
        report = site_check(loaded, images, name=named, workers=workers, progress=progress)
    try:
        if output:
            write_site(output, report.as_dict())
    finally:
        click.echo(json.dumps(report.as_dict(), indent=2) if as_json else summary(report))
    return 0 if report.verdict == USABLE else ExitCode.NOT_EQUIVALENT


def summary(report: SiteReport) -> str:
    """The verdict with its figures as lines for people."""
    model, data = report.model, report.data
    patients = f" of {number_of(data.patients, 'patient')}" if data.patients else ""
    advice = _ADVICE[report.verdict].format(**vars(report))
    return "\n".join(
        [
            f"{model['name']} ({model['precision']}) on {model['backend']} at {report.name}: "
            f"{number_of(data.images, 'image')}{patients}. {report.notice}",
            *_table(report),
            *_remarks(report),
            f"\n{report.verdict.upper()}. {advice}",
            *(f"- {reason}" for reason in report.reasons),
        ]
    )


_ADVICE = {
    "usable": "The model may be used on images of this site, at threshold {threshold:.4f} "
    "({threshold_is}).",
    "not usable": "Do not use this model on images of this site: here its answers say little about "
    "the patient.",
    "not enough images": "These images do not tell whether the model may be used here. With --site "
    "images are classified at {threshold:.4f} ({threshold_is}), each with the warning W_SITE.",
}


def _table(report: SiteReport) -> Iterator[str]:
    """Decisions by label, then what each threshold achieves."""
    by_label = report.data.by_label
    width = max(map(len, (*by_label, "site's threshold")))
    yield f"{'':<{width}}  {'images':>9}  {'reach the threshold':<28}  as `infer` decides"
    for label, group in by_label.items():
        called = group.called_positive
        decisions = [f"{count} {name}" for name, count in report.decisions[label].items()]
        yield (
            f"{label:<{width}}  {group.images:>9}  {called.successes:>3}  {called.text():<23}  "
            f"{', '.join(decisions)}"
        )
    yield f"{'':<{width}}  {'threshold':>9}  {'sensitivity':<23}  specificity"
    for name, point in (("model's own", report.own), ("site's threshold", report.site)):
        if point:
            yield (
                f"{name:<{width}}  {point.threshold:>9.4f}  {point.sensitivity.text():<23}  "
                f"{point.specificity.text()}"
            )


def _remarks(report: SiteReport) -> Iterator[str]:
    from deepcovid_edge.datasets.contents import repeated_text

    data = report.data
    if soft := [label for label, group in data.by_label.items() if group.positive is None]:
        yield f"neither right nor wrong, and in no figure below: {', '.join(soft)}"
    if data.indeterminate:
        images = "image is" if data.indeterminate == 1 else "images are"
        yield f"{data.indeterminate} {images} too close to the model's threshold to call"
        if report.indeterminate_range is None:
            yield "with --site no image is: the site's threshold has no range around it"
    for code, count in data.not_assessed.items():
        yield f"not assessed: {count} file{'s' * (count != 1)}: {code}"
    if data.repeated:
        yield repeated_text(data.repeated)
