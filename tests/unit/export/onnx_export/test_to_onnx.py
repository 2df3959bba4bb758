"""The exported file against torch: what does not agree is not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")
torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_export.networks import build_network
from deepcovid_export.onnx_export.to_onnx import export_network


def test_a_network_whose_logits_are_no_numbers_is_not_exported(tmp_path: Path) -> None:
    network = build_network("small_cnn", 2).eval()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    spec = InputSpec(128, 128)
    manifest = ModelManifest("nan", "small_cnn", ("non", "covid"), "covid", 0.5, input=spec)
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128), dtype=np.uint8)
    with pytest.raises(ModelFileError, match=r"^nan: logits differ from torch by nan"):
        export_network(network, manifest, tmp_path / "nan.onnx", images)
    assert not list(tmp_path.iterdir())
