"""ONNX Runtime behind torchvision's reading and preparing, one image at a time.

This is the published loop with an exported network and torchvision's present transforms, nothing
else changed. Beside `onnxruntime_loop` it shows what reading and preparing cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime

from benchmarks.measure import CORES
from benchmarks.peers import torchvision_prepare
from benchmarks.peers.onnxruntime_loop import first_probability


def make(model: Path) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    prepare = torchvision_prepare.make("present", threads=CORES)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def classify(paths: Sequence[Path]) -> list[float]:
        found = (session.run(["logits"], {"images": prepare(path)[None]})[0] for path in paths)
        return [first_probability(logits) for logits in found]

    return classify
