"""deepcovid-edge: Deep-COVID networks on an X-ray cart. Research use only; not a medical device.

    from deepcovid_edge import Model

    with Model("squeezenet1_1") as model:
        print(model.predict_one("chest.dcm"))

Names are imported when they are first used, so that `import deepcovid_edge` costs nothing. It
turns off the telemetry of ONNX Runtime, which must happen before that is imported.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcovid_edge.benchmarking.compare import compare
    from deepcovid_edge.benchmarking.measure import bench
    from deepcovid_edge.decision.record import Prediction
    from deepcovid_edge.errors import DeepCovidEdgeError, NotAssessedError
    from deepcovid_edge.heatmaps.explainer import Explanation
    from deepcovid_edge.heatmaps.heatmap import HeatMap, Region
    from deepcovid_edge.imaging.files import ImageBytes
    from deepcovid_edge.imaging.radiograph import Radiograph
    from deepcovid_edge.imaging.reading import read_radiograph
    from deepcovid_edge.manifest import VERSION as __version__
    from deepcovid_edge.model import Model
    from deepcovid_edge.reasons import NOTICE, Reason, WarningCode
    from deepcovid_edge.validation.site_check import site_check
    from deepcovid_edge.validation.verify import verify

# Nobody is called: runtimes read these when they are imported, and in child processes. From 1.29 on
# ONNX Runtime else keeps a device identifier and sends events, and a call after its import is too
# late to stop that (onnxruntime, docs/Privacy.md).
os.environ.update(ORT_DISABLE_TELEMETRY="1", RAY_USAGE_STATS_ENABLED="0")

_HOMES = {
    "DeepCovidEdgeError": "errors",
    "Explanation": "heatmaps.explainer",
    "HeatMap": "heatmaps.heatmap",
    "ImageBytes": "imaging.files",
    "Model": "model",
    "NOTICE": "reasons",
    "NotAssessedError": "errors",
    "Prediction": "decision.record",
    "Radiograph": "imaging.radiograph",
    "Reason": "reasons",
    "Region": "heatmaps.heatmap",
    "WarningCode": "reasons",
    "bench": "benchmarking.measure",
    "compare": "benchmarking.compare",
    "read_radiograph": "imaging.reading",
    "site_check": "validation.site_check",
    "verify": "validation.verify",
}
__all__ = [
    "NOTICE",
    "DeepCovidEdgeError",
    "Explanation",
    "HeatMap",
    "ImageBytes",
    "Model",
    "NotAssessedError",
    "Prediction",
    "Radiograph",
    "Reason",
    "Region",
    "WarningCode",
    "__version__",
    "bench",
    "compare",
    "read_radiograph",
    "site_check",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("deepcovid_edge.manifest").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'deepcovid_edge' has no attribute {name!r}")
    return getattr(import_module(f"deepcovid_edge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
