"""Evaluations as JSON, one page and a model card."""
