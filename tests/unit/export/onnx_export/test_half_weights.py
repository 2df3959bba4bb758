"""Weights stored in FP16: what changes in the file, what a runtime computes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")
torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from deepcovid_edge.backends.base import softmax
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import InputSpec, ModelManifest, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_export.networks import Classifier, build_network
from deepcovid_export.onnx_export.half_weights import read_fp32, restore_float, store_half
from deepcovid_export.onnx_export.to_onnx import export_network

SHIPPED = find_model("squeezenet1_1")


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (answer,) = session.run(["logits"], {"images": images})
    return np.asarray(answer)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (4, 224, 224), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx.load(SHIPPED)


def test_file_is_half_the_size_and_computes_with_the_rounded_weights(
    network: onnx.ModelProto, images: np.ndarray
) -> None:
    halved = store_half(network)
    assert halved.ByteSize() < 0.52 * network.ByteSize()
    rounded = onnx.ModelProto()
    rounded.CopyFrom(network)
    for item in rounded.graph.initializer:
        if item.data_type == TensorProto.FLOAT and np.prod(item.dims) >= 256:
            weights = numpy_helper.to_array(item).astype(np.float16).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(weights, item.name))
    assert np.array_equal(logits(halved, images), logits(rounded, images))
    assert np.abs(logits(halved, images) - logits(network, images)).max() < 0.02


def test_folding_gives_one_fp32_network_again(network: onnx.ModelProto, images: np.ndarray) -> None:
    halved = store_half(network)
    full = restore_float(halved)
    assert not any(item.data_type == TensorProto.FLOAT16 for item in full.graph.initializer)
    assert len(full.graph.node) == len(network.graph.node)
    assert np.array_equal(logits(full, images), logits(halved, images))


def test_it_can_be_quantised_and_built_like_any_fp32_file(
    network: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    onnx.save(store_half(network), path)
    check_typed(path)
    read = read_fp32(str(path), path.read_bytes())
    assert {node.op_type for node in read.graph.node} == {
        node.op_type for node in network.graph.node
    }


def test_weights_beyond_fp16_are_refused(network: onnx.ModelProto) -> None:
    wide = onnx.ModelProto()
    wide.CopyFrom(network)
    item = next(item for item in wide.graph.initializer if np.prod(item.dims) >= 256)
    weights = numpy_helper.to_array(item).copy()
    weights.flat[0] = 1e5
    item.CopyFrom(numpy_helper.from_array(weights, item.name))
    with pytest.raises(ModelFileError, match="65504"):
        store_half(wide)


# The command's own function --------------------------------------------------------------------


def small() -> tuple[Classifier, ModelManifest]:
    torch.manual_seed(5)
    network = build_network("small_cnn", 2).eval()
    spec = InputSpec(128, 128)
    return network, ModelManifest("small", "small_cnn", ("non", "covid"), "covid", 0.5, input=spec)


def test_export_says_what_rounding_changed(tmp_path: Path) -> None:
    network, manifest = small()
    images = np.random.default_rng(2).integers(0, 256, (6, 128, 128), dtype=np.uint8)
    output = tmp_path / "small.onnx"
    written, parity = export_network(network, manifest, output, images, half_weights=True)
    assert parity.max_logit_difference <= 1e-4
    rounding = written.training["export"]["half_weights"]
    assert rounding["decisions_turned"] == 0
    assert 0 < rounding["max_logit_difference"] < 0.01
    assert read_manifest(output) == ModelManifest.from_json(written.to_json())
    assert any(
        item.data_type == TensorProto.FLOAT16 for item in onnx.load(output).graph.initializer
    )


def test_export_is_not_written_where_rounding_turns_a_decision(tmp_path: Path) -> None:
    network, manifest = small()
    images = np.random.default_rng(2).integers(0, 256, (6, 128, 128), dtype=np.uint8)
    export_network(network, manifest, tmp_path / "whole.onnx", images)
    whole = onnx.load(tmp_path / "whole.onnx")
    scores = [softmax(logits(model, images))[0, 1] for model in (whole, store_half(whole))]
    between = replace(manifest, threshold=float(np.mean(scores)))
    with pytest.raises(ModelFileError, match=r"turn [1-6] of 6 decisions"):
        export_network(network, between, tmp_path / "no.onnx", images, half_weights=True)
    assert not (tmp_path / "no.onnx").exists()
