"""Measurements of speed and accuracy; `python -m benchmarks.run_all` runs them all."""
