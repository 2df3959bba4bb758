"""Read the graph of an ONNX file and cut parts out of it, without the `onnx` package.

Field numbers are those of onnx/onnx.proto (IR 10).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.models.graph.protobuf import encode, integers, message_of, read_fields, text

# ModelProto.graph, .metadata_props; GraphProto.node, .name, .initializer, .input, .output.
_GRAPH, _METADATA = 7, 14
_NODE, _GRAPH_NAME, _INITIALIZER, _INPUT, _OUTPUT = 1, 2, 5, 11, 12
# NodeProto.input, .output, .name, .op_type, .attribute; AttributeProto.name, .i, .s, .ints.
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5
_NODE_STRINGS = (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE)
_ATTRIBUTE_NAME, _INT, _STRING, _INTS = 1, 3, 4, 8
# TensorProto.dims, .data_type, .int32_data, .name, .raw_data.
_DIMS, _DATA_TYPE, _INT32_DATA, _TENSOR_NAME, _RAW_DATA = 1, 2, 5, 8, 9
# ValueInfoProto.name, .type; TypeProto.tensor_type; its elem_type, .shape; dim; dim_param.
_VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _ELEMENT, _SHAPE, _DIM, _DIM_PARAM = 1, 2, 1, 1, 2, 1, 2

FLOAT, UINT8, INT32 = 1, 2, 6
"""Values of TensorProto.DataType."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        operator: Such as `Conv`.
        name: The node's name, possibly empty.
        inputs: Names of the tensors it reads, empty where an optional one is left out.
        outputs: Names of the tensors it makes.
        numbers: Attributes that are integers or lists of them.
        words: Attributes that are strings.
        content: The node as it stands in the file.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    words: dict[str, str]
    content: memoryview


@dataclass(frozen=True)
class Constant:
    """A tensor stored in the file.

    Attributes:
        data_type: Of TensorProto.DataType.
        shape: Its dimensions.
        is_zero: Whether it holds zeros alone; known of integers.
        content: The tensor as it stands in the file.
    """

    data_type: int
    shape: tuple[int, ...]
    is_zero: bool
    content: memoryview


@dataclass
class Graph:
    """What a model computes.

    Attributes:
        nodes: In an order in which they can run.
        constants: Stored tensors by name.
        inputs: Names of what the graph reads.
        outputs: Names of what it gives.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read_graph(model: memoryview) -> Graph:
    """The graph of a model.

    Args:
        model: The content of an .onnx file.

    Raises:
        ModelFileError: The bytes are no ONNX model.
    """
    graph = Graph()
    try:
        for number, value in _graph_fields(model):
            if number == _NODE:
                graph.nodes.append(_node(message_of(value)))
            elif number == _INITIALIZER:
                name, constant = _constant(message_of(value))
                graph.constants[name] = constant
            elif number == _INPUT:
                graph.inputs.append(_value_name(message_of(value)))
            elif number == _OUTPUT:
                graph.outputs.append(_value_name(message_of(value)))
    except ValueError as error:
        raise ModelFileError(f"not an ONNX model ({error})") from error
    return graph


def cut(
    model: memoryview, graph: Graph, starts: Sequence[str], stop: str, *, padded: bool = True
) -> bytes:
    """The part of a model between some tensors and one that is made of them, as a model.

    Args:
        model: The content of an .onnx file.
        graph: Its graph.
        starts: The tensors that become inputs: what the graph reads, of shape (batch, height,
            width), or tensors inside, of shape (batch, channels, height, width).
        stop: The tensor that becomes the output.
        padded: Whether convolutions pad their inputs, as they do in the model.
    """
    nodes = nodes_between(graph, starts, stop)
    read = {name for node in nodes for name in node.inputs}
    contents = [node.content if padded else _without(node, "pads") for node in nodes]
    content = b"".join(encode(_NODE, content) for content in contents)
    content += encode(_GRAPH_NAME, "part")
    for name in sorted(read & graph.constants.keys()):
        content += encode(_INITIALIZER, graph.constants[name].content)
    for name in starts:
        axes = "nhw" if name in graph.inputs else "nchw"
        content += encode(_INPUT, _value_info(name, data_type(graph, name), axes))
    content += encode(_OUTPUT, encode(_VALUE_NAME, stop))
    kept = [(n, value) for n, value in read_fields(model) if n not in (_GRAPH, _METADATA)]
    return b"".join(encode(number, value) for number, value in kept) + encode(_GRAPH, content)


def nodes_between(graph: Graph, starts: Collection[str], stop: str) -> list[Node]:
    """The nodes that make `stop` from `starts` and from constants, in their order."""
    wanted, kept = {stop}, []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs) - set(starts):
            wanted.update(name for name in node.inputs if name not in starts)
            kept.append(node)
    return kept[::-1]


def alive_behind(
    nodes: Sequence[Node], start: str, stop: str
) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Each node with the tensors that all nodes behind it are made of, in the order they came.

    Args:
        nodes: The nodes from `start` to `stop` that depend on `start`, in their order.
        start: The tensor that they begin with.
        stop: The tensor that they end with.
    """
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    last_use[stop] = len(nodes)
    alive: tuple[str, ...] = (start,)
    for index, node in enumerate(nodes):
        alive = tuple(n for n in (*alive, node.outputs[0]) if last_use.get(n, -1) > index)
        yield node, alive


