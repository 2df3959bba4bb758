"""`deepcovid-edge verify`: is a candidate as accurate as its reference?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath, backend_option, path_option, provider_option
from deepcovid_edge.device.progress import progress_bar
from deepcovid_edge.errors import UsageError

if TYPE_CHECKING:
    from deepcovid_edge.heatmaps.agreement import MapComparison
    from deepcovid_edge.validation.changes import AucChange, RateChange
    from deepcovid_edge.validation.verify import Verification


@click.command(
    epilog="Example: deepcovid-edge verify squeezenet1_1 squeezenet1_1-fp16.onnx images/",
)
@click.argument("reference")
@click.argument("candidate")
@click.argument("data", type=NamedPath())
@click.option("--split", help="Only the images of this split.")
@backend_option
@provider_option
@click.option(
    "--max-flips",
    type=float,
    help="Largest share of decisions that may differ, and of images rejected by one model alone.",
)
@click.option("--max-auc-change", type=float, help="Largest change of the AUC, either way.")
@click.option("--smallest-change", type=float, help="Largest share of a class that one image is.")
@click.option("--margin", type=float, help="Loss of sensitivity or specificity to be ruled out.")
@click.option("--heatmap", is_flag=True, help="Also compare the occlusion maps of some images.")
@click.option("--heatmap-images", type=int, help="Most images for --heatmap.  [default: 50]")
@click.option("--min-heatmap-correlation", type=float, help="Smallest median rank correlation.")
@path_option("-o", "--output", help="Write the report as JSON.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")
def command(
    reference: str,
    candidate: str,
    data: Path,
    split: str | None,
    backend: str,
    provider: str | None,
    max_flips: float | None,
    max_auc_change: float | None,
    smallest_change: float | None,
    margin: float | None,
    heatmap: bool,
    heatmap_images: int | None,
    min_heatmap_correlation: float | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Classify the labelled images of DATA with REFERENCE and CANDIDATE and compare the decisions.

    Each is a shipped model's name, an .onnx file, an engine or a checkpoint. --backend and
    --provider apply to CANDIDATE, so one file can be compared on two backends. The verdict is
    `unchanged`, `changed` (exit code 3) or `insufficient`, too few images to tell (exit code 3).
    """
    from deepcovid_edge.backends import load_backend
    from deepcovid_edge.backends.settings import BackendSettings
    from deepcovid_edge.datasets.dataset import check_not_read, load_one_split
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.files import check_writable, write_text
    from deepcovid_edge.models import find_model
    from deepcovid_edge.validation.equivalence import EquivalenceRules
    from deepcovid_edge.validation.verify import UNCHANGED, verify

    maps = _maps(heatmap, heatmap_images, min_heatmap_correlation)
    if output:
        check_writable(output)
    images = load_one_split(data, split=split)
    check_not_read(output, data)
    set_up()
    own = BackendSettings(provider=provider)
    with (
        load_backend(find_model(reference)) as before,
        load_backend(find_model(candidate), backend=backend, settings=own) as now,
    ):
        rules = EquivalenceRules.of(
            before.manifest,
            max_flips=max_flips,
            max_auc_change=max_auc_change,
            smallest_change=smallest_change,
            margin=margin,
            min_heatmap_correlation=min_heatmap_correlation,
        )
        with progress_bar(len(images)) as progress:
            report = verify(before, now, images, rules=rules, heatmaps=maps, progress=progress)
    text = json.dumps(report.as_dict(), indent=2, allow_nan=False)
    try:
        if output:
            write_text(output, text + "\n")
    finally:
        click.echo(text if as_json else summary(report))
    return 0 if report.verdict == UNCHANGED else ExitCode.NOT_EQUIVALENT


def _maps(asked: bool, images: int | None, correlation: float | None) -> MapComparison | None:
    from deepcovid_edge.heatmaps.agreement import MapComparison

    if asked:
        return MapComparison() if images is None else MapComparison(images)
    for flag, value in (("--heatmap-images", images), ("--min-heatmap-correlation", correlation)):
        if value is not None:
            raise UsageError(f"{flag}: got {value} without --heatmap: add it to compare heat maps")
    return None


def summary(report: Verification) -> str:
    """The report as lines for people."""
    verdict = f"verdict: {report.verdict}. Research use only."
    return "\n".join([*_figures(report), *_remarks(report), verdict])


def _figures(report: Verification) -> Iterator[str]:
    before, now, flips = report.reference, report.candidate, report.flips
    yield (
        f"{now['name']} {now['precision']} on {now['backend']} against {before['name']} "
        f"{before['precision']} on {before['backend']}, {report.images} images"
    )
    yield (
        f"decisions   {flips.count} turned ({flips.share:.2%}; at most {flips.upper_95:.2%} with "
        f"95 % certainty); McNemar p {report.mcnemar.p:.3g}"
    )
    if of_infer := report.decisions:
        yield (
            f"as `infer`  {of_infer.differ} differ with the indeterminate range: "
            f"{_counted(of_infer.reference)} -> {_counted(of_infer.candidate)}"
        )
    for name, change in (("sensitivity", report.sensitivity), ("specificity", report.specificity)):
        if change:
            old, new = (rate.value or 0.0 for rate in (change.reference, change.candidate))
            yield f"{name} {old:.2%} -> {new:.2%}, {_interval(change, '.2%')}"
    if auc := report.auc:
        yield f"AUC         {auc.reference:.4f} -> {auc.candidate:.4f}, {_interval(auc, '.4f')}"
    if report.probability and report.logits:
        yield (
            f"probability differs by at most {report.probability.max:.2g}, logits by "
            f"{report.logits.max:.2g}"
        )
    if ood := report.ood:
        yield (
            f"ood         {ood['reference']} -> {ood['candidate']} images out of distribution; "
            f"differs on {ood['differ']}"
        )
    if report.heatmap:
        yield _heatmap_line(report.heatmap)


def _counted(decisions: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in decisions.items())


def _interval(change: AucChange | RateChange, style: str) -> str:
    ends = change.interval_95
    interval = ", ".join(f"{end:+{style}}" for end in ends) if ends else "-"
    return f"change {change.change:+{style}} [{interval}]"


def _heatmap_line(maps: Mapping[str, Any]) -> str:
    alike, top, shift = (maps[name] for name in ("rank_correlation", "top_overlap", "peak_shift"))
    return (
        f"heat maps   of {maps['images']} images: median rank correlation {alike['median']:.3f} "
        f"(a tenth below {alike['quantile_10']:.3f}), top tenths overlap {top['median']:.0%}, "
        f"peak moved {shift['median']:.0f} px (a tenth more than {shift['quantile_90']:.0f})"
    )


def _remarks(report: Verification) -> Iterator[str]:
    from deepcovid_edge.datasets.contents import repeated_text
    from deepcovid_edge.validation.verify import uncounted_text

    for image in report.flipped:
        now = "no number" if image.candidate is None else f"{image.candidate:.3f}"
        probabilities = f"{image.reference:.3f} -> {now}"
        yield f"turned: {image.path} ({image.label}): {probabilities}"
    for path, code in report.not_assessed.items():
        yield f"not assessed: {path}: {code}"
    if report.repeated:
        yield repeated_text(report.repeated)
    if report.uncounted:
        yield uncounted_text(report.uncounted)
    for sentence in report.failed:
        yield f"failed: {sentence}"
    for name, count in report.missing.items():
        yield (
            f"too few: {count['images']} {name} images; {count['needed']} are needed, so that one "
            f"is at most {report.rules.smallest_change:.0%} of them"
        )
    for sentence in report.unproved:
        yield f"not proved: {sentence}"
