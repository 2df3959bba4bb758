"""Write a shipped model's card from its manifest and from what `evaluate` measured.

    python -m deepcovid_export.report.model_card squeezenet1_1 --results RESULTS -o squeezenet1_1.md

No figure in a card is typed by hand; `tests/documents/test_documents.py` fails when a card is
stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deepcovid_edge.backends import INT8_CPU_SUFFIX
from deepcovid_edge.manifest import ModelManifest, file_sha256, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.report.wording import area_text, counted_text, rate_text

_TEMPLATE = """\
# {name}

{architecture}, fine-tuned to tell films of COVID-19 pneumonia (`{positive_class}`) from normal
films and films of other pneumonia. **{notice}**

| | |
| --- | --- |
| file | `{name}.onnx`, {size:.1f} MB, {precision}{stored}, sha256 `{sha256}` |{forms}
| input | uint8 grey, {height} x {width}, resize rule `{resize}` |
| classes | {classes} |
| threshold | {threshold:.4f}: {rule}, on {val_films} films of `val` ({val_positives} positive) |
{band}| licence of the weights | {license} |
| made by | `make model-{name}` (recipe `{name}.toml`, seed {seed}) |

## Data

Trained on {train_films} films, the epoch and the threshold chosen on {val_films} others (`val`),
from public collections: ieee8023/covid-chestxray-dataset, COVID-CXNet and NIH ChestX-ray8, split
by patient where patients are known. They were collected for research; several state no licence,
or one per film, mostly non-commercial. The films are not part of this project. Start: {start}.

Training films sha256 `{train_sha256}`; validation films `{val_sha256}`.

## Figures

All at the threshold above, which was chosen before, on `val`. Intervals are 95 % (Wilson).

| films | number | AUC | sensitivity | specificity |
| --- | --- | --- | --- | --- |
{rows}

`test` comes from the collections that the training films come from. `external` comes from other
hospitals and journals (some of its web sources have a few films in training too), and **its rows
are what to expect of a new clinic**: read the specificity of Actualmed, one hospital with COVID-19
and normal films, and of `external` as a whole. `paediatric` holds children of one to five years:
the model is not meant for them, and every positive there is a false alarm.

Intervals take films as independent, though a patient may have several. The threshold hangs on one
or two of the positive films of `val`, so a sensitivity chosen there is not a sensitivity promised.
{shortcuts}
## Known biases

- In the training films the class is nearly the same thing as the source: most COVID-19 films come
  from web and journal collections, nearly all others from one hospital (NIH). A network scores
  high by learning the source, not the disease. What the network does on `external` shows how much
  of its score on `test` is that.
- Films of other hospitals without COVID-19 are nearly absent from training, and nearly all of them
  are called positive, normal ones and other pneumonia alike: see `external` above.
- NIH labels were mined from reports and are noisy. COVID-19 labels are mostly proven by PCR.
- Adults, frontal view; a few films of children are among the training films with COVID-19 and none
  among the others. Lateral views, other body parts and post-processed pictures were not trained
  on, and the model does not refuse them all by itself.
- A probability is a score of this network, not the chance that the patient has COVID-19.
"""

_SHORTCUTS = """\

## Does it read the source?

The same films with the lungs hidden (a central rectangle of {side:.0%} of the sides greyed), and
with everything but that rectangle greyed. A model that still tells the classes apart when the lungs
are hidden, with an AUC above {limit:.2f}, goes by borders, letters and tone: by the film's origin.

| films | AUC, whole | lungs only | lungs hidden | reads the source |
| --- | --- | --- | --- | --- |
{rows}

Within one source there is nothing else to go by than the film:

| source | films | positive | AUC |
| --- | --- | --- | --- |
{sources}
"""
_BESIDE = """\

## Beside the paper's way

The same network trained as Deep-COVID trained it (recipe `{recipe}`: the last layer alone, upon
ImageNet's weights), with the same films and judged in the same way; the last two columns are the
AUC within one hospital and within the web sites of one collection:

| recipe | films | AUC | sensitivity | specificity | lungs hidden | Actualmed | ieee8023 |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}
"""
_WITHIN = ("agchung/Actualmed-COVID-chestxray-dataset", "ieee8023 (all sites)")
_READS = {True: "**yes**", False: "not shown", None: "cannot be told"}


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
        evaluations: What `evaluate` wrote, in the order of the rows.
        paper: The same of the network trained by the paper's recipe; empty where it was not.
    """
    training, origin = manifest.training, manifest.threshold_origin
    return _TEMPLATE.format(
        name=manifest.name,
        architecture=manifest.architecture,
        positive_class=manifest.positive_class,
        notice="Research use only; not a medical device.",
        size=model.stat().st_size / 1e6,
        precision=manifest.precision,
        stored=" (weights stored in FP16)" if "half_weights" in training["export"] else "",
        forms=_forms(model),
        sha256=file_sha256(model),
        height=manifest.input.height,
        width=manifest.input.width,
        resize=manifest.input.resize.value,
        classes=", ".join(f"`{name}`" for name in manifest.classes),
        threshold=manifest.threshold,
        rule=origin["rule"],
        band=_band(manifest, evaluations) + _gate(manifest, evaluations),
        val_films=origin["films"],
        val_positives=origin["positives"],
        license=manifest.license,
        seed=training["recipe"]["fit"]["seed"],
        train_films=training["train_films"],
        start=training["start"],
        train_sha256=training["train_sha256"],
        val_sha256=training["val_sha256"],
        rows="\n".join(line for figures in evaluations for line in _rows(figures)),
        shortcuts=_shortcuts(evaluations) + _beside(evaluations, paper),
    )


