"""`deepcovid-edge export`: checkpoint to one self-contained ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.errors import DataError, NotAssessedError, UsageError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcovid_edge.datasets.dataset import LabelledImage
    from deepcovid_edge.manifest import InputSpec, ModelManifest
    from deepcovid_export.networks import Classifier


@click.command(epilog="Example: deepcovid-edge export runs/first/checkpoint.pt -o first.onnx")
@click.argument("source", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: NAME.onnx]")
@click.option(
    "--check",
    "data",
    type=click.Path(path_type=Path),
    help="Images to compare torch and ONNX Runtime on.  [default: synthetic ones]  Those of a "
    "split `val` also tell whether the network reads the source.",
)
@click.option(
    "--fit",
    "ood",
    type=click.Path(path_type=Path),
    help="Images with the splits `train` and `val`, to fit the out-of-distribution limits and the "
    "indeterminate range.  [default: neither]",
)
@click.option("--images", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option(
    "--half-weights", is_flag=True, help="Store weights in FP16: half the size, FP32 arithmetic."
)
@click.option("--classes", help="Of a published network, in their order.  [default: covid,non]")
@click.option("--positive", help="The class that it looks for.  [default: covid]")
@click.option("--threshold", type=float, help="Probability from which an image is positive.")
def command(
    source: Path,
    output: Path | None,
    data: Path | None,
    ood: Path | None,
    images: int,
    half_weights: bool,
    classes: str | None,
    positive: str | None,
    threshold: float | None,
) -> None:
    """Write CHECKPOINT as one ONNX file with its manifest inside, and check it against torch.

    CHECKPOINT is one of `deepcovid-edge train`, or a network of the published Deep-COVID project: a
    whole module saved by torch (SqueezeNet 1.0 and 1.1, ResNet18 and 50, DenseNet-121 of
    torchvision with another last layer) or its state dict. Such a file is read without running
    anything that it names, and says nothing of classes and threshold: give them with the last three
    options. The file is written only if ONNX Runtime and torch agree within 1e-4 on every logit.

    An exported FP32 .onnx in the place of CHECKPOINT keeps its weights; with --fit it is written
    with out-of-distribution limits and an indeterminate range, or with others.
    """
    if source.suffix == ".onnx":
        given = {
            **{"--check": data, "--half-weights": half_weights or None},
            **{"--classes": classes, "--positive": positive, "--threshold": threshold},
        }
        _refit(source, ood, output, given)
        return
    require("torch", extra="export")
    from deepcovid_export.onnx_export.to_onnx import export_network

    network, manifest = _load(source, classes, positive, threshold)
    output = output or Path(f"{manifest.name}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    pixels = _images(data, images, manifest.input)
    kind = "real" if data else "synthetic"
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
    if ood is not None:
        _fit(output, ood)
    click.echo(output)


def _refit(source: Path, ood: Path | None, output: Path | None, given: dict[str, Any]) -> None:
    """Write an exported model with out-of-distribution limits fitted anew."""
    wrong = [flag for flag, value in given.items() if value is not None]
    if ood is None or wrong:
        raise UsageError(
            f"{source}: is exported already: got {', '.join(wrong) or 'no --fit'}, expected --fit "
            "DATA alone: give the checkpoint to export it anew"
        )
    output = output or Path(f"{source.stem}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    _fit(source, ood, output)
    click.echo(output)


def _fit(source: Path, data: Path, output: Path | None = None) -> None:
    require("sklearn", extra="export")
    from deepcovid_export.decision.fit_ood import fit_model

    manifest = fit_model(source, data, output)
    val = manifest.ood["val"]
    click.echo(
        f"ood: rejects {val['rejected']} of {val['images']} images of val, "
        f"{val['turned_copies_rejected']:.1%} of them turned or inverted and "
        f"{val['unrecognisable_copies_rejected']:.1%} made unrecognisable",
        err=True,
    )
    if manifest.threshold_origin.get("split") == "val":
        _fit_indeterminate_range(output or source, _val_images(manifest, data))


def _fit_indeterminate_range(path: Path, images: Sequence[LabelledImage]) -> None:
    """Write into the file which images are too close to call, by those its threshold is from."""
    from deepcovid_export.decision.indeterminate import fit_model_indeterminate_range

    indeterminate_range = fit_model_indeterminate_range(path, images).indeterminate_range
    if indeterminate_range:
        click.echo(
            f"indeterminate: from {indeterminate_range.low:.4f} to {indeterminate_range.high:.4f}, "
            f"{indeterminate_range.origin['indeterminate']} of "
            f"{indeterminate_range.origin['images']} images of val",
            err=True,
        )


def _measure_shortcuts(path: Path, manifest: ModelManifest, data: Path) -> None:
    """Write into the file whether it reads the source, where there are images of val to tell."""
    from dataclasses import replace

    from deepcovid_edge.backends import load_backend
    from deepcovid_edge.datasets.dataset import dataset_sha256
    from deepcovid_export.evaluation.shortcuts import measure_shortcuts, shortcut_summary
    from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

    images = _val_images(manifest, data)
    if not {image.label for image in images} & manifest.positive_labels:
        return
    with load_backend(path) as backend:
        measured = measure_shortcuts(backend, images)
    summary = shortcut_summary(measured, "val", dataset_sha256(images))
    rewrite_manifest(path, replace(manifest, training={**manifest.training, "shortcuts": summary}))
    click.echo(summary["verdict"], err=True)


def _val_images(manifest: ModelManifest, data: Path) -> list[LabelledImage]:
    """The images of val that the model's recipe asks for."""
    from deepcovid_edge.datasets.dataset import load_dataset

    views = manifest.training.get("recipe", {}).get("data", {}).get("views", ())
    return [
        image
        for image in load_dataset(data)
        if image.split == "val"
        and image.label in manifest.known_labels
        and (not views or image.view in views)
    ]


