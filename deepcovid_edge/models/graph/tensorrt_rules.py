"""Can TensorRT take this graph? Asked before TensorRT is, so that the answer names the fix.

Engines are built from typed ONNX: FP16 casts and symmetric Q/DQ in the graph. What TensorRT's
parser refuses with an assertion is found here by reading the file's nodes and initialisers.
"""

from __future__ import annotations

from pathlib import Path

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.files import read_named
from deepcovid_edge.models.graph.reader import INT32, UINT8, Graph, Node, read_graph

_FIX = "quantise the FP32 model with `deepcovid-edge quantize --for tensorrt`"
_INTEGER_OPERATORS = {
    "QLinearConv",
    "QLinearMatMul",
    "QLinearAdd",
    "QLinearConcat",
    "QLinearGlobalAveragePool",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
}


def check_typed(path: Path) -> None:
    """Refuse a model whose graph TensorRT does not take.

    Raises:
        NotThereError: The file cannot be opened.
        ModelFileError: The graph has an integer operator, a bias in INT32, a zero point, or gives
            its uint8 images to something else than a cast.
    """
    try:
        graph = read_graph(memoryview(read_named(path)))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    for node in graph.nodes:
        if why := _refusal(graph, node):
            raise ModelFileError(f"{path}: {node.operator} {node.name}: {why}")


def _refusal(graph: Graph, node: Node) -> str | None:
    if node.operator in _INTEGER_OPERATORS:
        return f"TensorRT reads Q/DQ, not integer operators: {_FIX}"
    if node.operator != "Cast" and set(node.inputs) & set(graph.inputs):
        return "TensorRT takes uint8 images into a Cast alone: export the model again"
    if node.operator not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    constants = [graph.constants.get(name) for name in node.inputs]
    if node.operator == "DequantizeLinear" and constants[0] and constants[0].data_type == INT32:
        return f"a bias in INT32, which TensorRT does not read: {_FIX}"
    zero_point = constants[2] if len(constants) > 2 else None
    if zero_point and (zero_point.data_type == UINT8 or not zero_point.is_zero):
        return f"a zero point (asymmetric or uint8), which TensorRT does not read: {_FIX}"
    return None
