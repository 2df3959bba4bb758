"""ONNX Runtime outside our backends, one thread a call: what a plain graph takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime


def single_threaded(model: Path | bytes) -> Any:
    """A session on the CPU, of a model file or of its content."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
