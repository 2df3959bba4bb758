"""The candidates of the quantiser's benchmark: the same layers, and parts that are really off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("onnx", reason="quantising needs extra export")

import onnx

from benchmarks import quantizer
from deepcovid_edge.imaging.phantom import draw_phantom
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.decision.ood_graph import take_off
from deepcovid_export.onnx_export.graphs import INT8_OPSET, find_layers
from deepcovid_export.quantization import mixed_precision
from deepcovid_export.quantization.calibration import ImageBatches

MODEL = find_model("squeezenet1_1")
MANIFEST = read_manifest(MODEL)


class Phantoms:
    """Two batches of prepared phantoms."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in (0, 2):
            drawn = (draw_phantom(seed) for seed in range(start, start + 2))
            images = [Radiograph(pixels, 255, "", "PNG") for pixels in drawn]
            yield np.stack([prepare(image, MANIFEST.input) for image in images])


@pytest.fixture(scope="module")
def parent() -> onnx.ModelProto:
    return onnx.version_converter.convert_version(take_off(onnx.load(MODEL))[0], INT8_OPSET)


def in_float(model: onnx.ModelProto) -> set[str]:
    """Convolutions that read their weights as they are."""
    stored = {item.name for item in model.graph.initializer}
    return {name for name, node in find_layers(model).items() if node.input[1] in stored}


def test_quantize_static_leaves_the_layers_in_float_that_ours_leaves(
    parent: onnx.ModelProto,
) -> None:
    variant = mixed_precision.Variant("int8", "cpu")
    with quantizer.without(("equalise", "fit_weights")):
        writer = mixed_precision.VariantWriter(parent, variant, cast("ImageBatches", Phantoms()))
        ours = writer.write(writer.layers)
    theirs = quantizer.by_runtime(parent, writer.layers, list(Phantoms()), "MinMax")
    assert in_float(theirs) == in_float(ours) == writer.never
    reference = quantizer.logits(parent, list(Phantoms()))
    for model in (ours, theirs):
        apart = quantizer.logits(model, list(Phantoms())) - reference
        assert 0 < np.sqrt(np.mean(apart**2)) < 0.5 * np.std(reference)


def test_parts_are_off_within_the_block_alone(parent: onnx.ModelProto) -> None:
    module: Any = mixed_precision
    equalise = module.equalise
    with quantizer.without(("equalise",)):
        assert module.equalise(parent, {}) is parent
    assert module.equalise is equalise


def test_accuracy_counts_decisions_and_errors() -> None:
    reference = np.full((3, 2), -2, np.float32)
    reference[[0, 1, 2], [MANIFEST.positive_index, *[1 - MANIFEST.positive_index] * 2]] = 2
    own = reference.copy()
    own[0] = own[1]
    found = quantizer.accuracy(own, reference, np.array([True, False, False]), MANIFEST)
    assert found["flips"] == 1
    assert found["relative_rmse"] == pytest.approx(np.sqrt(2 * 16 / 6) / 2)
    assert (found["auc_fp32"], found["auc"]) == (1.0, 0.5)
