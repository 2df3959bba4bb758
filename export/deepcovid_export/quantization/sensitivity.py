"""Which layers cost accuracy when they are quantised, and how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from deepcovid_edge.device.progress import counted
from deepcovid_export.onnx_export.session import open_session
from deepcovid_export.quantization.calibration import ImageBatches


class Probe:
    """A few calibration images, kept prepared, and their logits in the FP32 network."""

    def __init__(self, model: onnx.ModelProto, batches: ImageBatches) -> None:
        self._batches = list(batches)
        self._reference = self._logits(model)

    def error(self, candidate: onnx.ModelProto) -> float:
        """RMSE of a candidate's logits over the spread (standard deviation) of the network's own.

        Infinite where a logit is not finite.
        """
        apart = self._logits(candidate) - self._reference
        if not np.isfinite(apart).all():
            return math.inf
        return float(np.sqrt(np.mean(apart**2)) / (np.std(self._reference) or 1.0))

    def _logits(self, model: onnx.ModelProto) -> NDArray[np.float64]:
        session = open_session(model)
        seen = [session.run(["logits"], {"images": batch})[0] for batch in self._batches]
        logits: NDArray[np.float64] = np.concatenate(seen).astype(np.float64)
        return logits


def layer_errors(
    layers: Sequence[str], quantised_alone: Callable[[str], onnx.ModelProto], probe: Probe
) -> dict[str, float]:
    """The error when each layer alone is quantised, the largest first."""
    done = counted(layers, len(layers), "layers to measure")
    errors = {name: probe.error(quantised_alone(name)) for name in done}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
