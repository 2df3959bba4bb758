"""The workstation side of deepcovid-edge: data, networks, training, export (PyTorch)."""

import deepcovid_edge  # noqa: F401 - first: it turns off the telemetry of ONNX Runtime
