"""Suites of measurements with `deepcovid-edge bench`."""
