"""FP32 to FP16 and INT8."""
