"""Graphs as this project keeps them: read, asked for their layers, and written clean.

TensorRT builds what the graph says and nothing else ("strongly typed"), so precision is written
into it: `fp16_graph` and `int8_graph`. What its parser refuses is said in
`deepcovid_edge.graph.tensorrt_rules`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import METADATA_KEY, ModelManifest
from deepcovid_export.onnx_export.half_weights import restore_float

INT8_OPSET = 19
"""The first opset whose Q/DQ take FP16 scales; TensorRT 10.3 (JetPack 6) reads up to 20."""
MAX_IR_VERSION = 10
QDQ = ("QuantizeLinear", "DequantizeLinear")


def read_fp32(path: str, data: bytes) -> onnx.ModelProto:
    """Parse an FP32 network; weights stored in FP16 are widened.

    Raises:
        ModelFileError: The bytes are no ONNX model, or its graph has other precisions in it.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises its own types
        raise ModelFileError(f"{path}: not an ONNX model ({error})") from error
    model = restore_float(model)
    typed = any(node.op_type in QDQ for node in model.graph.node)
    halved = _computes_in_half(model)
    if typed or halved:
        raise ModelFileError(
            f"{path}: its graph has {'Q/DQ' if typed else 'FP16'} in it already, expected FP32: "
            "quantise the file that `deepcovid-edge export` wrote"
        )
    for node in model.graph.node:  # the quantiser knows nodes by name
        node.name = node.name or f"node_{node.output[0]}"
    return model


def _computes_in_half(model: onnx.ModelProto) -> bool:
    stored = any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer)
    cast = any(
        item.name == "to" and item.i == TensorProto.FLOAT16
        for node in nodes_of(model, "Cast")
        for item in node.attribute
    )
    return stored or cast


def find_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The layers that precision is decided for: convolutions, by the name of their weights."""
    return {
        node.input[1].removesuffix(".weight"): node
        for node in model.graph.node
        if node.op_type == "Conv"
    }


def with_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The same network in a newer opset."""
    return onnx.version_converter.convert_version(model, version)


def nodes_of(model: onnx.ModelProto, operator: str) -> Iterator[onnx.NodeProto]:
    """Nodes of one operator, in the graph's order."""
    return (node for node in model.graph.node if node.op_type == operator)


def finished(model: onnx.ModelProto, manifest: ModelManifest) -> onnx.ModelProto:
    """The network as a file of this project: sorted, checked, with the manifest and nothing else.

    Raises:
        ModelFileError: The graph is not valid ONNX.
    """
    done = onnx.ModelProto()
    done.CopyFrom(model)
    done.ir_version = min(done.ir_version, MAX_IR_VERSION)
    done.producer_name, done.producer_version, done.doc_string = "deepcovid-edge", "", ""
    domains = [item for item in done.opset_import if item.domain in ("", "ai.onnx")]
    kept = helper.make_opsetid("", domains[0].version)
    del done.opset_import[:]
    done.opset_import.append(kept)
    graph = done.graph
    graph.name = "deepcovid"
    for name in ("value_info", "metadata_props", "quantization_annotation", "doc_string"):
        graph.ClearField(name)
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    nodes = list(sorted_nodes(graph))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    constants = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    try:
        onnx.checker.check_model(done, full_check=True)
    except Exception as error:  # the checker's and shape inference's own types
        raise ModelFileError(f"{manifest.name}: not a valid graph: {error}") from error
    del done.metadata_props[:]
    done.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    return done


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model in one step; its folder is created if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.stem}.onnx")
    try:
        onnx.save(model, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sorted_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes, each after those whose outputs it reads, else in the order they stand."""
    makers = {name: node for node in graph.node for name in node.output}
    made: set[str] = set()
    for last in graph.node:
        waiting = [last]
        while waiting:
            node = waiting[-1]
            missing = [makers[name] for name in node.input if name in makers and name not in made]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node.output[0] not in made:
                made.update(node.output)
                yield node
