"""ONNX graphs: looking up and replacing their parts, and writing them as model files.

TensorRT builds exactly what the graph says ("strongly typed"), so precision is written into the
graph: see `fp16_graph` and `int8_graph`. `deepcovid_edge.models.graph.tensorrt_rules` lists what
its parser rejects.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from deepcovid_edge.errors import ModelFileError, OutputError
from deepcovid_edge.manifest import METADATA_KEY, ModelManifest

INT8_OPSET = 19
"""The first opset whose Q/DQ take FP16 scales; TensorRT 10.3 (JetPack 6) reads up to 20."""
MAX_IR_VERSION = 10
QDQ = ("QuantizeLinear", "DequantizeLinear")


def find_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The layers whose precision is decided: convolutions, by the name of their weights."""
    return {node.input[1].removesuffix(".weight"): node for node in nodes_of(model, "Conv")}


def nodes_of(model: onnx.ModelProto, operator: str) -> Iterator[onnx.NodeProto]:
    """Nodes of one operator, in the graph's order."""
    return (node for node in model.graph.node if node.op_type == operator)


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Weights and other constants by name."""
    return {item.name: item for item in graph.initializer}


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a network that may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace all nodes of a graph; they may come from the graph itself."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def set_manifest(model: onnx.ModelProto, manifest: ModelManifest) -> None:
    """Make the manifest the only metadata of a model."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())


def finish(model: onnx.ModelProto, manifest: ModelManifest) -> onnx.ModelProto:
    """A copy of a network as a model file: sorted, checked, with the manifest as only metadata.

    Raises:
        ModelFileError: The graph is not valid ONNX.
    """
    done = copy_model(model)
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
    set_nodes(graph, sorted_nodes(graph))
    used = {name for node in graph.node for name in node.input}
    constants = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    try:
        onnx.checker.check_model(done, full_check=True)
    except Exception as error:  # the checker's and shape inference's own types
        raise ModelFileError(f"{manifest.name}: not a valid graph: {error}") from error
    set_manifest(done, manifest)
    return done


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model in one step; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        onnx.save(model, temporary)
        temporary.replace(path)


def check_place(path: Path) -> None:
    """Refuse, before long work, a file that could not be written; its folder is created.

    Raises:
        OutputError: It cannot.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    with temporary_beside(path) as temporary:
        temporary.touch()


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A place for an unfinished .onnx file in the folder of the finished one.

    Raises:
        OutputError: It cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.stem}.onnx")
    try:
        yield temporary
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def quiet(logger: str | None) -> Iterator[None]:
    """Silence warnings of an exporter or quantiser, whose logger is named (None: the root)."""
    chatty = logging.getLogger(logger)
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)


def sorted_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes, each after those whose outputs it reads, otherwise in their present order."""
    makers = makers_of(graph)
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
