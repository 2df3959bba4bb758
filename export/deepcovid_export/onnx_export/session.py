"""ONNX Runtime sessions for fitting and measuring, on all cores of the CPU."""

from __future__ import annotations

import os
from typing import Any

import onnx
import onnxruntime

_ERRORS_ONLY = 3


def open_session(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session on the CPU that uses every core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores from the NumPy work between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
