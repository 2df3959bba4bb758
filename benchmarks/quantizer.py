"""Is our quantiser better than `onnxruntime.quantization.quantize_static`, and which part of it is?

    python -m benchmarks.quantizer --data DATA

INT8 for CPUs. All candidates quantise the same layers and see the same calibration images:

- `quantize_static` as its documentation uses it (Q/DQ, uint8 activations, int8 weights per
  channel), with its calibration methods MinMax, Entropy and Percentile;
- our ranges alone, then with equalised channels, with fitted weights, and with both.

Accuracy is measured on `val`, against the FP32 network without its out-of-distribution layer. Graph
optimisations are off there: Q/DQ pairs then compute in float, exactly. On x86 without VNNI, ONNX
Runtime's INT8 kernels saturate, which would be counted as an error of the quantiser. Speed is
measured with the normal settings, one image a call on one thread, all candidates in turn.

`deepcovid-edge quantize` leaves the costliest layers in FP32 until the error of the logits on
calibration images is at most `MAX_ERROR`, a third of the layers at most. Where ours is less
accurate than that, the candidate is measured again with these layers excluded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from benchmarks import measure
from benchmarks.measure.options import parser_of
from benchmarks.measure.sessions import open_session
from benchmarks.variants import named
from deepcovid_edge.backends.base import softmax
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_export.decision.ood_graph import take_off
from deepcovid_export.evaluation.metrics import auc
from deepcovid_export.onnx_export.graphs import INT8_OPSET, find_layers
from deepcovid_export.onnx_export.half_weights import read_fp32
from deepcovid_export.quantization import calibration, mixed_precision, sensitivity, stepwise
from deepcovid_export.quantization.calibration import BATCH, ImageBatches, choose_images
from deepcovid_export.quantization.mixed_precision import Variant, VariantWriter
from deepcovid_export.quantization.quantize import MAX_ERROR
from deepcovid_export.quantization.sensitivity import Probe, layer_errors

MODELS = ("squeezenet1_1", "resnet18")
METHODS = ("MinMax", "Entropy", "Percentile")
OURS = {
    "ranges alone": ("equalise", "fit_weights"),
    "equalised": ("fit_weights",),
    "weights fitted": ("equalise",),
    "equalised, weights fitted": (),
}
"""Candidate -> the parts of `mixed_precision` that are switched off."""
OPERATORS = ["Conv", "Relu", "MaxPool", "Concat", "Add"]
BATCHES_AT_ONCE = 2
"""Batches whose activations `quantize_static` keeps before it counts them."""
IMAGES = 16
"""Images of a round of the speed measurement."""

Batches = list[NDArray[np.uint8]]
Logits = NDArray[np.float32]


def main() -> None:
    """Compare the candidates of each model, and store the results."""
    parser = parser_of(__doc__, data="images with train and val", model="several", rounds=15)
    parser.add_argument("--images", type=int, default=128, help="to calibrate on, a multiple of 16")
    options = parser.parse_args()
    for model in options.model or MODELS:
        figures = compare(named(model), options.data, options.images, options.rounds)
        measure.store(figures["model"], figures, folder="quantizer")


def compare(path: Path, data: Path, count: int, rounds: int) -> dict[str, Any]:
    """Accuracy and speed of all candidates of a model."""
    manifest = read_manifest(path)
    bare = take_off(read_fp32(str(path), path.read_bytes()))[0]
    parent = onnx.version_converter.convert_version(bare, INT8_OPSET)
    chosen = choose_images(data, manifest, count).images
    images = load_dataset(data, split="val")
    seen = list(ImageBatches(images, manifest.input))
    positive = np.array([image.label in manifest.positive_labels for image in images])
    reference, models, rows = logits(parent, seen), {"FP32": parent}, {}
    with exactly():
        for name, model, excluded in candidates(parent, ImageBatches(chosen, manifest.input)):
            found = accuracy(logits(model, seen), reference, positive, manifest)
            models[name], rows[name] = model, {**found, "excluded": excluded}
            print(manifest.name, name, rows[name], flush=True)
    rows["FP32"] = {**accuracy(reference, reference, positive, manifest), "excluded": None}
    seconds = speed(models, seen, rounds)
    for name, values in seconds.items():
        rows[name]["ms"] = measure.summary([1e3 * one / IMAGES for one in values])
    return {
        "model": manifest.name,
        "calibration_images": len(chosen),
        "val_images": len(images),
        "max_error": MAX_ERROR,
        "accuracy_computed": "graph optimisations off, so that no INT8 kernel can saturate",
        "candidates": {name: rows[name] for name in models},
    }


def candidates(
    parent: onnx.ModelProto, batches: ImageBatches
) -> Iterator[tuple[str, onnx.ModelProto, list[str]]]:
    """Name, network and excluded layers of each candidate."""
    probe, layers = Probe(parent, batches), tuple[str, ...]()
    for name, off in OURS.items():
        with without(off):
            writer = VariantWriter(parent, Variant("int8", "cpu"), batches)
            layers = writer.layers
            model = writer.write(layers)
            yield f"ours: {name}", model, []
            if probe.error(model) > MAX_ERROR:
                yield f"ours: {name}, layers excluded", *few_excluded(writer, probe)
    for method in METHODS:
        model = by_runtime(parent, layers, list(batches), method)
        yield f"quantize_static, {method}", model, []


def few_excluded(writer: VariantWriter, probe: Probe) -> tuple[onnx.ModelProto, list[str]]:
    """Exclude the costliest layers until the logits are accurate, as `quantize` does."""
    costly = layer_errors(writer.layers, lambda name: writer.write([name], alone=True), probe)
    excluded: list[str] = []
    for layer in list(costly)[: len(writer.layers) // 3]:
        excluded.append(layer)
        model = writer.write([name for name in writer.layers if name not in excluded])
        if probe.error(model) <= MAX_ERROR:
            break
    return model, excluded


@contextmanager
def without(parts: Sequence[str]) -> Iterator[None]:
    """Our quantiser with some of its parts switched off: they return the network as it is."""
    with ExitStack() as opened:
        for part in parts:
            off = mock.patch.object(mixed_precision, part, lambda model, *rest: model)
            opened.enter_context(off)
        yield


@contextmanager
def exactly() -> Iterator[None]:
    """Our quantiser with sessions that compute Q/DQ pairs in float."""
    exact = partial(open_session, exact=True)
    with ExitStack() as opened:
        for module in (calibration, sensitivity, stepwise):
            opened.enter_context(mock.patch.object(module, "open_session", exact))
        yield


class Reader:
    """What `quantize_static` reads its calibration images from."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give these batches next."""
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch."""
        batch = next(self.left, None)
        return None if batch is None else {"images": batch}


def by_runtime(
    parent: onnx.ModelProto, layers: Sequence[str], batches: Batches, method: str
) -> onnx.ModelProto:
    """The network from `quantize_static`, with the same layers in float as ours."""
    with tempfile.TemporaryDirectory() as folder:
        places = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(parent, places[0])
        quantize_static(
            *places,
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[
                node.name for name, node in find_layers(parent).items() if name not in layers
            ],
            calibrate_method=CalibrationMethod[method],
            extra_options={"CalibStridedMinMax": BATCHES_AT_ONCE},
        )
        return onnx.load(places[1])


def logits(model: onnx.ModelProto, batches: Batches) -> Logits:
    """Logits of all images, computed exactly."""
    session = open_session(model, exact=True)
    found = [session.run(["logits"], {"images": batch})[0] for batch in batches]
    return np.concatenate(found)


def accuracy(
    own: Logits,
    reference: Logits,
    positive: NDArray[np.bool_],
    manifest: ModelManifest,
) -> dict[str, Any]:
    """How far a candidate is from FP32: decisions, logits and the area under the ROC curve."""
    scores, before = (softmax(each)[:, manifest.positive_index] for each in (own, reference))
    return {
        "flips": int(((scores >= manifest.threshold) != (before >= manifest.threshold)).sum()),
        "relative_rmse": float(np.sqrt(np.mean((own - reference) ** 2)) / np.std(reference)),
        "probability_max": float(np.abs(scores - before).max()),
        "auc": auc(scores, positive),
        "auc_fp32": auc(before, positive),
    }


def speed(
    models: dict[str, onnx.ModelProto], batches: Batches, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each candidate for the same images, one a call, in turn."""
    images = np.concatenate(list(islice(batches, IMAGES // BATCH)))

    def run(session: Any) -> None:
        for image in images:
            session.run(["logits"], {"images": image[None]})

    sessions = {name: open_session(model, threads=1) for name, model in models.items()}
    sides = {name: partial(run, session) for name, session in sessions.items()}
    return measure.in_turn(sides, ((),) * (rounds + 1))


if __name__ == "__main__":
    main()
