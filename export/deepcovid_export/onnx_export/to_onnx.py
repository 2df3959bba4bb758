"""Checkpoint to one self-contained ONNX file, checked against torch."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Inference, softmax
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import METADATA_KEY, ModelManifest
from deepcovid_export.networks import Classifier
from deepcovid_export.networks.checkpoint import load_checkpoint
from deepcovid_export.onnx_export.half_weights import store_half

OPSET = 18
"""The newest opset that TensorRT 10.3 (JetPack 6) reads without a rewrite."""
MAX_IR_VERSION = 10
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


def export_checkpoint(
    checkpoint: Path, output: Path, images: NDArray[np.uint8], *, kind: str = "synthetic"
) -> tuple[ModelManifest, Parity]:
    """Export a checkpoint and prove that the file computes what torch computes.

    Args:
        checkpoint: A checkpoint of `deepcovid-edge train`.
        output: The .onnx file to write.
        images: Prepared images of shape (N, height, width), uint8, to compare on.
        kind: What the images are, `real` or `synthetic`, for the manifest.

    Returns:
        The manifest inside the file, and how far the two are apart.

    Raises:
        ModelFileError: The checkpoint is none, or the exported file differs from it.
    """
    network, manifest = load_checkpoint(checkpoint)
    manifest = replace(manifest, parent_sha256=file_sha256(checkpoint))
    return export_network(network, manifest, output, images, kind=kind)


def export_network(
    network: Classifier,
    manifest: ModelManifest,
    output: Path,
    images: NDArray[np.uint8],
    *,
    kind: str = "synthetic",
    half_weights: bool = False,
) -> tuple[ModelManifest, Parity]:
    """Export a network and prove that the file computes what torch computes.

    Args:
        network: The network.
        manifest: What its file shall say of it, with the file it was made from.
        output: The .onnx file to write.
        images: Prepared images of shape (N, height, width), uint8, to compare on.
        kind: What the images are, `real` or `synthetic`, for the manifest.
        half_weights: Store the weights rounded to FP16, at half the size; arithmetic stays FP32.

    Returns:
        The manifest inside the file, and how far the two are apart, before any rounding.

    Raises:
        ModelFileError: The exported file differs from the network, or rounding turns a decision.
    """
    created = {**manifest.created_with, "onnx": onnx.__version__}
    manifest = replace(manifest, created_with=created)
    model = _to_onnx(network, manifest)
    temporary = output.with_name(f".{os.getpid()}-{output.stem}.onnx")
    try:
        onnx.save(_with_manifest(model, manifest), temporary)
        parity = compare(network, temporary, images, kind=kind)
        facts = asdict(parity)
        if half_weights:
            halved = store_half(model)
            rounding = _compare_rounded(model, halved, manifest, temporary, images)
            model, facts = halved, {**facts, "half_weights": asdict(rounding)}
        manifest = replace(manifest, training={**manifest.training, "export": facts})
        onnx.save(_with_manifest(model, manifest), temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return manifest, parity


def rewrite_manifest(path: Path, manifest: ModelManifest) -> None:
    """Give an exported file another manifest, in one step."""
    temporary = path.with_name(f".{os.getpid()}-{path.stem}.onnx")
    try:
        onnx.save(_with_manifest(onnx.load(path), manifest), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def compare(
    network: Classifier, path: Path, images: NDArray[np.uint8], *, kind: str = "synthetic"
) -> Parity:
    """Run images through torch and through ONNX Runtime.

    Args:
        network: The torch side, in evaluation mode.
        path: The exported file.
        images: Prepared images of shape (N, height, width), uint8.
        kind: What the images are.

    Raises:
        ModelFileError: A logit differs by more than `TOLERANCE`.
    """
    with torch.inference_mode():
        logits, maps = (output.numpy() for output in network(torch.from_numpy(images)))
    with load_backend(path) as backend:
        seen: Inference = backend.infer(images, activation_maps=True)
    parity = Parity(
        images=len(images),
        kind=kind,
        max_logit_difference=float(np.abs(seen.logits - logits).max()),
        max_map_difference=float(np.abs(np.asarray(seen.activation_maps) - maps).max()),
    )
    if parity.max_logit_difference > TOLERANCE:
        raise ModelFileError(
            f"{path}: logits differ from torch by {parity.max_logit_difference:.2g}, "
            f"expected at most {TOLERANCE:.0e}: the export is not used"
        )
    return parity


def _compare_rounded(
    model: onnx.ModelProto,
    halved: onnx.ModelProto,
    manifest: ModelManifest,
    place: Path,
    images: NDArray[np.uint8],
) -> Rounding:
    answers = []
    for variant in (model, halved):
        onnx.save(_with_manifest(variant, manifest), place)
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


def _to_onnx(network: Classifier, manifest: ModelManifest) -> onnx.ModelProto:
    example = torch.zeros(2, manifest.input.height, manifest.input.width, dtype=torch.uint8)
    with _quiet():
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
    model = program.model_proto
    _strip(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter leaves of the machine: stack traces, file names, type notes."""
    model.ClearField("metadata_props")
    model.doc_string = ""
    model.producer_name, model.producer_version = "deepcovid-edge", ""
    graph = model.graph
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    graph.name = "deepcovid"
    for part in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _with_manifest(model: onnx.ModelProto, manifest: ModelManifest) -> onnx.ModelProto:
    model.ClearField("metadata_props")
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns of its own internals and logs missing optional passes."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