def varying(graph: Graph, start: Iterable[str]) -> set[str]:
    """The tensors that depend on any of `start`; all others are the same in every run."""
    depends = set(start)
    for node in graph.nodes:
        if depends & set(node.inputs):
            depends.update(node.outputs)
    return depends


def _graph_fields(model: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    for number, value in read_fields(model):
        if number == _GRAPH:
            yield from read_fields(message_of(value))


def _node(content: memoryview) -> Node:
    strings: dict[int, list[str]] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    words: dict[str, str] = {}
    for number, value in read_fields(content):
        if number == _ATTRIBUTE:
            _read_attribute(message_of(value), numbers, words)
        elif number in _NODE_STRINGS:  # what else an exporter notes need not be text
            strings.setdefault(number, []).append(text(value))
    return Node(
        "".join(strings.get(_NODE_TYPE, [])),
        "".join(strings.get(_NODE_NAME, [])),
        tuple(strings.get(_NODE_INPUT, [])),
        tuple(strings.get(_NODE_OUTPUT, [])),
        numbers,
        words,
        content,
    )


def _read_attribute(
    content: memoryview, numbers: dict[str, tuple[int, ...]], words: dict[str, str]
) -> None:
    name = ""
    found: list[int] = []
    for number, value in read_fields(content):
        if number == _ATTRIBUTE_NAME:
            name = text(value)
        elif number == _STRING:
            words[name] = bytes(message_of(value)).decode(errors="replace")  # may be a blob
        elif number in (_INT, _INTS):
            found += integers(value)
    if found:
        numbers[name] = tuple(found)


def _constant(content: memoryview) -> tuple[str, Constant]:
    name, data_type, is_zero = "", 0, True
    shape: list[int] = []
    for number, value in read_fields(content):
        if number == _DIMS:
            shape += integers(value)
        elif number == _DATA_TYPE:
            (data_type,) = integers(value)
        elif number == _TENSOR_NAME:
            name = text(value)
        elif number == _RAW_DATA:
            is_zero = is_zero and not any(message_of(value))
        elif number == _INT32_DATA:
            is_zero = is_zero and not any(integers(value))
    return name, Constant(data_type, tuple(shape), is_zero, content)


def _without(node: Node, attribute: str) -> bytes:
    """A node's content without one attribute."""
    content = b""
    for number, value in read_fields(node.content):
        fields = read_fields(message_of(value)) if number == _ATTRIBUTE else ()
        if not any(inner == _ATTRIBUTE_NAME and text(own) == attribute for inner, own in fields):
            content += encode(number, value)
    return content


def _value_name(content: memoryview) -> str:
    return "".join(text(value) for number, value in read_fields(content) if number == _VALUE_NAME)


def data_type(graph: Graph, tensor: str) -> int:
    """What a tensor holds: images are uint8, what a QuantizeLinear makes is as its zero point."""
    if tensor in graph.inputs:
        return UINT8
    maker = next(node for node in graph.nodes if tensor in node.outputs)
    if maker.operator != "QuantizeLinear":
        return FLOAT
    zero_point = graph.constants.get(maker.inputs[2]) if len(maker.inputs) > 2 else None
    return zero_point.data_type if zero_point else UINT8


def _value_info(name: str, data_type: int, axes: str) -> bytes:
    """A ValueInfoProto of a tensor whose dimensions may have any length."""
    shape = b"".join(encode(_DIM, encode(_DIM_PARAM, axis)) for axis in axes)
    tensor = encode(_ELEMENT, data_type) + encode(_SHAPE, shape)
    return encode(_VALUE_NAME, name) + encode(_VALUE_TYPE, encode(_TENSOR_TYPE, tensor))
