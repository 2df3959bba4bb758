"""The model of a Triton repository, with a stand-in for Triton's module."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("onnxruntime", reason="needs extra cpu")

from deepcovid_edge.backends import choose_file
from deepcovid_edge.backends.remote.client import PARAMETER
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.models import find_model
from deepcovid_edge.serve.triton_model import TritonPythonModel

FP32 = find_model("squeezenet1_1")
INT8 = FP32.with_name("squeezenet1_1-int8-cpu.onnx")


def loaded(folder: Path, sha256: str) -> TritonPythonModel:
    model = TritonPythonModel()
    text = json.dumps({"model_sha256": sha256})
    config = {"parameters": {PARAMETER: {"string_value": text}}}
    model.initialize({"model_config": json.dumps(config), "model_repository": str(folder)})
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder in which a verified, faster variant lies beside the file."""
    name = "triton_python_backend_utils"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    (tmp_path / "1").mkdir()
    shutil.copy(FP32, tmp_path / "1/model.onnx")
    shutil.copy(INT8, tmp_path / "1/model-int8-cpu.onnx")
    return tmp_path


def test_the_file_that_was_compared_is_the_one_that_runs(folder: Path) -> None:
    if choose_file(folder / "1/model.onnx") == folder / "1/model.onnx":
        pytest.skip("this processor does not compute the INT8 variant exactly")
    model = loaded(folder, file_sha256(FP32))
    try:
        assert model._model.backend.sha256 == file_sha256(FP32)
        assert model._model.facts.variant == "fp32"
    finally:
        model.finalize()


def test_another_file_is_not_loaded(folder: Path) -> None:
    with pytest.raises(ModelFileError, match="not the model of this repository"):
        loaded(folder, file_sha256(INT8))
