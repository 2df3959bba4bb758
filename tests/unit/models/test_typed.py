"""What TensorRT would refuse is refused here first, with the fix, without the onnx package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepcovid_edge.errors import ModelFileError, NotThereError
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.tensorrt_rules import check_typed

pytest.importorskip("onnx", reason="onnx makes the graphs that are refused")
import onnx
from onnx import TensorProto, helper, numpy_helper


def saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Path:
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [images], [out], initialisers)
    onnx.save(helper.make_model(graph), path)
    return path


CAST = helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT)
SCALE = np.array(0.1, np.float32)


def test_shipped_model_passes() -> None:
    check_typed(find_model("squeezenet1_1"))


def test_symmetric_qdq_passes(tmp_path: Path) -> None:
    nodes = [
        CAST,
        helper.make_node("QuantizeLinear", ["cast", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["out"]),
    ]
    check_typed(saved(tmp_path / "m.onnx", nodes, {"s": SCALE, "z": np.zeros((), np.int8)}))


@pytest.mark.parametrize(
    "zero", [np.array(3, np.int8), np.array(0, np.uint8), np.array(128, np.uint8)]
)
def test_zero_points_and_uint8_are_refused(tmp_path: Path, zero: np.ndarray) -> None:
    nodes = [CAST, helper.make_node("QuantizeLinear", ["cast", "s", "z"], ["out"], name="odd")]
    path = saved(tmp_path / "m.onnx", nodes, {"s": SCALE, "z": zero})
    with pytest.raises(ModelFileError, match=r"QuantizeLinear odd: a zero point.*--for tensorrt"):
        check_typed(path)


def test_int32_bias_is_refused(tmp_path: Path) -> None:
    nodes = [CAST, helper.make_node("DequantizeLinear", ["b", "s"], ["out"], name="bias")]
    path = saved(tmp_path / "m.onnx", nodes, {"s": SCALE, "b": np.ones(4, np.int32)})
    with pytest.raises(ModelFileError, match="DequantizeLinear bias: a bias in INT32"):
        check_typed(path)


@pytest.mark.parametrize("operator", ["QLinearConv", "ConvInteger"])
def test_integer_operators_are_refused(tmp_path: Path, operator: str) -> None:
    path = saved(tmp_path / "m.onnx", [CAST, helper.make_node(operator, ["cast"], ["out"])], {})
    with pytest.raises(ModelFileError, match="not integer operators"):
        check_typed(path)


def test_uint8_images_go_into_a_cast_alone(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["images", "axes"], ["out"], name="first")]
    path = saved(tmp_path / "m.onnx", nodes, {"axes": np.array([1], np.int64)})
    with pytest.raises(ModelFileError, match="Unsqueeze first: TensorRT takes uint8 images"):
        check_typed(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 30)
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        check_typed(path)
    with pytest.raises(NotThereError):
        check_typed(tmp_path / "no.onnx")


def test_the_check_needs_no_onnx_package() -> None:
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from deepcovid_edge.models.graph.tensorrt_rules import check_typed\n"
        "from deepcovid_edge.models import find_model\n"
        "check_typed(find_model('squeezenet1_1'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
