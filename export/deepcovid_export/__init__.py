"""The workstation side of deepcovid-edge: data, networks, training, export (PyTorch)."""

import deepcovid_edge  # noqa: F401 - first of all: it switches the telemetry of runtimes off
