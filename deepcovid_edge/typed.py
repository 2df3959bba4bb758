"""Can TensorRT take this graph? Asked before TensorRT is, so that the answer names the mend.

Engines are built from typed ONNX: FP16 casts and symmetric Q/DQ in the graph. What TensorRT's
parser refuses with an assertion is found here by reading the file's nodes and initialisers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepcovid_edge.errors import ModelFileError, NotThereError
from deepcovid_edge.wire import blocks, read_fields, text

# onnx.proto: ModelProto.graph; GraphProto.node, .initializer, .input.
_GRAPH, _NODE, _INITIALIZER, _INPUT = 7, 1, 5, 11
# NodeProto.input, .name, .op_type; TensorProto.data_type, .name, .raw_data, .int32_data.
_NODE_INPUT, _NODE_NAME, _NODE_TYPE = 1, 3, 4
_DATA_TYPE, _TENSOR_NAME, _RAW_DATA, _INT32_DATA = 2, 8, 9, 5
# TensorProto.DataType.
_UINT8, _INT32 = 2, 6
_MEND = "quantise the FP32 model with `deepcovid-edge quantize --for tensorrt`"
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


@dataclass
class _Tensor:
    data_type: int
    is_zero: bool


@dataclass
class _Graph:
    nodes: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """Operator, name and inputs of each node."""
    constants: dict[str, _Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)


def check_typed(path: Path) -> None:
    """Refuse a model whose graph TensorRT does not take.

    Raises:
        NotThereError: The file cannot be opened.
        ModelFileError: The graph has an integer operator, a bias in INT32, a zero point, or gives
            its uint8 films to something else than a cast.
    """
    try:
        graph = _read(memoryview(path.read_bytes()))
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: not an ONNX model ({error})") from error
    for operator, name, inputs in graph.nodes:
        if said := _refusal(graph, operator, inputs):
            raise ModelFileError(f"{path}: {operator} {name}: {said}")


def _refusal(graph: _Graph, operator: str, inputs: list[str]) -> str | None:
    if operator in _INTEGER_OPERATORS:
        return f"TensorRT reads Q/DQ, not integer operators: {_MEND}"
    if operator != "Cast" and set(inputs) & set(graph.inputs):
        return "TensorRT takes uint8 films into a Cast alone: export the model again"
    if operator not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    constants = [graph.constants.get(name) for name in inputs]
    if operator == "DequantizeLinear" and constants[0] and constants[0].data_type == _INT32:
        return f"a bias in INT32, which TensorRT does not read: {_MEND}"
    zero_point = constants[2] if len(constants) > 2 else None
    if zero_point and (zero_point.data_type == _UINT8 or not zero_point.is_zero):
        return f"a zero point (asymmetric or uint8), which TensorRT does not read: {_MEND}"
    return None


def _read(model: memoryview) -> _Graph:
    graph = _Graph()
    for content in blocks(model, _GRAPH):
        for number, value in read_fields(content):
            if not isinstance(value, memoryview):
                continue
            if number == _NODE:
                graph.nodes.append(_node(value))
            elif number == _INITIALIZER:
                name, tensor = _tensor(value)
                graph.constants[name] = tensor
            elif number == _INPUT:
                graph.inputs += [text(name) for name in blocks(value, 1)]
    return graph


def _node(content: memoryview) -> tuple[str, str, list[str]]:
    operator = name = ""
    inputs = []
    for number, value in read_fields(content):
        if not isinstance(value, memoryview):
            continue
        if number == _NODE_INPUT:
            inputs.append(text(value))
        elif number == _NODE_NAME:
            name = text(value)
        elif number == _NODE_TYPE:
            operator = text(value)
    return operator, name, inputs


def _tensor(content: memoryview) -> tuple[str, _Tensor]:
    name, data_type, is_zero = "", 0, True
    for number, value in read_fields(content):
        if number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _INT32_DATA and isinstance(value, int):
            is_zero = is_zero and value == 0
        elif isinstance(value, memoryview):
            if number == _TENSOR_NAME:
                name = text(value)
            elif number in (_RAW_DATA, _INT32_DATA):
                is_zero = is_zero and not any(value)
    return name, _Tensor(data_type, is_zero)
