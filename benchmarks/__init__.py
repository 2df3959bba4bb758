"""Measurements of speed and accuracy; `python -m benchmarks.run_all` runs them all."""

import deepcovid_edge  # noqa: F401 - first: it turns off the telemetry of ONNX Runtime
