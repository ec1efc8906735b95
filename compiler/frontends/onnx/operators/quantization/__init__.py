"""Quantization, integer matmuls and convolutions, narrow floating-point types."""
