"""`deepcovid-edge site-check`: may this model be used at this site?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.backends import BACKENDS
from deepcovid_edge.backends.base import PROVIDERS
from deepcovid_edge.models import DEFAULT_MODEL

_GATE_FAILED = 3


@click.command(
    epilog="Example: deepcovid-edge site-check our-images/ --name cart-1 -o site.json. Then: "
    "deepcovid-edge infer images/ --site site.json. Research use only.",
)
@click.argument("data", metavar="SITE_DATA", type=click.Path(path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name or file.")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True
)
@click.option("--provider", type=click.Choice(PROVIDERS), help="ONNX Runtime's.  [default: cpu]")
@click.option("--split", help="Only the images of this split.")
@click.option("--source", help="Only the images of this source, as a manifest CSV names it.")
@click.option("--name", help="What the site is called in records.  [default: SITE_DATA's name]")
@click.option("--workers", type=int, help="Threads that work.  [default: one a core]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the site file here.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")
def command(
    data: Path,
    model: str,
    backend: str,
    provider: str | None,
    split: str | None,
    source: str | None,
    name: str | None,
    workers: int | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Classify a clinic's own images and say whether the model should be used there.

    SITE_DATA has one folder per class, normals at least (`normal/`, `covid/`, ...), or is a
    manifest CSV. The verdict is `usable` (exit code 0), `not usable` or `not enough images` (both
    3). The site file holds it with figures and threshold, no file name and nothing of a patient;
    `infer --site` and `heatmap --site` classify by it, and by no file that says `not usable`.
    """
    from deepcovid_edge.backends import fastest_verified, load_backend
    from deepcovid_edge.backends.base import BackendSettings
    from deepcovid_edge.datasets.dataset import load_site
    from deepcovid_edge.decision.site_file import write_site
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.models import find_model
    from deepcovid_edge.validation.acceptance import USABLE
    from deepcovid_edge.validation.site_check import site_check

    set_up()
    images = load_site(data, split=split, source=source)
    file = find_model(model)
    if backend == "auto" and provider is None:
        file = fastest_verified(file)
    with load_backend(file, backend=backend, settings=BackendSettings(provider)) as loaded:
        facts = site_check(loaded, images, name=name or data.resolve().name, workers=workers)
    if output:
        write_site(output, facts)
    click.echo(json.dumps(facts, indent=2) if as_json else summary(facts))
    return 0 if facts["verdict"] == USABLE else _GATE_FAILED


def summary(facts: dict[str, Any]) -> str:
    """The verdict with its figures as lines for people."""
    model, data = facts["model"], facts["data"]
    patients = f" of {data['patients']} patients" if data["patients"] else ""
    lines = [
        f"{model['name']} ({model['precision']}) on {model['backend']} at {facts['name']}: "
        f"{data['images']} images{patients}. {facts['notice']}",
        *_table(facts),
    ]
    for code, count in data["not_assessed"].items():
        lines.append(f"not assessed: {count} files: {code}")
    if data["repeated"]:
        lines.append(f"{data['repeated']} files hold an image that came before: counted once")
    lines.append(f"\n{facts['verdict'].upper()}. {_ADVICE[facts['verdict']].format(**facts)}")
    lines += [f"- {reason}" for reason in facts["reasons"]]
    return "\n".join(lines)


_ADVICE = {
    "usable": "The model may be used on images of this site, at threshold {threshold:.4f} "
    "({threshold_is}).",
    "not usable": "Do not use this model on images of this site: here its answers say little about "
    "the patient.",
    "not enough images": "These images do not tell whether the model may be used here. With --site "
    "images are classified at {threshold:.4f} ({threshold_is}), each with the warning W_SITE.",
}


def _table(facts: dict[str, Any]) -> list[str]:
    """Labels with what they are called, then thresholds with what they do."""
    from deepcovid_edge.validation.acceptance import figure_text

    data, site = facts["data"], facts["site"]
    width = max(map(len, (*data["by_label"], "site's threshold")))
    lines = [f"{'':<{width}}  {'images':>9}  called positive"]
    for label, group in data["by_label"].items():
        called = group["called_positive"]
        told = f"{called['successes']:>3}  {figure_text(called)}"
        lines.append(f"{label:<{width}}  {group['images']:>9}  {told}")
    lines.append(f"{'':<{width}}  {'threshold':>9}  {'sensitivity':<23}  specificity")
    for name, point in (("model's own", facts["own"]), ("site's threshold", site)):
        if point:
            lines.append(
                f"{name:<{width}}  {point['threshold']:>9.4f}  "
                f"{figure_text(point['sensitivity']):<23}  {figure_text(point['specificity'])}"
            )
    if data["indeterminate"]:
        lines.append(
            f"{data['indeterminate']} images are too close to the model's threshold to call"
        )
    return lines
