"""What a user writes with NVIDIA's Polygraphy: engine built on loading, its runner, image by image.

Only where TensorRT and a GPU are. The engine is built of the file as it is (typed: its precision is
in the graph), for batch 1, with Polygraphy's defaults otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Pixels
from benchmarks.peers.onnxruntime_loop import first_probability, prepared


def runner(model: Path, batch: int = 1) -> Callable[[Pixels], Pixels]:
    """Prepared images of shape (batch, H, W) to logits, host to host."""
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
    )

    shape = (batch, 224, 224)
    network = NetworkFromOnnxPath(str(model), strongly_typed=True)
    config = CreateConfig(profiles=[Profile().add("images", min=shape, opt=shape, max=shape)])
    active = TrtRunner(EngineFromNetwork(network, config=config))
    active.activate()  # for the life of the process, as such a script does it

    def infer(images: Pixels) -> Pixels:
        return np.asarray(active.infer({"images": images})["logits"])

    return infer


def make(model: Path) -> Callable[[Sequence[Path]], list[float]]:
    """The loop over an exported model."""
    infer = runner(model)

    def classify(paths: Sequence[Path]) -> list[float]:
        return [first_probability(infer(prepared(path)[None])) for path in paths]

    return classify