def _band(manifest: ModelManifest, evaluations: list[dict[str, Any]]) -> str:
    """A row for the films that are too close to call, if the model has such."""
    band = manifest.band
    if band is None:
        return ""
    said = f"| too close to call | {band.low:.4f} to {band.high:.4f}: {band.origin['rule']}"
    found = next(
        (it["band"] for it in evaluations if it["data"] == "test" and it.get("band")), None
    )
    if found:
        decided = found["decided"]
        said += (
            f"; {rate_text(found['indeterminate'])} of `test`, and among the others sensitivity "
            f"{rate_text(decided['sensitivity'])}, specificity {rate_text(decided['specificity'])}"
        )
    return f"{said}. The figures below call every film |\n"


def _gate(manifest: ModelManifest, evaluations: list[dict[str, Any]]) -> str:
    """A row for the films that are not judged, if the model has a gate."""
    if not manifest.familiarity:
        return ""
    val = manifest.familiarity["val"]
    refused = ", ".join(
        f"{rate_text(it['out_of_distribution'])} of `{it['data']}`"
        for it in evaluations
        if it.get("out_of_distribution")
    )
    return (
        f"| not judged | films unlike the training films ({manifest.familiarity['method']}): "
        f"{refused or 'not measured'}; of copies of `val` that are turned or inverted "
        f"{val['turned_copies_refused']:.1%}, made unrecognisable "
        f"{val['foreign_copies_refused']:.1%}. The figures below judge every film |\n"
    )


def _forms(model: Path) -> str:
    """A row for the INT8 form that lies beside the model, if there is one."""
    path = model.with_name(f"{model.stem}{INT8_CPU_SUFFIX}.onnx")
    if not path.is_file():
        return ""
    facts = read_manifest(path).quantization
    proof = facts["verified"]
    kept = ", ".join(f"`{name}`" for name in sorted(facts["left_out"] + facts["never_lowered"]))
    return (
        f"\n| INT8 for CPUs | `{path.name}`, {path.stat().st_size / 1e6:.1f} MB, sha256 "
        f"`{file_sha256(path)}`; on {proof['films']} films of `test` {proof['flips']} decisions "
        f"turned: {proof['verdict']}; layers left in FP32: {kept or 'none'} |"
    )


def _shortcuts(evaluations: list[dict[str, Any]]) -> str:
    """The section on what the model tells from the source; empty where it was not measured."""
    found = {it["data"]: it["shortcuts"] for it in evaluations if it.get("shortcuts")}
    if not found:
        return ""
    rows = [
        f"| {data} | {area_text(it['whole'])} | {area_text(it['lungs_only'])} | "
        f"{area_text(it['lungs_hidden'])} | {_READS[it['reads_the_source']]} |"
        for data, it in found.items()
    ]
    sources = [
        f"| {data}: {name} | {group['films']} | {group['positives']} | {area_text(group)} |"
        for data, it in found.items()
        for name, group in it["within_source"].items()
    ]
    first = next(iter(found.values()))
    return _SHORTCUTS.format(
        side=first["side"],
        limit=first["limit"],
        rows="\n".join(rows),
        sources="\n".join(sources or ["| no source has both classes | | | |"]),
    )


def _beside(own: list[dict[str, Any]], paper: list[dict[str, Any]]) -> str:
    """The section that compares with the paper's recipe; empty where it was not run."""
    if not paper:
        return ""
    rows = [_beside_row(figures) for pair in zip(own, paper, strict=True) for figures in pair]
    return _BESIDE.format(recipe=paper[0]["model"], rows="\n".join(rows))


def _beside_row(figures: dict[str, Any]) -> str:
    overall, shortcuts = figures["overall"], figures["shortcuts"]
    within = [shortcuts["within_source"].get(name) for name in _WITHIN]
    areas = [overall, shortcuts["lungs_hidden"], *within]
    whole, hidden, *inside = (area_text(group) if group else "-" for group in areas)
    return (
        f"| {figures['model']} | {figures['data']} | {whole} | "
        f"{counted_text(overall['sensitivity'])} | {counted_text(overall['specificity'])} | "
        f"{' | '.join([hidden, *inside])} |"
    )


def _rows(figures: dict[str, Any]) -> list[str]:
    groups = {f"**{figures['data']}**": figures["overall"]}
    if len(figures["by_source"]) > 1:
        groups |= {f"{figures['data']}: {name}": it for name, it in figures["by_source"].items()}
    return [
        f"| {name} | {group['films']} | {area_text(group)} | "
        f"{counted_text(group['sensitivity'])} | {counted_text(group['specificity'])} |"
        for name, group in groups.items()
    ]


@click.command()
@click.argument("model")
@click.option("--results", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(model: str, results: Path, output: Path) -> None:
    """Write MODEL's card from RESULTS/MODEL-{test,external,paediatric}.json."""
    path = find_model(model)
    output.write_text(card_from_results(path, results), encoding="utf-8")
    click.echo(output)


def card_from_results(model: Path, results: Path) -> str:
    """The card of a model file from the evaluations that bear its name.

    Raises:
        ValueError: An evaluation was made with another file than this model.
    """
    manifest, digest = read_manifest(model), file_sha256(model)
    evaluations = _evaluations(results, manifest.name)
    for figures in evaluations:
        if figures["model_sha256"] != digest:
            name = f"{manifest.name}-{figures['data']}.json"
            raise ValueError(f"{name} is of another model file: make model")
    paper = f"paper_{manifest.architecture}"
    measured = (results / f"{paper}-test.json").is_file()
    return card(manifest, model, evaluations, _evaluations(results, paper) if measured else [])


def _evaluations(results: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads((results / f"{name}-{split}.json").read_text("utf-8"))
        for split in ("test", "external", "paediatric")
    ]


if __name__ == "__main__":
    main()
