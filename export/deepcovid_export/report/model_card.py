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
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.report.wording import area_text, counted_text, rate_text

_TEMPLATE = """\
# {name}

{architecture}, fine-tuned to tell images of COVID-19 pneumonia (`{positive_class}`) from normal
images and images of other pneumonia. **{notice}**

| | |
| --- | --- |
| file | `{name}.onnx`, {size:.1f} MB, {precision}{stored}, sha256 `{sha256}` |{variants}
| input | uint8 grey, {height} x {width}, resize rule `{resize}` |
| classes | {classes} |
| threshold | {threshold:.4f}: {rule}, on {val_images} images of `val` ({val_positives} positive) |
{indeterminate_range}| licence of the weights | {license} |
| made by | `make model-{name}` (recipe `{name}.toml`, seed {seed}) |

## Data

Trained on {train_images} images, the epoch and the threshold chosen on {val_images} others (`val`),
from public collections: ieee8023/covid-chestxray-dataset, COVID-CXNet and NIH ChestX-ray8, split
by patient where patients are known. They were collected for research; several state no licence,
or one per image, mostly non-commercial. The images are not part of this project. Start: {start}.

Training images sha256 `{train_sha256}`; validation images `{val_sha256}`.

## Figures

All at the threshold above, which was chosen before, on `val`. Intervals are 95 % (Wilson).

| images | number | AUC | sensitivity | specificity |
| --- | --- | --- | --- | --- |
{rows}

`test` comes from the collections that the training images come from. `external` comes from other
hospitals and journals (some of its web sources have a few images in training too), and **its rows
are what to expect of a new clinic**: read the specificity of Actualmed, one hospital with COVID-19
and normal images, and of `external` as a whole. `paediatric` holds children of one to five years:
the model is not meant for them, and every positive there is a false alarm.

Intervals take images as independent, though a patient may have several. The threshold hangs on one
or two of the positive images of `val`, so a sensitivity chosen there is not a sensitivity promised.
{shortcuts}
## Known biases

- In the training images the class is nearly the same thing as the source: most COVID-19 images come
  from web and journal collections, nearly all others from one hospital (NIH). A network scores
  high by learning the source, not the disease. What the network does on `external` shows how much
  of its score on `test` is that.
- Images of other hospitals without COVID-19 are nearly absent from training, and nearly all of them
  are called positive, normal ones and other pneumonia alike: see `external` above.
- NIH labels were mined from reports and are noisy. COVID-19 labels are mostly proven by PCR.
- Adults, frontal view; a few images of children are among the training images with COVID-19, none
  among the others. Lateral views, other body parts and post-processed pictures were not trained
  on, and the model does not refuse them all by itself.
- A probability is a score of this network, not the chance that the patient has COVID-19.
"""

_SHORTCUTS = """\

## Does it read the source?

The same images with the lungs hidden (a central rectangle of {side:.0%} of the sides greyed), and
with everything but that rectangle greyed. A model that still tells the classes apart when the lungs
are hidden, with an AUC above {limit:.2f}, goes by borders, letters and tone: by the image's origin.

| images | AUC, whole | lungs only | lungs hidden | reads the source |
| --- | --- | --- | --- | --- |
{rows}

Within one source there is nothing else to go by than the image:

| source | images | positive | AUC |
| --- | --- | --- | --- |
{sources}
"""
_BESIDE = """\

## Beside the paper's way

The same network trained as Deep-COVID trained it (recipe `{recipe}`: the last layer alone, upon
ImageNet's weights), the same images and the same measurement; the last two columns are the
AUC within one hospital and within the web sites of one collection:

| recipe | images | AUC | sensitivity | specificity | lungs hidden | Actualmed | ieee8023 |
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
        variants=_variants(model),
        sha256=file_sha256(model),
        height=manifest.input.height,
        width=manifest.input.width,
        resize=manifest.input.resize.value,
        classes=", ".join(f"`{name}`" for name in manifest.classes),
        threshold=manifest.threshold,
        rule=origin["rule"],
        indeterminate_range=_indeterminate_range(manifest, evaluations)
        + _equivalence(manifest, evaluations),
        val_images=origin["images"],
        val_positives=origin["positives"],
        license=manifest.license,
        seed=training["recipe"]["fit"]["seed"],
        train_images=training["train_images"],
        start=training["start"],
        train_sha256=training["train_sha256"],
        val_sha256=training["val_sha256"],
        rows="\n".join(line for figures in evaluations for line in _rows(figures)),
        shortcuts=_shortcuts(evaluations) + _beside(evaluations, paper),
    )


def _indeterminate_range(manifest: ModelManifest, evaluations: list[dict[str, Any]]) -> str:
    """A row for the images that are too close to call, if the model has such."""
    indeterminate_range = manifest.indeterminate_range
    if indeterminate_range is None:
        return ""
    span = f"{indeterminate_range.low:.4f} to {indeterminate_range.high:.4f}"
    said = f"| too close to call | {span}: {indeterminate_range.origin['rule']}"
    found = next(
        (
            it["indeterminate_range"]
            for it in evaluations
            if it["data"] == "test" and it.get("indeterminate_range")
        ),
        None,
    )
    if found:
        decided = found["decided"]
        said += (
            f"; {rate_text(found['indeterminate'])} of `test`, and among the others sensitivity "
            f"{rate_text(decided['sensitivity'])}, specificity {rate_text(decided['specificity'])}"
        )
    return f"{said}. The figures below call every image |\n"


def _equivalence(manifest: ModelManifest, evaluations: list[dict[str, Any]]) -> str:
    """A row for the images that are not assessed, if the model has a equivalence check."""
    if not manifest.ood:
        return ""
    val = manifest.ood["val"]
    refused = ", ".join(
        f"{rate_text(it['out_of_distribution'])} of `{it['data']}`"
        for it in evaluations
        if it.get("out_of_distribution")
    )
    return (
        f"| not assessed | images unlike the training images ({manifest.ood['method']}): "
        f"{refused or 'not measured'}; of copies of `val` that are turned or inverted "
        f"{val['turned_copies_rejected']:.1%}, made unrecognisable "
        f"{val['unrecognisable_copies_rejected']:.1%}. The figures below classify every image |\n"
    )


def _variants(model: Path) -> str:
    """A row for the INT8 variant that lies beside the model, if there is one."""
    path = model.with_name(f"{model.stem}{INT8_CPU_SUFFIX}.onnx")
    if not path.is_file():
        return ""
    facts = read_manifest(path).quantization
    proof = facts["verified"]
    kept = ", ".join(f"`{name}`" for name in sorted(facts["excluded"] + facts["never_quantised"]))
    return (
        f"\n| INT8 for CPUs | `{path.name}`, {path.stat().st_size / 1e6:.1f} MB, sha256 "
        f"`{file_sha256(path)}`; on {proof['images']} images of `test` {proof['flips']} decisions "
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
        f"| {data}: {name} | {group['images']} | {group['positives']} | {area_text(group)} |"
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
        f"| {name} | {group['images']} | {area_text(group)} | "
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