def _load(
    path: Path, classes: str | None, positive: str | None, threshold: float | None
) -> tuple[Classifier, ModelManifest]:
    from dataclasses import replace

    from deepcovid_edge.files import file_sha256
    from deepcovid_export.networks.checkpoint import is_checkpoint, load_checkpoint

    if is_checkpoint(path):
        given = {"--classes": classes, "--positive": positive, "--threshold": threshold}
        for flag, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{flag}: got {value}, but {path} is a checkpoint that says it itself: "
                    "leave it out"
                )
        network, manifest = load_checkpoint(path)
        return network, replace(manifest, parent_sha256=file_sha256(path))
    return _load_published(path, classes, positive, threshold)


def _load_published(
    path: Path, classes: str | None, positive: str | None, threshold: float | None
) -> tuple[Classifier, ModelManifest]:
    from deepcovid_export.networks.published.load import PublishedTerms, load_published

    defaults = PublishedTerms()
    given = classes.split(",") if classes is not None else defaults.classes
    names = tuple(name.strip() for name in given)
    terms = PublishedTerms(names, positive or defaults.positive, threshold)
    network, manifest = load_published(path, terms)
    click.echo(f"{path}: {manifest.training['start']}: taken for {manifest.architecture}", err=True)
    if threshold is None:
        click.echo(
            f"the threshold is {manifest.threshold}, which was not chosen on any image: "
            "give the one you decide by with --threshold",
            err=True,
        )
    return network, manifest


def _images(data: Path | None, count: int, spec: InputSpec) -> NDArray[np.uint8]:
    import numpy as np

    from deepcovid_edge.datasets.dataset import load_dataset
    from deepcovid_edge.imaging.phantom import draw_phantom
    from deepcovid_edge.imaging.prepare import prepare
    from deepcovid_edge.imaging.radiograph import Radiograph
    from deepcovid_edge.imaging.reading import read_radiograph

    if data is None:
        phantoms = (draw_phantom(seed, opacities=seed % 4) for seed in range(min(count, 8)))
        return np.stack([prepare(Radiograph(image, 255, "", "PNG"), spec) for image in phantoms])
    labelled = load_dataset(data)
    chosen = labelled[:: max(1, len(labelled) // count)][:count]
    prepared = []
    for image in chosen:
        try:
            prepared.append(prepare(read_radiograph(image.path), spec))
        except NotAssessedError as error:
            raise DataError(f"--check: {image.path}: {error}") from error
    return np.stack(prepared)
