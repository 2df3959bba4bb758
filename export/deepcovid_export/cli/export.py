"""`deepcovid-edge export`: checkpoint to one self-contained ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.errors import DataError, ImageRefusedError, UsageError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcovid_edge.datasets.dataset import LabelledFilm
    from deepcovid_edge.manifest import InputSpec, ModelManifest
    from deepcovid_export.networks import Classifier


@click.command(epilog="Example: deepcovid-edge export runs/first/checkpoint.pt -o first.onnx")
@click.argument("source", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: NAME.onnx]")
@click.option(
    "--check",
    "data",
    type=click.Path(path_type=Path),
    help="Films to compare torch and ONNX Runtime on.  [default: synthetic ones]  Those of a "
    "split `val` also tell whether the network reads the source.",
)
@click.option(
    "--fit",
    "gate",
    type=click.Path(path_type=Path),
    help="Films with the splits `train` and `val`, to fit what is not judged (films unlike them: "
    "the out-of-distribution gate) and what is too close to call (the band).  [default: neither]",
)
@click.option("--films", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option(
    "--half-weights", is_flag=True, help="Store weights in FP16: half the size, FP32 arithmetic."
)
@click.option("--classes", help="Of a published network, in their order.  [default: covid,non]")
@click.option("--positive", help="The class that it looks for.  [default: covid]")
@click.option("--threshold", type=float, help="Probability from which a film is positive.")
def command(
    source: Path,
    output: Path | None,
    data: Path | None,
    gate: Path | None,
    films: int,
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
    with a gate and a band, or with others.
    """
    if source.suffix == ".onnx":
        given = {
            **{"--check": data, "--half-weights": half_weights or None},
            **{"--classes": classes, "--positive": positive, "--threshold": threshold},
        }
        _refit(source, gate, output, given)
        return
    require("torch", extra="export")
    from deepcovid_export.onnx_export.to_onnx import export_network

    network, manifest = _load(source, classes, positive, threshold)
    output = output or Path(f"{manifest.name}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    pixels = _films(data, films, manifest.input)
    kind = "real" if data else "synthetic"
    written, parity = export_network(
        network, manifest, output, pixels, kind=kind, half_weights=half_weights
    )
    click.echo(
        f"torch and ONNX Runtime on {parity.films} {kind} films: logits differ by at most "
        f"{parity.max_logit_difference:.2g}, activation maps by {parity.max_map_difference:.2g}",
        err=True,
    )
    if data is not None:
        _measure_shortcuts(output, written, data)
    if gate is not None:
        _fit(output, gate)
    click.echo(output)


def _refit(source: Path, gate: Path | None, output: Path | None, given: dict[str, Any]) -> None:
    """Write an exported model with a gate fitted anew."""
    wrong = [flag for flag, value in given.items() if value is not None]
    if gate is None or wrong:
        raise UsageError(
            f"{source}: is exported already: got {', '.join(wrong) or 'no --fit'}, expected --fit "
            "DATA alone: give the checkpoint to export it anew"
        )
    output = output or Path(f"{source.stem}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    _fit(source, gate, output)
    click.echo(output)


def _fit(source: Path, data: Path, output: Path | None = None) -> None:
    require("sklearn", extra="export")
    from deepcovid_export.decision.fit_ood import fit_model

    manifest = fit_model(source, data, output)
    val = manifest.familiarity["val"]
    click.echo(
        f"gate: refuses {val['refused']} of {val['films']} films of val, "
        f"{val['turned_copies_refused']:.1%} of them turned or inverted and "
        f"{val['foreign_copies_refused']:.1%} made unrecognisable",
        err=True,
    )
    if manifest.threshold_origin.get("split") == "val":
        _fit_band(output or source, _val_films(manifest, data))


def _fit_band(path: Path, films: Sequence[LabelledFilm]) -> None:
    """Write into the file which films are too close to call, by those its threshold is from."""
    from deepcovid_export.decision.indeterminate import fit_model_band

    band = fit_model_band(path, films).band
    if band:
        click.echo(
            f"too close to call: from {band.low:.4f} to {band.high:.4f}, "
            f"{band.origin['indeterminate']} of {band.origin['films']} films of val",
            err=True,
        )


def _measure_shortcuts(path: Path, manifest: ModelManifest, data: Path) -> None:
    """Write into the file whether it reads the source, where there are films of val to tell."""
    from dataclasses import replace

    from deepcovid_edge.backends import load_backend
    from deepcovid_edge.datasets.dataset import dataset_sha256
    from deepcovid_export.evaluation.shortcuts import measure_shortcuts, shortcut_summary
    from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

    films = _val_films(manifest, data)
    if not {film.label for film in films} & manifest.positive_labels:
        return
    with load_backend(path) as backend:
        measured = measure_shortcuts(backend, films)
    summary = shortcut_summary(measured, "val", dataset_sha256(films))
    rewrite_manifest(path, replace(manifest, training={**manifest.training, "shortcuts": summary}))
    click.echo(summary["verdict"], err=True)


def _val_films(manifest: ModelManifest, data: Path) -> list[LabelledFilm]:
    """The films of val that the model's recipe asks for."""
    from deepcovid_edge.datasets.dataset import load_dataset

    views = manifest.training.get("recipe", {}).get("data", {}).get("views", ())
    return [
        film
        for film in load_dataset(data)
        if film.split == "val"
        and film.label in manifest.known_labels
        and (not views or film.view in views)
    ]


def _load(
    path: Path, classes: str | None, positive: str | None, threshold: float | None
) -> tuple[Classifier, ModelManifest]:
    from dataclasses import replace

    from deepcovid_edge.manifest import file_sha256
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
            f"the threshold is {manifest.threshold}, which was not chosen on any film: "
            "give the one you decide by with --threshold",
            err=True,
        )
    return network, manifest


def _films(data: Path | None, count: int, spec: InputSpec) -> NDArray[np.uint8]:
    import numpy as np

    from deepcovid_edge.datasets.dataset import load_dataset
    from deepcovid_edge.imaging.phantom import draw_phantom
    from deepcovid_edge.imaging.pictures import Radiograph, read_radiograph
    from deepcovid_edge.imaging.prepare import prepare

    if data is None:
        phantoms = (draw_phantom(seed, opacities=seed % 4) for seed in range(min(count, 8)))
        return np.stack([prepare(Radiograph(film, 255, "", "PNG"), spec) for film in phantoms])
    labelled = load_dataset(data)
    chosen = labelled[:: max(1, len(labelled) // count)][:count]
    prepared = []
    for film in chosen:
        try:
            prepared.append(prepare(read_radiograph(film.path), spec))
        except ImageRefusedError as error:
            raise DataError(f"--check: {film.path}: {error}") from error
    return np.stack(prepared)
