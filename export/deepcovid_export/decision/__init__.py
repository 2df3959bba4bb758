"""Fitted on data and kept in the model file: out-of-distribution and indeterminate limits."""
