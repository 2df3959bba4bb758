"""Measurements of speed and accuracy; `python -m benchmarks.run_all` runs them all."""

import deepcovid_edge  # noqa: F401 - first of all: it switches the telemetry of runtimes off
