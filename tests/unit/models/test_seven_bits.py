"""The shipped INT8 variant computes the same on every processor: its weights have 7 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepcovid_edge.backends import INT8_CPU_SUFFIX
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model

onnxruntime = pytest.importorskip("onnxruntime", reason="runs a model: extra cpu")
_LARGEST_SUM = 32767 // (2 * 255)
"""Of a weight: two products with uint8 then fit into 16 bits."""


@pytest.fixture(scope="module")
def variant() -> Path:
    """The shipped file."""
    path = find_model(DEFAULT_MODEL)
    return path.with_name(f"{path.stem}{INT8_CPU_SUFFIX}.onnx")


def test_no_weight_can_saturate_a_sum_of_16_bits(variant: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="reads the graph: extra export")
    graph = onnx.load(variant).graph
    kernels = [
        onnx.numpy_helper.to_array(item)
        for item in graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 4
    ]
    assert len(kernels) > 20
    assert max(int(np.abs(kernel.astype(int)).max()) for kernel in kernels) <= _LARGEST_SUM
    assert read_manifest(variant).quantization["weight_bits"] == 7


def test_sums_are_those_of_exact_arithmetic_to_the_bit(variant: Path) -> None:
    """`session.x64quantprecision` has AVX2 multiply uint8 by uint8, which cannot saturate.

    On a processor with VNNI, and on ARM, both are exact anyway.
    """
    images = np.random.default_rng(1).integers(0, 256, (4, 224, 224), np.uint8)
    found = []
    for exact in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = onnxruntime.InferenceSession(
            str(variant), options, providers=["CPUExecutionProvider"]
        )
        found.append(session.run(None, {"images": images}))
    for usual, exactly in zip(*found, strict=True):
        np.testing.assert_array_equal(usual, exactly)
