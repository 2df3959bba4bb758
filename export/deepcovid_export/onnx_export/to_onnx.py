"""Checkpoint to one self-contained ONNX file, checked against torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import softmax
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_export.networks import Classifier
from deepcovid_export.onnx_export.graphs import (
    finish,
    quiet,
    save,
    set_manifest,
    temporary_beside,
)
from deepcovid_export.onnx_export.half_weights import store_half

OPSET = 18
"""The newest opset that TensorRT 10.3 (JetPack 6) reads without a rewrite."""
TOLERANCE = 1e-4
"""Largest difference of a logit between torch and ONNX Runtime, both FP32."""


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime is from torch on the same images.

    Attributes:
        images: Number of images compared.
        kind: `real` or `synthetic`.
        max_logit_difference: Largest absolute difference of a logit.
        max_map_difference: Largest absolute difference in the activation maps.
    """

    images: int
    kind: str
    max_logit_difference: float
    max_map_difference: float


@dataclass(frozen=True)
class Rounding:
    """What weights rounded to FP16 change on the same images.

    Attributes:
        max_logit_difference: Largest absolute difference of a logit.
        decisions_turned: Images that fall on the other side of the threshold.
    """

    max_logit_difference: float
    decisions_turned: int


def export_network(
    network: Classifier,
    manifest: ModelManifest,
    output: Path,
    images: NDArray[np.uint8],
    *,
    kind: str = "synthetic",
    half_weights: bool = False,
) -> tuple[ModelManifest, Parity]:
    """Export a network and check that the file computes what torch computes.

    Args:
        network: The network.
        manifest: Its manifest, with the SHA-256 of the file that the network comes from.
        output: The .onnx file to write.
        images: Prepared images of shape (N, height, width), uint8, to compare on.
        kind: What the images are, `real` or `synthetic`, for the manifest.
        half_weights: Store the weights rounded to FP16, at half the size; arithmetic stays FP32.

    Returns:
        The manifest inside the file, and how far the two are apart before any rounding.

    Raises:
        ModelFileError: The exported file differs from the network, or rounding turns a decision.
    """
    created = {**manifest.created_with, "onnx": onnx.__version__}
    manifest = replace(manifest, created_with=created)
    model = finish(_traced(network, manifest.input), manifest)
    with temporary_beside(output) as temporary:
        onnx.save(model, temporary)
        parity = compare(network, temporary, images, kind=kind)
        facts = asdict(parity)
        if half_weights:
            halved = store_half(model)
            rounding = _compare_rounded((model, halved), manifest, temporary, images)
            model, facts = halved, {**facts, "half_weights": asdict(rounding)}
    manifest = replace(manifest, training={**manifest.training, "export": facts})
    set_manifest(model, manifest)
    save(model, output)
    return manifest, parity


def rewrite_manifest(path: Path, manifest: ModelManifest) -> None:
    """Give an exported file another manifest, in one step."""
    model = onnx.load(path)
    set_manifest(model, manifest)
    save(model, path)


def compare(
    network: Classifier, path: Path, images: NDArray[np.uint8], *, kind: str = "synthetic"
) -> Parity:
    """Run images through torch and through ONNX Runtime.

    Raises:
        ModelFileError: A logit differs by more than `TOLERANCE`.
    """
    with torch.inference_mode():
        logits, maps = (output.numpy() for output in network(torch.from_numpy(images)))
    with load_backend(path) as backend:
        seen, name = backend.infer(images, activation_maps=True), backend.manifest.name
    parity = Parity(
        images=len(images),
        kind=kind,
        max_logit_difference=float(np.abs(seen.logits - logits).max()),
        max_map_difference=float(np.abs(np.asarray(seen.activation_maps) - maps).max()),
    )
    if not parity.max_logit_difference <= TOLERANCE:  # NaN is not within the tolerance
        raise ModelFileError(
            f"{name}: logits differ from torch by {parity.max_logit_difference:.2g}, "
            f"expected at most {TOLERANCE:.0e}: the export is not used"
        )
    return parity


def _compare_rounded(
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    manifest: ModelManifest,
    place: Path,
    images: NDArray[np.uint8],
) -> Rounding:
    """What changes from the first model to the second, whose weights are rounded."""
    answers = []
    for model in models:
        onnx.save(model, place)
        with load_backend(place) as backend:
            answers.append(backend.infer(images).logits)
    before, now = (
        softmax(logits)[:, manifest.positive_index] >= manifest.threshold for logits in answers
    )
    rounding = Rounding(float(np.abs(answers[1] - answers[0]).max()), int((before != now).sum()))
    if rounding.decisions_turned:
        raise ModelFileError(
            f"{manifest.name}: weights rounded to FP16 turn {rounding.decisions_turned} of "
            f"{len(images)} decisions, expected none: export without --half-weights"
        )
    return rounding


def _traced(network: Classifier, spec: InputSpec) -> onnx.ModelProto:
    """The network as torch exports it, with a dynamic batch."""
    example = torch.zeros(2, spec.height, spec.width, dtype=torch.uint8)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            network.eval(),
            (example,),
            input_names=["images"],
            output_names=["logits", "activation_maps"],
            opset_version=OPSET,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ModelFileError("torch.onnx.export returned nothing")
    return program.model_proto
