"""`deepcovid-edge export`: checkpoint to one self-contained ONNX file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.options import NamedPath, check_needed, path_option
from deepcovid_edge.datasets.dataset import check_not_read, load_dataset
from deepcovid_edge.device.process import set_up
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import (
    DataError,
    DeepCovidEdgeError,
    NotAssessedError,
    OutputError,
    UsageError,
    require,
)
from deepcovid_export.cli.options import choice_option
from deepcovid_export.onnx_export.triton_settings import PLATFORMS, RepositorySettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcovid_edge.datasets.dataset import LabelledImage
    from deepcovid_edge.manifest import InputSpec, ModelManifest
    from deepcovid_export.networks import Classifier


_OF_AN_EXPORT = (
    *("output", "data", "ood", "children", "images", "half_weights"),
    *("classes", "positive", "threshold"),
)
"""Parameters that a model repository has nothing of."""
_NO_LIMITS = "no out-of-distribution limits: any image is classified: see --fit"
_OTHER_IMAGES = (
    "indeterminate: these are not the images of val that the threshold was chosen on: give "
    "splits.csv of the run with --fit"
)


@click.command(epilog="Example: deepcovid-edge export runs/first/checkpoint.pt -o first.onnx")
@click.argument("source", metavar="CHECKPOINT", type=NamedPath())
@path_option("-o", "--output", help="[default: NAME.onnx]")
@path_option(
    "--check",
    "data",
    help="Images to compare torch and ONNX Runtime on. Those of a split `val` also show whether "
    "the network reads the source.  [default: synthetic ones]",
)
@path_option(
    "--fit",
    "ood",
    help="Images with the splits `train` and `val`, to fit the out-of-distribution limits and the "
    "indeterminate range.  [default: neither]",
)
@path_option(
    "--children",
    help="With --fit: images of which those that a manifest marks as `paediatric` are recognised "
    "as children.  [default: children are not recognised]",
)
@click.option("--images", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option(
    "--half-weights", is_flag=True, help="Store weights in FP16: half the size, FP32 arithmetic."
)
@click.option(
    "--classes",
    help="Classes of a published network, in the order of its outputs.  [default: covid,non]",
)
@click.option("--positive", help="The class that a published network looks for.  [default: covid]")
@click.option(
    "--threshold",
    type=float,
    help="A published network's image is positive from this probability on.",
)
@path_option("--triton", help="Write a model repository of Triton into this folder instead.")
@choice_option("--platform", choices=PLATFORMS, help="With --triton: what runs the network.")
@click.option(
    "--instances", type=int, default=2, show_default=True, help="With --triton: processes."
)
def command(
    source: Path,
    output: Path | None,
    data: Path | None,
    ood: Path | None,
    children: Path | None,
    images: int,
    half_weights: bool,
    classes: str | None,
    positive: str | None,
    threshold: float | None,
    triton: Path | None,
    platform: str,
    instances: int,
) -> None:
    """Write CHECKPOINT as one ONNX file with its manifest inside, and check it against torch.

    CHECKPOINT is one of `deepcovid-edge train`, or a network of the published Deep-COVID project: a
    whole module saved by torch (SqueezeNet 1.0 and 1.1, ResNet18 and 50, DenseNet-121 of
    torchvision with another last layer) or its state dict. No code in such a file is run. It
    does not contain classes and threshold: give them with the last three options. The ONNX file
    is written only if ONNX Runtime and torch agree within 1e-4 on every logit.

    CHECKPOINT may also be an exported FP32 .onnx. With --fit it is written again with new
    out-of-distribution limits and a new indeterminate range; its weights stay as they are.

    With --triton, CHECKPOINT is a shipped name or an .onnx, for the platform tensorrt_plan an
    .engine. Nothing is exported: the file goes into the repository as it is.
    """
    check_needed("--triton", triton is not None, "platform", "instances")
    check_needed("an export without --triton", triton is None, *_OF_AN_EXPORT)
    check_needed("--fit", ood is not None, "children")
    if triton is not None:
        _write_repository(source, triton, platform, instances)
        return
    set_up()
    terms = {"--classes": classes, "--positive": positive, "--threshold": threshold}
    given = [flag for flag, value in terms.items() if value is not None]
    if source.suffix == ".onnx":
        given += ["--check"] * bool(data) + ["--half-weights"] * half_weights
        if ood is None or given:
            raise _exported_already(source, given)
        output = output or Path(f"{source.stem}.onnx")
        check_not_read(output, ood, children)
        with _renamed_at_end(output) as unfinished:
            _fit(source, unfinished, ood, children)
    else:
        require("torch", extra="export")
        network, manifest = _load(source, terms, given)
        output = output or Path(f"{manifest.name}.onnx")
        check_not_read(output, source, data, ood, children)
        for place in filter(None, (ood, children)):
            load_dataset(place)  # what cannot be read is told before the export
        with _renamed_at_end(output) as unfinished:
            _export(network, manifest, unfinished, data, images, half_weights)
            if ood is not None:
                _fit(unfinished, unfinished, ood, children)
        if ood is None:
            click.echo(_NO_LIMITS, err=True)
    click.echo(output)


def _write_repository(source: Path, folder: Path, platform: str, instances: int) -> None:
    from deepcovid_edge.models import find_model
    from deepcovid_export.onnx_export.triton_repository import write_repository

    settings = RepositorySettings(platform, instances)
    for path in write_repository(find_model(str(source)), folder, settings):
        click.echo(path)


def _exported_already(source: Path, given: Sequence[str]) -> UsageError:
    return UsageError(
        f"{source}: is exported already: got {', '.join(given) or 'no --fit'}, expected "
        "--fit DATA alone: give the checkpoint to export it again"
    )


@contextmanager
def _renamed_at_end(output: Path) -> Iterator[Path]:
    """A file beside `output` that several steps write, and that becomes `output` if none fails.

    Errors of the steps name `output`.

    Raises:
        OutputError: `output` cannot be written.
    """
    from deepcovid_export.onnx_export.graphs import check_place

    check_place(output)
    unfinished = output.with_name(f".{os.getpid()}-unfinished-{output.stem}.onnx")
    try:
        yield unfinished
        try:
            unfinished.replace(output)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    except DeepCovidEdgeError as error:
        error.args = (str(error).replace(str(unfinished), str(output)),)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def _export(
    network: Classifier,
    manifest: ModelManifest,
    output: Path,
    data: Path | None,
    images: int,
    half_weights: bool,
) -> None:
    from deepcovid_export.onnx_export.to_onnx import export_network

    kind = "real" if data else "synthetic"
    pixels = _images(data, images, manifest.input)
    written, parity = export_network(
        network, manifest, output, pixels, kind=kind, half_weights=half_weights
    )
    click.echo(
        f"torch and ONNX Runtime on {parity.images} {kind} images: logits differ by at most "
        f"{parity.max_logit_difference:.2g}, activation maps by {parity.max_map_difference:.2g}",
        err=True,
    )
    if data is not None:
        _measure_shortcuts(output, written, data)


def _fit(source: Path, output: Path, data: Path, children: Path | None) -> None:
    """Fit limits and indeterminate range of an exported file; `output` may be the file itself."""
    require("sklearn", extra="export")
    from deepcovid_edge.manifest import read_manifest
    from deepcovid_export.decision.fit_ood import fit_model
    from deepcovid_export.decision.run_images import images_of_model

    knew_children = "children" in read_manifest(source).ood
    new = output if output != source else None
    manifest = fit_model(source, data, new, children=children)
    val = manifest.ood["val"]
    click.echo(
        f"ood: rejects {val['rejected']} of {val['images']} images of val, "
        f"{val['turned_copies_rejected']:.1%} of their turned or inverted copies and "
        f"{val['unrecognisable_copies_rejected']:.1%} of their unrecognisable copies",
        err=True,
    )
    if young := manifest.ood.get("children"):
        click.echo(
            f"ood: recognises {young['recognised_held_out']} of {young['images']} children that "
            f"the fit had not seen, takes {young['adults_of_val_rejected']} of {val['images']} "
            "adults of val for children",
            err=True,
        )
    elif knew_children:
        click.echo("ood: children are not recognised any more: see --children", err=True)
    if manifest.threshold_origin.get("split") == "val":
        _fit_indeterminate_range(output, images_of_model(data, manifest, "val"))


def _fit_indeterminate_range(path: Path, images: Sequence[LabelledImage]) -> None:
    from deepcovid_export.decision.indeterminate import fit_model_indeterminate_range

    manifest = fit_model_indeterminate_range(path, images)
    if span := manifest.indeterminate_range:
        click.echo(
            f"indeterminate: from {span.low:.4f} to {span.high:.4f}, "
            f"{span.origin['indeterminate']} of {span.origin['images']} images of val",
            err=True,
        )
        if span.origin["data_sha256"] != manifest.training.get("val_sha256"):
            click.echo(_OTHER_IMAGES, err=True)


def _measure_shortcuts(path: Path, manifest: ModelManifest, data: Path) -> None:
    """Write into the file whether it reads the source, if `val` has positive images to tell."""
    from deepcovid_edge.backends import load_backend
    from deepcovid_edge.datasets.dataset import dataset_sha256
    from deepcovid_export.decision.run_images import images_of_model
    from deepcovid_export.evaluation.shortcuts import measure_shortcuts, shortcut_summary
    from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

    images = images_of_model(data, manifest, "val")
    if not {image.label for image in images} & manifest.positive_labels:
        return
    with load_backend(path) as backend:
        measured = measure_shortcuts(backend, images)
    summary = shortcut_summary(measured, "val", dataset_sha256(images))
    rewrite_manifest(path, replace(manifest, training={**manifest.training, "shortcuts": summary}))
    click.echo(summary["verdict"], err=True)


def _load(path: Path, terms: dict[str, Any], given: list[str]) -> tuple[Classifier, ModelManifest]:
    """A checkpoint of `train`, or a published network with the terms of the command line."""
    from deepcovid_edge.files import file_sha256
    from deepcovid_export.networks.checkpoint import is_checkpoint, load_checkpoint
    from deepcovid_export.networks.published.load import PublishedTerms, load_published

    if is_checkpoint(path):
        if given:
            raise UsageError(
                f"{given[0]}: got {terms[given[0]]}, but the checkpoint {path} contains it: "
                "leave the option out"
            )
        network, manifest = load_checkpoint(path)
        return network, replace(manifest, parent_sha256=file_sha256(path))
    own = PublishedTerms()
    names = own.classes if terms["--classes"] is None else terms["--classes"].split(",")
    classes, positive = tuple(name.strip() for name in names), terms["--positive"] or own.positive
    network, manifest = load_published(
        path, PublishedTerms(classes, positive, terms["--threshold"])
    )
    click.echo(f"{path}: {manifest.training['start']}: taken for {manifest.architecture}", err=True)
    if "--threshold" not in given:
        click.echo(
            f"the threshold is {manifest.threshold}, which was not chosen on any image: "
            "give the one you decide by with --threshold",
            err=True,
        )
    return network, manifest


def _images(data: Path | None, count: int, spec: InputSpec) -> NDArray[np.uint8]:
    import numpy as np

    from deepcovid_edge.imaging.prepare import prepare
    from deepcovid_edge.imaging.radiograph import Radiograph
    from deepcovid_edge.imaging.reading import read_radiograph
    from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

    if data is None:
        phantoms = (draw_phantom(seed, opacities=seed % 4) for seed in range(min(count, 8)))
        return np.stack([prepare(Radiograph(image, 255, "", "PNG"), spec) for image in phantoms])
    labelled = load_dataset(data)
    chosen = labelled[:: max(1, len(labelled) // count)][:count]
    prepared, refusals = [], []
    for image in chosen:
        try:
            prepared.append(prepare(read_radiograph(image.path), spec))
        except NotAssessedError as error:
            refusals.append(f"{image.path}: {error}")
    if not prepared:
        raise DataError(
            f"--check {data}: none of {number_of(len(chosen), 'image')} can be assessed, expected "
            f"one or more: {refusals[0]}"
        )
    if refusals:
        some = f"{len(refusals)} of {number_of(len(chosen), 'image')}"
        click.echo(f"--check: {some} not assessed, such as {refusals[0]}", err=True)
    return np.stack(prepared)
