"""A trained network to one ONNX file."""
