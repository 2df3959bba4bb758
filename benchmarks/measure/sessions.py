"""ONNX Runtime sessions outside our backends: what a plain graph takes."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime

_ERRORS_ONLY = 3


def open_session(model: onnx.ModelProto, *, threads: int = 0, exact: bool = False) -> Any:
    """A session on the CPU.

    Args:
        model: The graph.
        threads: Inside a call; 0 for all cores.
        exact: Switch graph optimisations off, so that Q/DQ pairs compute in float.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
