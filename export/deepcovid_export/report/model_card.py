"""Write a shipped model's card from its manifest and from the results of `evaluate`.

    python -m deepcovid_export.report.model_card squeezenet1_1 --results RESULTS -o squeezenet1_1.md

No figure in a card is typed by hand; `tests/documents/test_documents.py` fails when a card is
stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.backends import INT8_CPU_SUFFIX
from deepcovid_edge.errors import DataError, DeepCovidEdgeError, NotThereError
from deepcovid_edge.files import file_sha256, write_text
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.evaluation.bootstrap import FEWEST_PATIENTS
from deepcovid_export.report.rendering import render

PARTS = ("test", "external", "paediatric", "siim-test", "sites-external")
"""Results that a card shows, in this order; all but the first may be missing."""
_SITE = re.compile(r"\(([^)]+)\)")
"""In the name of a source, the web site that an image comes from."""
_WITHIN = ("agchung/Actualmed-COVID-chestxray-dataset", "ieee8023 (all sites)")


def card(
    manifest: ModelManifest,
    model: Path,
    evaluations: list[dict[str, Any]],
    paper: list[dict[str, Any]],
) -> str:
    """The card as Markdown.

    Args:
        manifest: The model's manifest.
        model: The model file.
        evaluations: JSON of `evaluate`, in the order of the rows.
        paper: The same of the network trained by the paper's recipe; empty where it was not.
    """
    span, training = manifest.indeterminate_range, manifest.training
    variant = model.with_name(f"{model.stem}{INT8_CPU_SUFFIX}.onnx")
    by_data, of_paper = ({it["data"]: it for it in side} for side in (evaluations, paper))
    shortcuts = {it["data"]: it["shortcuts"] for it in evaluations if it.get("shortcuts")}
    return render(
        "model_card.md.j2",
        manifest=manifest,
        model=model,
        training=training,
        trained="recipe" in training,
        others=[name for name in manifest.classes if name != manifest.positive_class],
        halved="half_weights" in training.get("export", {}),
        origin={"rule": "", **manifest.threshold_origin},
        variant=variant if variant.is_file() else None,
        span=span,
        costs=span.origin.get("cost_by_source") if span else None,
        counts=training.get("sources"),
        grouped=bool(training.get("recipe", {}).get("data", {}).get("groups")),
        spanned=_spanned(evaluations),
        shared=_shared_sites(manifest, by_data.get("external")),
        sites=by_data.get("further sites"),
        data=by_data,
        labels=list(_labels(evaluations)),
        rows=[row for figures in evaluations for row in _rows(figures)],
        shortcuts=shortcuts,
        fewest=FEWEST_PATIENTS,
        **_sides(shortcuts),
        sources=[
            (f"{data}: {name}", group)
            for data, it in shortcuts.items()
            for name, group in it["within_source"].items()
        ],
        pairs=[(it, of_paper[name]) for name, it in by_data.items() if name in of_paper],
        localised=[(it["data"], row) for it in evaluations for row in it.get("localisation", ())],
        soft=any(it.get("soft_labels") for it in evaluations),
        within=_WITHIN,
        sha256=file_sha256,
        size=lambda path: f"{path.stat().st_size / 1e6:.1f} MB",
        read_manifest=read_manifest,
    )


def _shared_sites(
    manifest: ModelManifest, external: dict[str, Any] | None
) -> dict[str, int] | None:
    """How many of the external images come from web sites that have training images too."""
    trained = manifest.training.get("sources", {}).get("train", {})
    sites = {found[1] for name in trained if (found := _SITE.search(name))}
    if not sites or external is None:
        return None
    shared = [
        group["images"]
        for name, group in external["by_source"].items()
        if (found := _SITE.search(name)) and found[1] in sites
    ]
    return {"images": sum(shared), "of": external["images"]}


def _spanned(evaluations: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Data, what `infer` does not assess of it, and what the indeterminate range leaves."""
    return [
        (it["data"], it.get("out_of_distribution"), it["indeterminate_range"])
        for it in evaluations
        if it.get("indeterminate_range")
    ]


def _labels(evaluations: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for it in evaluations:
        for kind in ("by_label", "soft_labels"):
            for label, row in it.get(kind, {}).items():
                yield it["data"], label, row


def _sides(shortcuts: dict[str, Any]) -> dict[str, Any]:
    """The first data set's shortcuts, and the sizes of the hidden part beside the usual one."""
    if not shortcuts:
        return {"first": None, "sides": []}
    first = next(iter(shortcuts.values()))
    sides = [it for it in first["lungs_hidden_by_side"] if float(it) != first["side"]]
    return {"first": first, "sides": sides}


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"**{figures['data']}**", figures["overall"]
    if len(figures["by_source"]) > 1:
        for name, group in figures["by_source"].items():
            yield f"{figures['data']}: {name}", group


@click.command()
@click.argument("model")
@click.option("--results", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(model: str, results: Path, output: Path) -> None:
    """Write MODEL's card from RESULTS/NAME-test.json, where NAME is the name in its manifest.

    NAME-external.json and NAME-paediatric.json are shown too where they are there.
    """
    try:
        text = card_from_results(find_model(model), results)
        write_text(output, text)
    except DeepCovidEdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(output)


def card_from_results(model: Path, results: Path) -> str:
    """The card of a model file from the evaluations that bear its name.

    Raises:
        NotThereError: There is no evaluation on `test`.
        DataError: An evaluation was made with another file than this model.
    """
    manifest, digest = read_manifest(model), file_sha256(model)
    needed = results / f"{manifest.name}-{PARTS[0]}.json"
    if not needed.is_file():
        raise NotThereError(
            f"{needed}: no such file; make it with `deepcovid-edge evaluate {model} DATA "
            f"--split test --shortcuts -o {needed}`"
        )
    evaluations = _evaluations(results, manifest.name)
    for figures in evaluations:
        if figures["model_sha256"] != digest:
            raise DataError(
                f"{results}: the figures of {manifest.name} on {figures['data']} are of another "
                f"file (SHA-256 {figures['model_sha256']}) than {model}: run `evaluate` again"
            )
    paper = _evaluations(results, f"paper_{manifest.architecture}")
    return card(manifest, model, evaluations, paper)


def _evaluations(results: Path, name: str) -> list[dict[str, Any]]:
    files = (results / f"{name}-{part}.json" for part in PARTS)
    return [json.loads(it.read_text("utf-8")) for it in files if it.is_file()]


if __name__ == "__main__":
    main()
