"""`deepcovid-edge export`: checkpoint to one self-contained ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.errors import DataError, ImageRefusedError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcovid_edge.manifest import InputSpec


@click.command(epilog="Example: deepcovid-edge export runs/first/checkpoint.pt -o first.onnx")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: NAME.onnx]")
@click.option(
    "--check",
    "data",
    type=click.Path(path_type=Path),
    help="Films to compare torch and ONNX Runtime on.  [default: synthetic ones]",
)
@click.option("--films", type=click.IntRange(1, 1024), default=64, show_default=True)
def command(checkpoint: Path, output: Path | None, data: Path | None, films: int) -> None:
    """Write CHECKPOINT as one ONNX file with its manifest inside, and check it against torch.

    The file is written only if ONNX Runtime and torch agree within 1e-4 on every logit.
    """
    require("torch", extra="export")
    from deepcovid_export.checkpoint import load_checkpoint
    from deepcovid_export.to_onnx import export_checkpoint

    _, manifest = load_checkpoint(checkpoint)
    output = output or Path(f"{manifest.name}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    pixels = _films(data, films, manifest.input)
    kind = "real" if data else "synthetic"
    _, parity = export_checkpoint(checkpoint, output, pixels, kind=kind)
    click.echo(
        f"torch and ONNX Runtime on {parity.films} {kind} films: logits differ by at most "
        f"{parity.max_logit_difference:.2g}, activation maps by {parity.max_map_difference:.2g}",
        err=True,
    )
    click.echo(output)


def _films(data: Path | None, count: int, spec: InputSpec) -> NDArray[np.uint8]:
    import numpy as np

    from deepcovid_edge.dataset import load_dataset
    from deepcovid_edge.images import Radiograph, read_radiograph
    from deepcovid_edge.phantom import draw_phantom
    from deepcovid_edge.preprocess import prepare

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
