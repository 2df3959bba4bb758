"""Fitted on data, kept in the model file: out-of-distribution limits, indeterminate range."""
