"""ONNX graphs, read without the package onnx."""
