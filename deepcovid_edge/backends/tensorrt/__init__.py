"""TensorRT and TensorRT-RTX: engines built, stored, checked and run."""
