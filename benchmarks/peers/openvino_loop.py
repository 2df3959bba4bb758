"""What a user writes with OpenVINO and OpenCV: an asynchronous queue and the throughput hint.

The way of OpenVINO's own "Image Classification Async" sample. `precision="f32"` computes FP32
files in FP32; None leaves it to OpenVINO, which takes BF16 where the processor has it: faster, and
another computation than the file asks for. Telemetry is off, because it would be timed too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.onnxruntime_loop import first_probability, prepared
from deepcovid_edge.backends.openvino import quiet_runtime

_KEPT: list[Any] = []
"""Models are kept until the process ends. Freeing one right after its last callback can wait for
ever (seen with 2026.4): it joins its threads while it holds Python's lock, and they wait for that.
"""


def make(model: Path, *, precision: str | None = "f32") -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    openvino = quiet_runtime()
    options = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(model), "CPU", options)
    _KEPT.append(compiled)

    def classify(paths: Sequence[Path]) -> list[float]:
        scores = [0.0] * len(paths)

        def take(request: Any, number: int) -> None:
            scores[number] = first_probability(request.get_tensor("logits").data)

        queue = openvino.AsyncInferQueue(compiled)
        queue.set_callback(take)
        for number, path in enumerate(paths):
            queue.start_async({"images": prepared(path)[None]}, number)
        queue.wait_all()
        return scores

    return classify
